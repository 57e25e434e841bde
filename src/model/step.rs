//! Which step, what it prints to, and how it ended.

use serde::{Deserialize, Serialize};

/// A step's position in its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StepIndex(pub u32);

impl StepIndex {
    /// Returns the position as an index into per-step vectors.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// One of a step's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StdStream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StepStatus {
    /// The command exited with 0.
    Passed,
    /// The command exited with 0, after an earlier attempt of it had failed.
    Flaky,
    /// The command exited non-zero or was killed by a signal.
    Failed,
    /// The step failed, and its pipeline allows that. What builds in it is skipped; everything else goes on.
    FailedAllowed,
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
        matches!(self, Self::Passed | Self::Flaky | Self::CacheHit)
    }
}

/// The reason why a cached step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CacheMissReason {
    /// The cache has no entry for its key.
    Absent,
    /// The cache entry is older than the step's policy allows.
    Expired,
    /// The cache entry was changed, or parts of it are missing.
    Damaged,
    /// The user requested a run.
    Refresh,
    /// The cache cannot be queried, or the key cannot be computed.
    Unavailable,
}
