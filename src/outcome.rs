//! The result of a build. Statuses and the exit-code table of builds are in `model::build`.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::model::{ArtifactRef, BuildRef, StepUsage};
pub use crate::model::{BuildStatus, StepStatus};
pub use crate::model::{FailedTest, TestResults, VerifiedStep};

/// One step of a finished build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StepResultSummary {
    /// The step's id in the events.
    pub step_id: Uuid,
    /// The step's key.
    pub key: Arc<str>,
    /// The step's status.
    pub status: StepStatus,
    /// The command's exit code, if it ended by itself.
    pub exit_code: Option<i32>,
    /// The time from the start of the first attempt to the end of the last, in milliseconds; 0 if the step
    /// never started.
    pub duration_ms: u64,
    /// The number of attempts that were started.
    pub attempts: u32,
    /// Files that the step left for users.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<ArtifactRef>,
    /// What the step's processes used of the machine, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<StepUsage>,
    /// The results of its tests, if its outputs have some. The feature `junit` reads them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tests: Option<TestResults>,
}

impl StepResultSummary {
    /// Creates the summary of a step without an exit code, a duration or artifacts. It counts one attempt if
    /// the status is that of a step that ran. Backends set the other fields.
    #[must_use]
    pub fn new(step_id: Uuid, key: impl Into<Arc<str>>, status: StepStatus) -> Self {
        let never_ran = matches!(status, StepStatus::Skipped | StepStatus::Canceled | StepStatus::CacheHit);
        Self {
            step_id,
            key: key.into(),
            status,
            exit_code: None,
            duration_ms: 0,
            attempts: u32::from(!never_ran),
            artifacts: Vec::new(),
            usage: None,
            tests: None,
        }
    }
}

/// A finished build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BuildOutcome {
    /// The build.
    pub build: BuildRef,
    /// The verdict.
    pub status: BuildStatus,
    /// The cause, if no step has it: the run could no longer be recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Every step, in the order of the plan.
    pub steps: Vec<StepResultSummary>,
    /// The time at which the build started.
    pub started_at: DateTime<Utc>,
    /// The time at which the build ended.
    pub finished_at: DateTime<Utc>,
    /// The address of a page to watch, if the backend has one.
    pub watch_url: Option<String>,
    /// How many attempts did something else than the result that a look-up by what steps read would have
    /// taken, if the request asked for that comparison.
    #[serde(skip_serializing_if = "is_zero")]
    pub shadow_differences: usize,
    /// How many of these look-ups, comparisons and records failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub shadow_failures: usize,
    /// What came of the steps that ran to be compared with results that were found, if the request asked for
    /// that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verified: Vec<VerifiedStep>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl BuildOutcome {
    /// Creates the outcome of a build without steps. Backends set the other fields.
    #[must_use]
    pub const fn new(
        build: BuildRef,
        status: BuildStatus,
        started_at: DateTime<Utc>,
        finished_at: DateTime<Utc>,
    ) -> Self {
        Self {
            build,
            status,
            message: None,
            steps: Vec::new(),
            started_at,
            finished_at,
            watch_url: None,
            shadow_differences: 0,
            shadow_failures: 0,
            verified: Vec::new(),
        }
    }
}
