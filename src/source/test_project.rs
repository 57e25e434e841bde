//! A source directory with a store beside it, for unit tests.

use std::{fs, path::PathBuf, sync::Arc};

use super::RunSource;
use crate::{
    model::ArchiveId,
    store::{Store, StoreHandle},
};

pub(crate) struct TestProject {
    top: tempfile::TempDir,
}

impl TestProject {
    pub(crate) fn new() -> Self {
        let project = Self { top: tempfile::tempdir().unwrap() };
        fs::create_dir(project.dir()).unwrap();
        project
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.top.path().join("source")
    }

    /// Returns the path of a file of the source.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub(crate) fn store_dir(&self) -> PathBuf {
        self.top.path().join("store")
    }

    /// Opens the store as the next process would.
    pub(crate) fn store(&self) -> Arc<Store> {
        Store::open(&self.store_dir()).unwrap()
    }

    pub(crate) fn handle(&self) -> StoreHandle {
        StoreHandle::new(self.store_dir())
    }

    pub(crate) fn source(&self) -> RunSource {
        RunSource::new(ArchiveId(uuid::Uuid::nil()), self.dir())
    }
}
