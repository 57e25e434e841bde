//! What a step had around it besides its files, kept with its snapshot so that somebody can look at both later.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, index, snapshot::id_of};
use crate::{ir::Env, runner::SnapshotRef};

/// What a step had around it besides its files. The values of its secrets are never part of this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    /// Its variables, apart from those that the runner set.
    pub env: Arc<Env>,
    /// Where it started.
    pub workdir: Arc<str>,
    /// Its `runner_args`.
    #[serde(default)]
    pub runner_args: Option<serde_json::Value>,
    /// Directories of the machine that it was shown.
    #[serde(default)]
    pub host_dirs: Vec<PathBuf>,
    /// Whether it could read secrets.
    #[serde(default)]
    pub had_secrets: bool,
}

impl Surroundings {
    /// Nothing but a directory to start in.
    #[must_use]
    pub fn in_workdir(workdir: &str) -> Self {
        Self {
            env: Arc::default(),
            workdir: workdir.into(),
            runner_args: None,
            host_dirs: Vec::new(),
            had_secrets: false,
        }
    }
}

impl Store {
    /// Says what the step that left a snapshot of this process had around it. [Keeping](Store::keep) the snapshot keeps
    /// that, too; a snapshot that is not this process's stays as it is.
    pub fn describe(&self, snapshot: &SnapshotRef, surroundings: Arc<Surroundings>) {
        if let Some(id) = id_of(snapshot) {
            self.own.describe(id, surroundings);
        }
    }

    /// What the step that left a snapshot had around it, where that is known.
    ///
    /// # Errors
    /// Where the index can't be read.
    pub fn surroundings(&self, snapshot: &SnapshotRef) -> Result<Option<Arc<Surroundings>>, StoreError> {
        let Some(id) = id_of(snapshot) else { return Ok(None) };
        if let Some(found) = self.own.surroundings(id) {
            return Ok(Some(found));
        }
        let text = self.index.read(|connection| index::snapshots::surroundings(connection, id))?;
        // A text that a later version wrote in another way is as good as none.
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()).map(Arc::new))
    }
}
