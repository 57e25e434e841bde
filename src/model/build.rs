//! Which build, and how it ended.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A build's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRef {
    /// The run's id; step ids derive from it.
    pub run_id: Uuid,
    /// The build's number, if a server assigned one.
    pub number: Option<i64>,
    /// The organisation, if a server knows it.
    pub org: Option<String>,
    /// The pipeline's name.
    pub pipeline: String,
}

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
    // `src/bin/hm/exit_code.rs` has the table of all exit codes of `hm`.
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
