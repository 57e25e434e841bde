//! The store, at the level of directories; the sandbox's tests cover mounting its layers.

mod content;
mod freeze;
mod full;
mod gc;
mod ignored;
mod keeping;
mod layers;
mod sharing;
mod stacks;
mod view;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use hm_exec::store::{FrozenSource, Store, StoreError};

/// A source tree, and a store beside it.
pub(super) struct Bench {
    top: tempfile::TempDir,
    pub(super) store: Arc<Store>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("source")).unwrap();
        let store = Store::open(&top.path().join("store")).unwrap();
        Self { top, store }
    }

    pub(super) fn top(&self) -> &Path {
        self.top.path()
    }

    pub(super) fn source(&self, path: &str) -> PathBuf {
        self.top.path().join("source").join(path)
    }

    /// Writes a file of the source, with its directories.
    pub(super) fn put(&self, path: &str, text: &str) {
        fs::create_dir_all(self.source(path).parent().unwrap()).unwrap();
        fs::write(self.source(path), text).unwrap();
    }

    pub(super) fn freeze(&self) -> FrozenSource {
        self.try_freeze().unwrap()
    }

    pub(super) fn try_freeze(&self) -> Result<FrozenSource, StoreError> {
        self.store.freeze(&self.source(""), &AtomicBool::new(false))
    }
}

/// Returns whether overlay marks can be made here. If not, prints a note, and fails if the environment
/// requires the marks.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub(super) fn can_mark() -> bool {
    let top = tempfile::tempdir().unwrap();
    let marked = view::whiteout(&top.path().join("x")) && view::make_opaque(top.path());
    if !marked {
        assert!(std::env::var_os("HM_REQUIRE_BACKENDS").is_none(), "whiteouts or extended attributes are denied here");
        eprintln!("skipped: whiteouts or extended attributes are denied in {}", std::env::temp_dir().display());
    }
    marked
}
