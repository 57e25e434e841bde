//! A step's environment besides its files, kept with its snapshot so that a user can inspect both later.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, index, snapshot::id_of};
use crate::{ir::Env, model::SnapshotRef};

/// A step's environment besides its files. It never contains the values of secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    /// The environment variables, except those that the runner sets.
    pub env: Arc<Env>,
    /// The working directory.
    pub workdir: Arc<str>,
    /// The step's `runner_args`.
    #[serde(default)]
    pub runner_args: Option<serde_json::Value>,
    /// The directories of the host that are visible to the step.
    #[serde(default)]
    pub host_dirs: Vec<PathBuf>,
    /// Whether the step could read secrets.
    #[serde(default)]
    pub had_secrets: bool,
}

impl Surroundings {
    /// Returns surroundings that consist only of a working directory.
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
    /// Records the surroundings of the step that made a snapshot of this process. [Keeping](Store::keep) the
    /// snapshot also keeps its surroundings. The call has no effect on a snapshot that another process made.
    pub fn describe(&self, snapshot: &SnapshotRef, surroundings: Arc<Surroundings>) {
        if let Some(id) = id_of(snapshot) {
            self.own.describe(id, surroundings);
        }
    }

    /// Returns the surroundings of the step that made a snapshot, if they are known.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn surroundings(&self, snapshot: &SnapshotRef) -> Result<Option<Arc<Surroundings>>, StoreError> {
        let Some(id) = id_of(snapshot) else { return Ok(None) };
        if let Some(found) = self.own.surroundings(id) {
            return Ok(Some(found));
        }
        let text = self.index.read(|connection| index::snapshots::surroundings(connection, id))?;
        // A text in the format of a later version is treated as missing.
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()).map(Arc::new))
    }
}
