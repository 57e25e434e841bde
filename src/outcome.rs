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
    /// Somebody cancelled the build.
    Canceled,
    /// The whole build's time was up.
    TimedOut,
    /// Something other than a step's command failed, retries included.
    Infrastructure,
}

impl BuildStatus {
    /// The exit code of `hm run`: 0 passed, 1 failed, 3 infrastructure, 124 timed out, 130 cancelled. (2 is for bad input
    /// and usage, before there is a build.)
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

    /// Whether every step passed.
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
    /// Its command exited 0.
    Passed,
    /// Its command exited non-zero or died of a signal.
    Failed,
    /// It never ran, because a step it needs did not pass, or the build stopped after a failure.
    Skipped,
    /// The build was cancelled, or stopped after another step's failure, before or while it ran.
    Canceled,
    /// It did not have to run.
    CacheHit,
    /// Its time, or the build's, was up while it ran.
    TimedOut,
    /// It went over its memory limit.
    OutOfMemory,
    /// The machinery failed, retries included.
    Infrastructure,
}

impl StepStatus {
    /// Whether steps that need this one may run.
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
    /// How it ended.
    pub status: StepStatus,
    /// The command's exit code, where it ended by itself.
    pub exit_code: Option<i32>,
    /// From the start of the first attempt to the end of the last, in milliseconds; 0 where it never started.
    pub duration_ms: u64,
    /// How many attempts were started.
    pub attempts: u32,
    /// Files that the step left for people.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<ArtifactRef>,
}

/// A finished build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BuildOutcome {
    /// Which build.
    pub build: BuildRef,
    /// The verdict.
    pub status: BuildStatus,
    /// Why, where no step tells: the run could not be recorded any longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Every step, in the order of the plan.
    pub steps: Vec<StepResultSummary>,
    /// When the build started.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// A page to watch, where the backend has one.
    pub watch_url: Option<String>,
}
