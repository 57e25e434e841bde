//! The store that `hm` uses: its directory, and how it is opened.

use std::{path::PathBuf, sync::Arc};

use hm_exec::store::{Store, StoreError, StoreHandle};

use crate::failure::{Failure, Outcome};

/// Returns the directory of layers, images, journals and logs.
pub(crate) fn dir() -> Outcome<PathBuf> {
    Store::default_dir().map_err(|error| {
        Failure::infrastructure("failed to choose a directory for the store").because(error).hint("set HM_CACHE_DIR")
    })
}

/// Returns the directory of journals and logs, which has a subdirectory for each run, named after it.
pub(crate) fn runs_dir() -> Outcome<PathBuf> {
    Ok(dir()?.join("runs"))
}

/// Returns a handle to the store, which is not opened yet.
pub(crate) fn handle() -> Outcome<StoreHandle> {
    Ok(StoreHandle::new(dir()?))
}

/// Opens the store, which removes what killed processes left in it.
pub(crate) fn open() -> Outcome<Arc<Store>> {
    handle()?.get().map_err(|error| {
        // Later errors name what is wrong with the store.
        let is_missing = matches!(error, StoreError::Io { doing: "make the directory", .. });
        let failure = Failure::infrastructure("failed to open the store").because(error);
        if is_missing { failure.hint("set HM_CACHE_DIR to a directory that you can write to") } else { failure }
    })
}
