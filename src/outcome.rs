//! How builds and steps end, and the exit-code table.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{event::BuildRef, runner::ArtifactRef};

/// A build's verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BuildStatus {
    /// Every step passed.
    Passed,
    /// A step exited non-zero, ran out of time, or ran out of memory.
    Failed,
    /// The build was cancelled.
    Canceled,
    /// The whole build exceeded its time limit.
    TimedOut,
    /// Something other than a step's command failed, even after retries.
    Infrastructure,
}

impl BuildStatus {
    /// Returns the exit code of `hm run`: 0 passed, 1 failed, 3 infrastructure, 124 timed out, 130 cancelled.
    /// (2 is for bad input and usage errors, before there is a build.)
    #[must_use]
    pub const fn exit_code(self) -> i32 {
        match self {
            Self::Passed => 0,
            Self::Failed => 1,
            Self::Infrastructure => 3,
            Self::TimedOut => 124,
            Self::Canceled => 130,
        }
    }

    /// Returns whether every step passed.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Passed)
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StepStatus {
    /// The command exited with 0.
    Passed,
    /// The command exited non-zero or was killed by a signal.
    Failed,
    /// The step never ran, because a step that it needs did not pass, or because the build stopped after a
    /// failure.
    Skipped,
    /// The build was cancelled, or stopped after another step's failure, before or while the step ran.
    Canceled,
    /// The step's result came from the cache, so it did not run.
    CacheHit,
    /// The step, or the build, exceeded its time limit while the step ran.
    TimedOut,
    /// The step exceeded its memory limit.
    OutOfMemory,
    /// Something other than the command failed, even after retries.
    Infrastructure,
}

impl StepStatus {
    /// Returns whether steps that need this one may run.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Passed | Self::CacheHit)
    }
}

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
}
