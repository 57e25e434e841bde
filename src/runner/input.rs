//! The input and the result of a runner, in the wire format of the ecosystem's plugins.
//!
//! JSON-compatible with the published `hm-plugin-protocol` 0.0.9.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::TracedResult;
use crate::{
    event::EventBus,
    ir::{CommandStep, Env},
    model::{ArchiveId, ArtifactRef, SnapshotRef, StepUsage},
};

/// The host's decision about the cache. A runner follows it and does not decide again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CacheDecision {
    /// The step's result is `tag`: nothing runs. (The engine answers hits itself; runners do not receive this
    /// variant.)
    Hit {
        /// The snapshot to use.
        tag: SnapshotRef,
    },
    /// Run the command and, if it exits with 0, commit a snapshot. A child, the cache or an export needs it.
    MissBuildAs {
        /// A name unique to this step and run. A runner whose store names snapshots itself ignores it.
        tag: SnapshotRef,
    },
    /// Run the command. Its filesystem is not needed afterwards.
    MissNoCommit,
}

impl CacheDecision {
    /// Returns whether a passed step's filesystem must be kept as a snapshot.
    #[must_use]
    pub fn commits(&self) -> bool {
        matches!(self, Self::MissBuildAs { .. })
    }
}

/// A runner's part of the cache keys: see [`StepRunner::cache_identity`](super::StepRunner::cache_identity).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheIdentity {
    /// What the image currently resolves to, such as its digest. `None` if the request named no image.
    pub image: Option<Arc<str>>,
    /// How the runner works here, as far as this affects the filesystems of steps, such as how it maps user
    /// ids.
    pub mode: Arc<str>,
}

/// The input of one attempt. The engine makes it; [`new`](Self::new) is for tests of runners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ExecutorInput {
    /// The step, with its image resolved (defaults and substitutions applied).
    pub step: Arc<CommandStep>,
    /// The run's source tree, which the step finds at `workdir`.
    pub workspace_archive_id: ArchiveId,
    /// The whole environment of the command, except for what the runner must set itself (`PATH`, `HOME`).
    pub env: Arc<Env>,
    /// The directory where the command starts and the source lies: `/workspace`.
    pub workdir: Arc<str>,
    /// The id of the run.
    pub run_id: Uuid,
    /// The id of the step within the run. All attempts of the step have the same id.
    pub step_id: Uuid,
    /// Whether to commit a snapshot.
    pub cache_lookup: CacheDecision,
    /// The snapshot of the `builds_in` parent. If set, the step boots from it instead of its image.
    #[serde(default)]
    pub parent_snapshot: Option<SnapshotRef>,
    /// What the step gets of other steps besides that. Behind a pointer, because few steps get anything,
    /// and an input is moved several times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_steps: Option<Arc<OtherSteps>>,
}

/// What a step gets of steps other than its `builds_in` parent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct OtherSteps {
    /// The snapshots of the steps that the step's services boot from, by key.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub service_snapshots: BTreeMap<Arc<str>, SnapshotRef>,
    /// The files that the step gets. Only runners with the capability
    /// [`inputs`](super::RunnerCapabilities::inputs) receive any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<InputFiles>,
}

impl OtherSteps {
    /// Returns these for an [`ExecutorInput`]: `None` if there are none.
    pub(crate) fn of(service_snapshots: BTreeMap<Arc<str>, SnapshotRef>, inputs: Vec<InputFiles>) -> Option<Arc<Self>> {
        let is_empty = service_snapshots.is_empty() && inputs.is_empty();
        (!is_empty).then(|| Arc::new(Self { service_snapshots, inputs }))
    }
}

/// A file or directory of another step that a step gets, read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct InputFiles {
    /// The key of the other step, for messages.
    pub step: Arc<str>,
    /// Its snapshot, which is one of store layers.
    pub snapshot: SnapshotRef,
    /// The path there: absolute.
    pub path: Arc<str>,
    /// The path at which the step gets it: absolute.
    pub target: Arc<str>,
}

