//! The history of runs, so that users can ask about the last one.
//!
//! Callers record the beginning and the end of a run. They can list the runs of a source directory, newest
//! first, or find runs by a prefix of their ids. A run's files (its journal, its logs) are in
//! [`Runs::dir`]. Runs are ordered independently of the clock, because it may jump.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use uuid::Uuid;

use super::{StoreError, index, shared::Shared};

/// A run that begins.
#[derive(Debug, Clone, Copy)]
pub struct NewRun<'a> {
    /// The run's id.
    pub id: Uuid,
    /// The source directory.
    pub source_dir: &'a Path,
    /// The pipeline's name.
    pub pipeline: &'a str,
    /// When it started, in milliseconds since the Unix epoch.
    pub started_at: i64,
}

/// A run that the store knows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Run {
    /// The run's id.
    pub id: Uuid,
    /// The source directory.
    pub source_dir: PathBuf,
    /// The pipeline's name.
    pub pipeline: String,
    /// When it started, in milliseconds since the Unix epoch.
    pub started_at: i64,
    /// When it ended, or `None` if it is still running or was killed.
    pub ended_at: Option<i64>,
    /// [`BuildStatus::exit_code`](crate::BuildStatus::exit_code).
    pub exit_code: Option<i32>,
}

/// The history of runs.
#[derive(Debug)]
pub struct Runs {
    shared: Arc<Shared>,
}

impl Runs {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Records the beginning of a run.
    ///
    /// # Errors
    /// Returns an error if the index cannot be written.
    pub fn begin(&self, run: &NewRun<'_>) -> Result<(), StoreError> {
        self.shared.index.write(|transaction| index::runs::begin(transaction, run))
    }

    /// Records the end of a run.
    ///
    /// # Errors
    /// Returns an error if the index cannot be written.
    pub fn end(&self, id: Uuid, exit_code: i32) -> Result<(), StoreError> {
        self.shared.index.write(|transaction| index::runs::end(transaction, id, exit_code))
    }

    /// Returns the runs of a source directory (as given: an absolute path without symbolic links), newest
    /// first, at most `limit`. If a pipeline is named, returns only its runs.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn of(&self, source_dir: &Path, pipeline: Option<&str>, limit: u32) -> Result<Vec<Run>, StoreError> {
        self.shared.index.read(|connection| index::runs::of(connection, source_dir, pipeline, limit))
    }

    /// Returns the newest run of a source directory. If a pipeline is named, only its runs count.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn last(&self, source_dir: &Path, pipeline: Option<&str>) -> Result<Option<Run>, StoreError> {
        Ok(self.of(source_dir, pipeline, 1)?.pop())
    }

    /// Returns the runs whose ids begin with `prefix`, newest first, at most ten. A prefix identifies a run
    /// if it matches exactly one.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn find(&self, prefix: &str) -> Result<Vec<Run>, StoreError> {
        let prefix = prefix.to_ascii_lowercase();
        self.shared.index.read(|connection| index::runs::starting_with(connection, &prefix, 10))
    }

    /// Returns a run by its id.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn get(&self, id: Uuid) -> Result<Option<Run>, StoreError> {
        self.shared.index.read(|connection| index::runs::get(connection, id))
    }

    /// Forgets a run. The caller has to remove the files in its directory.
    ///
    /// # Errors
    /// Returns an error if the index cannot be written.
    pub fn forget(&self, id: Uuid) -> Result<(), StoreError> {
        self.shared.index.write(|transaction| index::runs::remove(transaction, id))
    }

    /// Returns the directory where `hm` keeps a run's journal and logs.
    #[must_use]
    pub fn dir(&self, id: Uuid) -> PathBuf {
        self.shared.paths.run(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn runs_are_found_by_directory_by_pipeline_and_by_prefix_in_the_order_in_which_they_began() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::open(top.path()).unwrap();
        let id = |n: u128| Uuid::from_u128(n << 96);
        // The clock jumps back.
        for (n, dir, pipeline, started_at) in
            [(0xab01, "/a", "ci", 900), (0xab02, "/a", "docs", 800), (0xac03, "/b", "ci", 700), (0xac04, "/a", "ci", 1)]
        {
            store.runs().begin(&NewRun { id: id(n), source_dir: Path::new(dir), pipeline, started_at }).unwrap();
        }
        store.runs().end(id(0xab01), 1).unwrap();
        let last = |dir: &str, pipeline| store.runs().last(Path::new(dir), pipeline).unwrap().map(|run| run.id);
        assert_eq!(last("/a", Some("ci")), Some(id(0xac04)));
        assert_eq!(last("/a", Some("docs")), Some(id(0xab02)));
        assert_eq!(last("/b", None), Some(id(0xac03)));
        assert_eq!(last("/c", None), None);
        let ids = |runs: Vec<Run>| runs.into_iter().map(|run| run.id).collect::<Vec<_>>();
        assert_eq!(ids(store.runs().of(Path::new("/a"), Some("ci"), 9).unwrap()), [id(0xac04), id(0xab01)]);
        assert_eq!(ids(store.runs().find("0000ab").unwrap()), [id(0xab02), id(0xab01)]);
        assert_eq!(ids(store.runs().find("0000AC04").unwrap()), [id(0xac04)]);
        assert_eq!(store.runs().find("%").unwrap(), []);
        let run = store.runs().get(id(0xab01)).unwrap().unwrap();
        assert!(run.exit_code == Some(1) && run.ended_at.is_some() && run.started_at == 900);
        store.runs().forget(run.id).unwrap();
        assert_eq!(store.runs().get(run.id).unwrap(), None);
    }
}
