//! The dispatcher's input for a run's events: its constant data, and the state events.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BuildRef, CacheMissReason, PlanSummary};
use crate::model::{ArtifactRef, BuildStatus, SnapshotRef, StepIndex, StepStatus, StepUsage, TestResults};

/// The constant data of a run; the journal's header. Step ids derive from the run's id and the index, unless
/// a server assigned them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunMeta {
    /// The build's identity.
    pub build: BuildRef,
    /// The size of the plan.
    pub plan: PlanSummary,
    /// The start time. Times in the journal are milliseconds since then.
    pub started_at: DateTime<Utc>,
    /// The steps by index.
    pub steps: Vec<StepMeta>,
    /// The runners' names by index.
    pub runners: Vec<Arc<str>>,
    /// What a server says about the run, if it runs there. In the journal it follows the other fields.
    #[serde(skip)]
    pub server: Option<ServerRun>,
    /// What reports show of the plan besides its steps. In the journal it follows what a server says.
    #[serde(skip)]
    pub details: PlanDetails,
}

/// What reports show of a plan besides its steps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PlanDetails {
    /// The `depends_on` edges: a step, and a step that waits for it.
    pub depends_on: Vec<(StepIndex, StepIndex)>,
    /// The names of the services of the steps that have some.
    pub services: Vec<(StepIndex, Vec<Arc<str>>)>,
    /// The commands by index, if they are known. In the journal they follow the other fields.
    #[serde(skip)]
    pub commands: Vec<StepCommand>,
}

/// A step's command.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepCommand {
    /// The command, or its beginning.
    pub text: Arc<str>,
    /// How many bytes of it are left out at its end.
    pub omitted_bytes: u64,
}

impl StepCommand {
    /// Creates a whole command.
    #[must_use]
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self { text: text.into(), omitted_bytes: 0 }
    }
}

/// What a server says about a run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServerRun {
    /// The URL of a page that shows the build.
    pub watch_url: Option<String>,
    /// The server's ids of the steps, by index. Steps without one have the id that [`step_id`] returns.
    pub step_ids: Vec<Uuid>,
}

/// The constant data of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepMeta {
    /// The key.
    pub key: Arc<str>,
    /// The name that is displayed to users.
    pub display_name: Arc<str>,
    /// The chain.
    pub chain_idx: usize,
    /// The `builds_in` parent.
    pub parent: Option<StepIndex>,
    /// The image, if the step boots from one.
    pub image: Option<Arc<str>>,
    /// The runner, as an index into [`RunMeta::runners`].
    pub runner: u16,
}

/// Returns the id of a step in a run's events: the run's id, its last four bytes xored with the step's index
/// plus one.
///
/// ```
/// use hm_exec::{event::{step_id, step_index}, plan::StepIndex};
///
/// let run_id = uuid::Uuid::from_u128(0xfeed);
/// let id = step_id(run_id, StepIndex(7));
/// assert_eq!(step_index(run_id, id), Some(StepIndex(7)));
/// assert_eq!(step_index(run_id, run_id), None);
/// ```
#[must_use]
pub fn step_id(run_id: Uuid, step: StepIndex) -> Uuid {
    Uuid::from_u128(run_id.as_u128() ^ u128::from(step.0.wrapping_add(1)))
}

/// Returns the step with this id in a run, or `None` if the run has no such step.
#[must_use]
pub fn step_index(run_id: Uuid, step_id: Uuid) -> Option<StepIndex> {
    match u32::try_from(run_id.as_u128() ^ step_id.as_u128()) {
        Ok(0) | Err(_) => None,
        Ok(number) => Some(StepIndex(number - 1)),
    }
}

/// A state event as the dispatcher emits it: indices, not text. (`build_start`, `build_accepted` and every
/// `step_queued` are derived from [`RunMeta`] and are not emitted.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateEvent {
    /// An attempt starts.
    StepStart {
        /// The step.
        step: StepIndex,
        /// The number of the attempt, from 1.
        attempt: u32,
    },
    /// An attempt failed and another follows.
    StepRetry {
        /// The step.
        step: StepIndex,
        /// The attempt that failed.
        attempt: u32,
        /// The time until the next attempt starts, in milliseconds.
        backoff_ms: u64,
        /// The error.
        message: Arc<str>,
        /// The command's exit code, if the command failed. Otherwise something else did.
        exit_code: Option<i32>,
    },
    /// The step did not have to run, because of the cache.
    StepCacheHit {
        /// The step.
        step: StepIndex,
        /// The snapshot that was found.
        tag: Arc<str>,
    },
    /// The cached step has to run.
    StepCacheMiss {
        /// The step.
        step: StepIndex,
        /// The reason.
        reason: CacheMissReason,
        /// Details.
        message: Option<Arc<str>>,
    },
    /// The step ended. There is exactly one per step.
    StepEnd {
        /// The step.
        step: StepIndex,
        /// The last attempt; 0 if none was started.
        attempt: u32,
        /// The result.
        status: StepStatus,
        /// The exit code, as in [`BuildEvent::StepEnd`](super::BuildEvent::StepEnd).
        exit_code: i32,
        /// The time from the start of the first attempt, in milliseconds.
        duration_ms: u64,
        /// The snapshot, if one was committed.
        snapshot: Option<SnapshotRef>,
        /// The reason, if the status alone does not show it.
        message: Option<Arc<str>>,
        /// The artifacts that the step left for users.
        artifacts: Vec<ArtifactRef>,
        /// What few steps have.
        details: StepEndDetails,
    },
    /// The step's chain ends here.
    ChainFailed {
        /// The step that failed.
        step: StepIndex,
        /// Its exit code.
        exit_code: i32,
        /// A description for users.
        message: Arc<str>,
    },
    /// The build ended. The last event.
    BuildEnd {
        /// The result.
        status: BuildStatus,
        /// The time from the start of the build, in milliseconds.
        duration_ms: u64,
    },
}

/// What the ends of few steps have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepEndDetails {
    /// The failure that is allowed, if the status is [`StepStatus::FailedAllowed`]. By default,
    /// [`StepStatus::Failed`]. Older versions read this status.
    pub allowed: Option<StepStatus>,
    /// What the step's processes used of the machine, if that is known.
    pub usage: Option<StepUsage>,
    /// The results of its tests, if its outputs have some. The feature `junit` reads them.
    pub tests: Option<Box<TestResults>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_gives_its_step_back_and_no_other_id_does() {
        let run_id = Uuid::new_v4();
        for index in [0, 1, 255, 65_536, u32::MAX - 1] {
            assert_eq!(step_index(run_id, step_id(run_id, StepIndex(index))), Some(StepIndex(index)));
        }
        assert_ne!(step_id(run_id, StepIndex(0)), run_id);
        assert_eq!(step_index(run_id, run_id), None);
        assert_eq!(step_index(run_id, step_id(Uuid::new_v4(), StepIndex(0))), None);
    }
}
