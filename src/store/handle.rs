//! A store that is opened on first use.

use std::{path::PathBuf, sync::Arc};

use super::{Store, StoreError};
use crate::sync::Mutex;

/// Names a store, and opens it on first use. Clones share the open store. Runners hold a handle, so that an
/// engine whose steps need no store does not open one.
#[derive(Debug, Clone, Default)]
pub struct StoreHandle {
    dir: Option<PathBuf>,
    opened: Arc<Mutex<Option<Arc<Store>>>>,
}

impl StoreHandle {
    /// Creates a handle to the store in `dir`. Nothing is touched yet.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: Some(dir.into()), ..Self::default() }
    }

    /// Creates a handle to the store at [`Store::default_dir`], which is determined from the environment on
    /// first use.
    #[must_use]
    pub fn at_default_dir() -> Self {
        Self::default()
    }

    /// Returns the store, and opens it if necessary. Opening takes about a millisecond.
    ///
    /// # Errors
    /// Returns an error if the store cannot be opened. The next call tries again.
    pub fn get(&self) -> Result<Arc<Store>, StoreError> {
        let mut opened = self.opened.lock();
        if let Some(store) = &*opened {
            return Ok(Arc::clone(store));
        }
        let store = Store::open(&self.dir()?)?;
        *opened = Some(Arc::clone(&store));
        Ok(store)
    }

    /// Returns the store's directory, which need not exist.
    pub(crate) fn dir(&self) -> Result<PathBuf, StoreError> {
        self.dir.clone().map_or_else(Store::default_dir, Ok)
    }

    /// Returns the store if it is already open, for work that does not justify opening it.
    #[must_use]
    pub fn get_opened(&self) -> Option<Arc<Store>> {
        self.opened.lock().clone()
    }
}

impl From<Arc<Store>> for StoreHandle {
    fn from(store: Arc<Store>) -> Self {
        Self { dir: Some(store.dir().into()), opened: Arc::new(Mutex::new(Some(store))) }
    }
}
