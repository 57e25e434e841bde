//! What a runner is given and gives back, as the ecosystem's plugins know it on the wire.
//!
//! JSON-compatible with the published `hm-plugin-protocol` 0.0.9.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ir::{CommandStep, Env};

/// Names the run's source tree; resolved through [`StepContext::archives`](super::StepContext).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ArchiveId(pub Uuid);

/// Names a filesystem snapshot.
///
/// Grammar: `hm1:<id>` for snapshots made of store layers, which every runner with the `layers` capability can boot;
/// `<runner>:<opaque>` for those that only the runner which made them understands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotRef(pub Arc<str>);

impl SnapshotRef {
    /// The part before the first `:`, or the whole text where there is none.
    #[must_use]
    pub fn scheme(&self) -> &str {
        self.0.split_once(':').map_or(&*self.0, |(scheme, _)| scheme)
    }
}

impl<T: Into<Arc<str>>> From<T> for SnapshotRef {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file that a step leaves for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRef {
    /// Where to find it.
    pub key: String,
    /// Its media type.
    pub mime: String,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// What the host decided about the cache. A runner obeys and does not decide again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CacheDecision {
    /// The step's result is `tag`: nothing runs. (The engine answers hits itself; runners do not see this one.)
    Hit {
        /// The snapshot to use.
        tag: SnapshotRef,
    },
    /// Run the command and, where it exits 0, commit a snapshot: a child, the cache or an export needs it.
    MissBuildAs {
        /// A name unique to this step and run; a runner whose store names snapshots itself ignores it.
        tag: SnapshotRef,
    },
    /// Run the command; nobody needs its filesystem afterwards.
    MissNoCommit,
}

impl CacheDecision {
    /// Whether a passed step's filesystem must be kept as a snapshot.
    #[must_use]
    pub fn commits(&self) -> bool {
        matches!(self, Self::MissBuildAs { .. })
    }
}

/// What a runner says for cache keys: see [`StepRunner::cache_identity`](super::StepRunner::cache_identity).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheIdentity {
    /// What the image stands for just now, such as its digest; `None` where no image was asked about.
    pub image: Option<Arc<str>>,
    /// How the runner works here, as far as it shows in what steps leave, such as how it maps user ids.
    pub mode: Arc<str>,
}

/// One attempt's input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorInput {
    /// The step, with its image resolved (defaults and substitutions applied).
    pub step: Arc<CommandStep>,
    /// The run's source tree, to be found at `workdir`.
    pub workspace_archive_id: ArchiveId,
    /// The whole environment of the command, apart from what the runner must set itself (`PATH`, `HOME`).
    pub env: Arc<Env>,
    /// Where the command starts and the source lies: `/workspace`.
    pub workdir: Arc<str>,
    /// The run.
    pub run_id: Uuid,
    /// The step within the run; every attempt of it has the same.
    pub step_id: Uuid,
    /// Whether to commit a snapshot.
    pub cache_lookup: CacheDecision,
    /// The snapshot of the `builds_in` parent, to boot from instead of the step's image.
    #[serde(default)]
    pub parent_snapshot: Option<SnapshotRef>,
}

#[cfg(any(feature = "sandbox", feature = "vm"))]
impl ExecutorInput {
    /// What the step has around it besides its files, on a runner that shows it neither the machine's nor secrets.
    pub(super) fn surroundings(&self) -> crate::store::Surroundings {
        crate::store::Surroundings {
            env: Arc::clone(&self.env),
            workdir: Arc::clone(&self.workdir),
            runner_args: self.step.runner_args.clone(),
            host_dirs: Vec::new(),
            had_secrets: false,
        }
    }
}

/// How a command ended by itself. A non-zero exit is a result, not an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResult {
    /// The exit code; 128+n where signal n ended the command.
    pub exit_code: i32,
    /// The snapshot, where one was asked for and the command exited 0.
    pub committed_snapshot: Option<SnapshotRef>,
    /// Files left for people.
    pub artifacts: Vec<ArtifactRef>,
}
