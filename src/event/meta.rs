//! What the dispatcher says about a run: the facts that never change, and the state events.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BuildRef, CacheMissReason, PlanSummary};
use crate::{
    outcome::{BuildStatus, StepStatus},
    plan::StepIndex,
    runner::{ArtifactRef, SnapshotRef},
};

/// What never changes about a run; the journal's header. Step ids derive from the run's id and the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunMeta {
    /// The build's identity.
    pub build: BuildRef,
    /// The plan in numbers.
    pub plan: PlanSummary,
    /// When it started. Offsets in the journal are milliseconds since then.
    pub started_at: DateTime<Utc>,
    /// The steps by index.
    pub steps: Vec<StepMeta>,
    /// The runners' names by index.
    pub runners: Vec<Arc<str>>,
}

/// What never changes about a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepMeta {
    /// The key.
    pub key: Arc<str>,
    /// What people read.
    pub display_name: Arc<str>,
    /// The chain.
    pub chain_idx: usize,
    /// The `builds_in` parent.
    pub parent: Option<StepIndex>,
    /// The image, where it boots from one.
    pub image: Option<Arc<str>>,
    /// The runner, as an index into [`RunMeta::runners`].
    pub runner: u16,
}

/// The id of a step in a run's events: the run's id, its last four bytes xored with the step's index + 1.
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

/// The step that has this id in a run, or `None` where the id is no step's of this run.
#[must_use]
pub fn step_index(run_id: Uuid, step_id: Uuid) -> Option<StepIndex> {
    match u32::try_from(run_id.as_u128() ^ step_id.as_u128()) {
        Ok(0) | Err(_) => None,
        Ok(number) => Some(StepIndex(number - 1)),
    }
}

/// A state event as the dispatcher emits it: indices, not text. (`build_start`, `build_accepted` and every `step_queued`
/// come from [`RunMeta`] and need no emitting.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateEvent {
    /// An attempt starts.
    StepStart {
        /// The step.
        step: StepIndex,
        /// Which attempt, from 1.
        attempt: u32,
    },
    /// An attempt failed and another follows.
    StepRetry {
        /// The step.
        step: StepIndex,
        /// The attempt that failed.
        attempt: u32,
        /// How long until the next one starts, in milliseconds.
        backoff_ms: u64,
        /// What went wrong.
        message: Arc<str>,
    },
    /// The step did not have to run.
    StepCacheHit {
        /// The step.
        step: StepIndex,
        /// The snapshot found.
        tag: Arc<str>,
    },
    /// The cached step has to run.
    StepCacheMiss {
        /// The step.
        step: StepIndex,
        /// Why.
        reason: CacheMissReason,
        /// More about it.
        message: Option<Arc<str>>,
    },
    /// The step ended. Exactly one for every step.
    StepEnd {
        /// The step.
        step: StepIndex,
        /// The last attempt; 0 where it never started.
        attempt: u32,
        /// How it ended.
        status: StepStatus,
        /// As in [`BuildEvent::StepEnd`](super::BuildEvent::StepEnd).
        exit_code: i32,
        /// From the start of the first attempt, in milliseconds.
        duration_ms: u64,
        /// The snapshot, where one was committed.
        snapshot: Option<SnapshotRef>,
        /// Why, where the status alone does not tell.
        message: Option<Arc<str>>,
        /// Files that the step left for people.
        artifacts: Vec<ArtifactRef>,
    },
    /// The step's chain stops here.
    ChainFailed {
        /// The step that failed.
        step: StepIndex,
        /// Its exit code.
        exit_code: i32,
        /// What happened, for people.
        message: Arc<str>,
    },
    /// The build ended. The last event.
    BuildEnd {
        /// The verdict.
        status: BuildStatus,
        /// From the start of the build, in milliseconds.
        duration_ms: u64,
    },
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
