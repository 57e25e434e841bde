//! A store that is opened when somebody needs it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Store, StoreError};

/// Names a store, and opens it at the first use. Clones share what was opened. Runners hold one of these, so that an
/// engine whose steps need no store pays for none.
#[derive(Debug, Clone, Default)]
pub struct StoreHandle {
    dir: Option<PathBuf>,
    opened: Arc<Mutex<Option<Arc<Store>>>>,
}

impl StoreHandle {
    /// The store in `dir`. Nothing is touched yet.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: Some(dir.into()), ..Self::default() }
    }

    /// The store at [`Store::default_dir`], as the environment is at the first use.
    #[must_use]
    pub fn at_default_dir() -> Self {
        Self::default()
    }

    /// The store, opened now or before. Opening takes a millisecond or so.
    ///
    /// # Errors
    /// Why it can't be opened. The next call tries again.
    pub fn get(&self) -> Result<Arc<Store>, StoreError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = &*opened {
            return Ok(Arc::clone(store));
        }
        let dir = self.dir.clone().map_or_else(Store::default_dir, Ok)?;
        let store = Store::open(&dir)?;
        *opened = Some(Arc::clone(&store));
        Ok(store)
    }

    /// The store where it is open already, for work that is not worth opening it.
    #[must_use]
    pub fn get_opened(&self) -> Option<Arc<Store>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl From<Arc<Store>> for StoreHandle {
    fn from(store: Arc<Store>) -> Self {
        Self { dir: Some(store.dir().into()), opened: Arc::new(Mutex::new(Some(store))) }
    }
}