impl InputFiles {
    /// Describes what is at `path` in the snapshot of the step `step`. It is shown at `target`.
    #[must_use]
    pub fn new(
        (step, snapshot): (impl Into<Arc<str>>, SnapshotRef),
        path: impl Into<Arc<str>>,
        target: impl Into<Arc<str>>,
    ) -> Self {
        Self { step: step.into(), snapshot, path: path.into(), target: target.into() }
    }
}

impl ExecutorInput {
    /// Creates the input of a step that boots from its image, in `/workspace`, without an environment and
    /// without a snapshot of its result.
    #[must_use]
    pub fn new(step: Arc<CommandStep>, source: ArchiveId, run_id: Uuid, step_id: Uuid) -> Self {
        Self {
            step,
            workspace_archive_id: source,
            env: Arc::default(),
            workdir: "/workspace".into(),
            run_id,
            step_id,
            cache_lookup: CacheDecision::MissNoCommit,
            parent_snapshot: None,
            other_steps: None,
        }
    }

    /// Returns the files of other steps that the step gets.
    #[must_use]
    pub fn inputs(&self) -> &[InputFiles] {
        self.other_steps.as_ref().map_or(&[], |others| &others.inputs)
    }

    /// Returns the snapshot of a step that one of the step's services boots from, if it has one.
    #[must_use]
    pub fn service_snapshot(&self, step: &str) -> Option<&SnapshotRef> {
        self.other_steps.as_ref()?.service_snapshots.get(step)
    }

    /// Returns how the step runs besides its files, for a runner that exposes neither host directories
    /// nor secrets to the step.
    pub(super) fn snapshot_config(&self, bus: &EventBus) -> crate::store::SnapshotConfig {
        crate::store::SnapshotConfig {
            env: Arc::clone(&self.env),
            workdir: Arc::clone(&self.workdir),
            cmd: bus.has_no_secret(&self.step.cmd).then(|| Arc::clone(&self.step.cmd)),
            runner_args: self.step.runner_args.clone(),
            host_dirs: Vec::new(),
            had_secrets: false,
        }
    }
}

/// How a command ended by itself. A non-zero exit is a result, not an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepResult {
    /// The exit code; 128+n if signal n ended the command.
    pub exit_code: i32,
    /// The snapshot, if one was requested and the command exited with 0.
    pub committed_snapshot: Option<SnapshotRef>,
    /// The files published for users.
    pub artifacts: Vec<ArtifactRef>,
    /// What the command used of the machine, if the runner knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<StepUsage>,
    /// What may explain a failure to the user, if the exit code is not 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What the command read, if its result is to be found by that.
    #[serde(skip)]
    pub(crate) traced: Option<Box<TracedResult>>,
    /// The processor time that tracing took, if the command was traced.
    #[serde(skip)]
    pub(crate) tracing: Option<Duration>,
}

impl StepResult {
    /// Returns the result of a command that exited with `exit_code`, without a snapshot or artifacts.
    #[inline]
    #[must_use]
    pub fn exited(exit_code: i32) -> Self {
        Self {
            exit_code,
            committed_snapshot: None,
            artifacts: Vec::new(),
            usage: None,
            hint: None,
            traced: None,
            tracing: None,
        }
    }

    /// Sets the snapshot of the step's filesystem, if one was committed.
    #[inline]
    #[must_use]
    pub fn with_snapshot(self, committed_snapshot: Option<SnapshotRef>) -> Self {
        Self { committed_snapshot, ..self }
    }

    /// Sets what the command used of the machine.
    #[must_use]
    pub fn with_usage(self, usage: Option<StepUsage>) -> Self {
        Self { usage, ..self }
    }

    /// Sets what may explain a failure to the user.
    #[must_use]
    pub fn with_hint(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }
}
