//! How the step that made a snapshot ran, kept with the snapshot so that a user can inspect both later.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::ir::Env;

/// How the step that made a snapshot ran, besides its files. It never contains the values of secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotConfig {
    /// The environment variables, except those that the runner sets.
    pub env: Arc<Env>,
    /// The working directory.
    pub workdir: Arc<str>,
    /// The step's command. `None` if it contains the value of a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Arc<str>>,
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

impl SnapshotConfig {
    /// Returns a configuration that consists only of a working directory.
    #[must_use]
    pub fn in_workdir(workdir: &str) -> Self {
        Self {
            env: Arc::default(),
            workdir: workdir.into(),
            cmd: None,
            runner_args: None,
            host_dirs: Vec::new(),
            had_secrets: false,
        }
    }
}
