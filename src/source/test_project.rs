//! A source directory with a store beside it, for unit tests.

use std::{fs, path::PathBuf, sync::Arc};

use super::RunSource;
use crate::{
    model::ArchiveId,
    store::{Store, StoreHandle},
};

pub(super) struct TestProject {
    top: tempfile::TempDir,
}

impl TestProject {
    pub(super) fn new() -> Self {
        let project = Self { top: tempfile::tempdir().unwrap() };
        fs::create_dir(project.dir()).unwrap();
        project
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.top.path().join("source")
    }

    /// Returns the path of a file of the source.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub(super) fn store_dir(&self) -> PathBuf {
        self.top.path().join("store")
    }

    /// Opens the store as the next process would.
    pub(super) fn store(&self) -> Arc<Store> {
        Store::open(&self.store_dir()).unwrap()
    }

    pub(super) fn handle(&self) -> StoreHandle {
        StoreHandle::new(self.store_dir())
    }

    pub(super) fn source(&self) -> RunSource {
        RunSource::new(ArchiveId(uuid::Uuid::nil()), self.dir())
    }
}
