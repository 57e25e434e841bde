//! The events that readers see.
//!
//! The variants and JSON tags are those of the ecosystem (they decode with the published `hm-plugin-protocol`
//! 0.0.9), with additional fields and variants. A reader keeps unknown events: see [`BuildEvent::Unknown`].

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::{
    Activity, ActivityCount, ArtifactRef, BuildRef, CacheMissReason, Connection, ShadowVerdict, SnapshotRef, StdStream,
    StepStatus, StepUsage, TestResults,
};

/// The version of the event schema, in every `build_start`. It is increased when a field changes its meaning
/// or is removed.
pub const EVENT_SCHEMA_VERSION: u32 = 1;

/// The size of a plan, and its default runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanSummary {
    /// The number of steps.
    pub step_count: usize,
    /// The number of chains of `builds_in` steps.
    pub chain_count: usize,
    /// The runner of steps that name none.
    pub default_runner: String,
}

/// An event of a build, in order.
///
/// `seq` counts the events of the whole stream from 0, log lines included. Every reader of a run, live or
/// later, sees the same events under the same numbers.
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
        /// The size of the plan.
        plan: PlanSummary,
        /// The start time.
        started_at: DateTime<Utc>,
    },
    /// The identity of the build is known.
    BuildAccepted {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The identity.
        build: BuildRef,
        /// The URL of a page that shows the build, if there is one.
        watch_url: Option<String>,
    },
    /// A step is part of the build. There is one per step, in the order of the plan, before any step starts.
    StepQueued {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The step's key.
        key: Arc<str>,
        /// The chain of `builds_in` steps that it belongs to.
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
        /// The image that the step boots from, if it has no parent.
        image: Option<Arc<str>>,
        /// The number of the attempt, from 1.
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
        /// The output stream.
        stream: StdStream,
        /// The line without its end, with secrets masked. Bytes that are not UTF-8 are replaced (the raw log
        /// keeps them).
        line: String,
        /// The time when the end of the line arrived.
        ts: DateTime<Utc>,
        /// The attempt that wrote the line.
        #[serde(default = "first")]
        attempt: u32,
        /// Whether the line continues in the next event of this step and stream, because it was longer than
        /// [`MAX_LINE_BYTES`](crate::event::MAX_LINE_BYTES).
        #[serde(default, skip_serializing_if = "is_false")]
        partial: bool,
    },
    /// The output of an attempt cannot be shown from here on, because its log was removed or truncated. There
    /// is at most one per attempt.
    StepLogLost {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The attempt that wrote it.
        attempt: u32,
        /// A description of the loss.
        message: Arc<str>,
    },
    /// A step did not have to run, because of the cache.
    StepCacheHit {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The step's key.
        key: Arc<str>,
        /// The snapshot that was found.
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
        /// The reason.
        reason: CacheMissReason,
        /// Details for users, if there are any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<Arc<str>>,
    },
    /// An attempt failed, and another follows: because something other than the command failed, or because
    /// the step has retries left.
    StepRetry {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The attempt that failed.
        attempt: u32,
        /// The time until the next attempt starts, in milliseconds.
        backoff_ms: u64,
        /// The error, with secrets masked.
        message: Arc<str>,
        /// The command's exit code, if the command failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
    },
    /// A step ended. There is exactly one per step.
    StepEnd {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The command's exit code. If it has none: 124 (timed out), 130 (cancelled while running), 137 (out
        /// of memory), 3 (infrastructure), or -1 (never ran).
        exit_code: i32,
        /// The time from the start of the first attempt, in milliseconds.
        duration_ms: u64,
        /// The snapshot, if one was committed.
        snapshot: Option<SnapshotRef>,
        /// The result.
        status: StepStatus,
        /// The last attempt, from 1; 0 if none was started.
        #[serde(default = "first")]
        attempt: u32,
        /// The reason, if the status alone does not show it, with secrets masked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<Arc<str>>,
        /// The artifacts that the step left for users, with secrets masked.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        artifacts: Vec<ArtifactRef>,
        /// What the step's processes used of the machine, if that is known: the highest peak and the sum of
        /// the processor times of all attempts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        usage: Option<StepUsage>,
        /// The results of its tests, if its outputs have some, with secrets masked. The feature
        /// `junit` reads them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tests: Option<Box<TestResults>>,
    },
    /// A connection of a step with a network of its own ended, or the step may not make it.
    Connection {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The attempt.
        #[serde(default = "first")]
        attempt: u32,
        /// The time of its end.
        ts: DateTime<Utc>,
        /// The connection.
        #[serde(flatten)]
        connection: Box<Connection>,
    },
    /// The run, or a step, waits for something. The event is repeated at least once a second while that
    /// lasts. There are none unless [`RunOptions::progress`](crate::RunOptions::progress) asks for them.
    Progress {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step that waits. If it is `None`, the whole run does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step_id: Option<Uuid>,
        /// The time.
        ts: DateTime<Utc>,
        /// What it waits for.
        activity: Activity,
        /// How much of that is done, if it is counted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        count: Option<ActivityCount>,
    },
    /// A step was looked up by what it reads, in shadow mode: it ran anyway.
    StepShadow {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The step.
        step_id: Uuid,
        /// The attempt.
        #[serde(default = "first")]
        attempt: u32,
        /// What came of it.
        #[serde(flatten)]
        verdict: Box<ShadowVerdict>,
    },
    /// A chain ends here, because this step of it failed.
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
        /// A description for users.
        message: Arc<str>,
        /// The time.
        ts: DateTime<Utc>,
    },
    /// The last event.
    BuildEnd {
        /// Position in the stream.
        #[serde(default)]
        seq: u64,
        /// The exit code, as of [`BuildStatus::exit_code`](crate::BuildStatus::exit_code).
        exit_code: i32,
        /// The time from the start of the build, in milliseconds.
        duration_ms: u64,
        /// The result.
        status: crate::model::BuildStatus,
    },
    /// An event that this version does not know, unchanged.
    #[serde(skip)]
    Unknown(serde_json::Map<String, serde_json::Value>),
}

impl BuildEvent {
    /// Returns the event's position in the stream; 0 if an event of another program has none.
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
            | Self::Connection { seq, .. }
            | Self::Progress { seq, .. }
            | Self::StepShadow { seq, .. }
            | Self::ChainFailed { seq, .. }
            | Self::BuildEnd { seq, .. } => *seq,
            Self::Unknown(fields) => fields.get("seq").and_then(serde_json::Value::as_u64).unwrap_or(0),
        }
    }

    /// Returns whether this is the last event of a build. For other kinds of events use `matches!`.
    #[must_use]
    pub const fn is_build_end(&self) -> bool {
        matches!(self, Self::BuildEnd { .. })
    }
}

const fn first() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}
