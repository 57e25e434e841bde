//! A store beside a source tree.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use hm_exec::{
    source::{self, FrozenSource, SourceTimes},
    store::{Store, StoreError},
};

use super::{
    backends::usable,
    overlay_view::{make_opaque, whiteout},
};

/// A source tree, and a store beside it.
pub(crate) struct Bench {
    pub(crate) top: tempfile::TempDir,
    pub(crate) store: Arc<Store>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("source")).unwrap();
        let store = Store::open(&top.path().join("store")).unwrap();
        Self { top, store }
    }

    pub(crate) fn top(&self) -> &Path {
        self.top.path()
    }

    pub(crate) fn source(&self, path: &str) -> PathBuf {
        self.top.path().join("source").join(path)
    }

    /// Writes a file of the source, with its directories.
    pub(crate) fn put(&self, path: &str, text: &str) {
        fs::create_dir_all(self.source(path).parent().unwrap()).unwrap();
        fs::write(self.source(path), text).unwrap();
    }

    pub(crate) fn freeze(&self) -> FrozenSource {
        self.try_freeze().unwrap()
    }

    pub(crate) fn try_freeze(&self) -> Result<FrozenSource, StoreError> {
        self.freeze_with(SourceTimes::Normal)
    }

    pub(crate) fn freeze_with(&self, times: SourceTimes) -> Result<FrozenSource, StoreError> {
        source::freeze(&self.store, &self.source(""), times, &AtomicBool::new(false))
    }
}

/// Returns whether overlay marks can be made here.
pub(crate) fn can_mark() -> bool {
    let top = tempfile::tempdir().unwrap();
    let marked = whiteout(&top.path().join("x")) && make_opaque(top.path());
    usable(
        "overlay marks",
        marked,
        &format!("no whiteouts or extended attributes in {}", std::env::temp_dir().display()),
    )
}
