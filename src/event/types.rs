//! The events that readers see.
//!
//! The ecosystem's variants and JSON tags (they decode with the published `hm-plugin-protocol` 0.0.9), with fields and
//! variants of our own added. A reader keeps what it does not know: see [`BuildEvent::Unknown`].

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    outcome::StepStatus,
    runner::{ArtifactRef, SnapshotRef},
};

/// The version of the event schema, in every `build_start`. Raised when a field changes its meaning or goes.
pub const EVENT_SCHEMA_VERSION: u32 = 1;

/// One of a step's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StdStream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// Why a cached step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CacheMissReason {
    /// The cache has nothing under its key.
    Absent,
    /// What the cache has is older than the step's policy allows.
    Expired,
    /// What the cache has is no longer as it was, or parts of it are gone.
    Damaged,
    /// Somebody wants it to run.
    Refresh,
    /// The cache can't be asked, or its key not be made.
    Unavailable,
}

/// A build's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRef {
    /// The run's id; step ids derive from it.
    pub run_id: Uuid,
    /// The build's number, where a server gave one.
    pub number: Option<i64>,
    /// The organisation, where a server knows one.
    pub org: Option<String>,
    /// The pipeline's name.
    pub pipeline: String,
}

/// A plan in three numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanSummary {
    /// How many steps.
    pub step_count: usize,
    /// How many chains of `builds_in` steps.
    pub chain_count: usize,
    /// The runner of steps that name none.
    pub default_runner: String,
}

/// Something that happened in a build, in order.
///
/// `seq` counts the events of the whole stream from 0, log lines included; every reader of a run, live or later, sees the
/// same events under the same numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum BuildEvent {
    /// The first event.
    BuildStart {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// [`EVENT_SCHEMA_VERSION`]; 0 in events of other programs.
        #[serde(default)]
        schema_version: u32,
        /// The run.
        run_id: Uuid,
        /// What will run.
        plan: PlanSummary,
        /// When it started.
        started_at: DateTime<Utc>,
    },
    /// The build has an identity.
    BuildAccepted {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The identity.
        build: BuildRef,
        /// A page to watch, where there is one.
        watch_url: Option<String>,
    },
    /// A step is part of the build. One for every step, in the order of the plan, before anything starts.
    StepQueued {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The step's key.
        key: Arc<str>,
        /// Which chain of `builds_in` steps it belongs to.
        chain_idx: usize,
        /// The key of its `builds_in` parent.
        parent_key: Option<Arc<str>>,
        /// The label, or the start of the command.
        display_name: Arc<str>,
    },
    /// An attempt starts.
    StepStart {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The runner's name.
        runner: Arc<str>,
        /// The image it boots from, where it has no parent.
        image: Option<Arc<str>>,
        /// Which attempt, from 1.
        #[serde(default = "first")]
        attempt: u32,
    },
    /// A line of output.
    StepLog {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// Which stream.
        stream: StdStream,
        /// The line without its end, secrets masked; bytes that are not UTF-8 are replaced (the raw log keeps them).
        line: String,
        /// When the end of the line arrived.
        ts: DateTime<Utc>,
        /// Which attempt wrote it.
        #[serde(default = "first")]
        attempt: u32,
        /// The line goes on in the next event of this step and stream: it was longer than
        /// [`MAX_LINE_BYTES`](crate::event::MAX_LINE_BYTES).
        #[serde(default, skip_serializing_if = "is_false")]
        partial: bool,
    },
    /// Output of an attempt can't be shown from here on: its log was removed, or cut off. Once for an attempt at most.
    StepLogLost {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The attempt that wrote it.
        attempt: u32,
        /// What happened to it.
        message: Arc<str>,
    },
    /// A step did not have to run.
    StepCacheHit {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The step's key.
        key: Arc<str>,
        /// The snapshot found.
        tag: Arc<str>,
    },
    /// A cached step has to run.
    StepCacheMiss {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The step's key.
        key: Arc<str>,
        /// Why.
        reason: CacheMissReason,
        /// More about it, for people, where there is more.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<Arc<str>>,
    },
    /// An attempt failed for reasons that are not the command's, and another follows.
    StepRetry {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The attempt that failed.
        attempt: u32,
        /// How long until the next one starts, in milliseconds.
        backoff_ms: u64,
        /// What went wrong, secrets masked.
        message: Arc<str>,
    },
    /// A step ended. Exactly one for every step.
    StepEnd {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The command's exit code; where it has none, 124 (timed out), 130 (cancelled while running), 137 (out of
        /// memory), 3 (infrastructure), or -1 (never ran).
        exit_code: i32,
        /// From the start of the first attempt, in milliseconds.
        duration_ms: u64,
        /// The snapshot, where one was committed.
        snapshot: Option<SnapshotRef>,
        /// How it ended.
        status: StepStatus,
        /// The last attempt, from 1; 0 where it never started.
        #[serde(default = "first")]
        attempt: u32,
        /// Why, where the status alone does not tell. Secrets masked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<Arc<str>>,
        /// Files that the step left for people. Secrets masked.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        artifacts: Vec<ArtifactRef>,
    },
    /// A chain stops here, because this step of it failed.
    ChainFailed {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The chain.
        chain_idx: usize,
        /// The step that failed.
        failed_step_id: Uuid,
        /// Its key.
        failed_step_key: Arc<str>,
        /// Its exit code, as in `step_end`.
        exit_code: i32,
        /// What happened, for people.
        message: Arc<str>,
        /// When.
        ts: DateTime<Utc>,
    },
    /// The last event.
    BuildEnd {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// [`BuildStatus::exit_code`](crate::BuildStatus::exit_code).
        exit_code: i32,
        /// From the start of the build, in milliseconds.
        duration_ms: u64,
        /// The verdict.
        status: crate::outcome::BuildStatus,
    },
    /// An event that this version does not know, as it came.
    #[serde(skip)]
    Unknown(serde_json::Map<String, serde_json::Value>),
}

impl BuildEvent {
    /// The event's position in the stream; 0 where an event of another program has none.
    #[must_use]
    pub fn seq(&self) -> u64 {
        match self {
            Self::BuildStart { seq, .. }
            | Self::BuildAccepted { seq, .. }
            | Self::StepQueued { seq, .. }
            | Self::StepStart { seq, .. }
            | Self::StepLog { seq, .. }
            | Self::StepLogLost { seq, .. }
            | Self::StepCacheHit { seq, .. }
            | Self::StepCacheMiss { seq, .. }
            | Self::StepRetry { seq, .. }
            | Self::StepEnd { seq, .. }
            | Self::ChainFailed { seq, .. }
            | Self::BuildEnd { seq, .. } => *seq,
            Self::Unknown(fields) => fields.get("seq").and_then(serde_json::Value::as_u64).unwrap_or(0),
        }
    }
}

const fn first() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}
