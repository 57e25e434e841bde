//! STUB: the `event` builder owns this file and splits it.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use chrono::{DateTime, Utc};
use futures_util::Stream;
use uuid::Uuid;

use super::{BuildEvent, BuildRef, PlanSummary, StdStream};
use crate::{
    outcome::{BuildStatus, StepStatus},
    plan::StepIndex,
    runner::{Secrets, SnapshotRef},
};

/// Where a run's journal and logs lie.
#[derive(Debug)]
pub enum RunDir {
    /// In this directory, which is made, and stays.
    Kept(PathBuf),
    /// In a directory of their own that goes with the last reader.
    Temporary,
}

/// What never changes about a run; the journal's header. Step ids derive from the run's id and the index.
#[derive(Debug)]
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
#[derive(Debug)]
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

/// The id of a step in a run's events.
#[must_use]
pub fn step_id(_run_id: Uuid, _step: StepIndex) -> Uuid {
    todo!()
}

/// A state event as the dispatcher emits it: indices, not text. (`build_start`, `build_accepted` and every `step_queued`
/// come from [`RunMeta`] and need no emitting.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateEvent {
    /// An attempt starts.
    StepStart { step: StepIndex, attempt: u32 },
    /// An attempt failed and another follows.
    StepRetry { step: StepIndex, attempt: u32, backoff_ms: u64, message: Arc<str> },
    /// The step did not have to run.
    StepCacheHit { step: StepIndex, tag: Arc<str> },
    /// The step ended. `attempt` is 0 where it never started.
    StepEnd {
        step: StepIndex,
        attempt: u32,
        status: StepStatus,
        exit_code: i32,
        duration_ms: u64,
        snapshot: Option<SnapshotRef>,
        message: Option<Arc<str>>,
    },
    /// The step's chain stops here.
    ChainFailed { step: StepIndex, exit_code: i32, message: Arc<str> },
    /// The build ended. The last event.
    BuildEnd { status: BuildStatus, duration_ms: u64 },
}

/// Opens a run's journal, writes its header, and gives the three ends of it.
///
/// # Errors
/// Where the directory or the journal can't be made.
pub fn create(_dir: RunDir, _meta: RunMeta, _secrets: &Secrets) -> io::Result<(EventWriter, EventBus, EventStream)> {
    todo!()
}

/// The dispatcher's end: the one emitter of state events.
#[derive(Debug)]
pub struct EventWriter {}

impl EventWriter {
    /// Appends to the buffer; `at_ms` is milliseconds since the start of the run.
    pub fn emit(&mut self, _at_ms: u64, _event: StateEvent) {
        todo!()
    }

    /// Writes the buffer, which also has the ranges of output since the last flush, with one `write`, then wakes readers.
    ///
    /// # Errors
    /// Where this write, or an earlier one of a step's output, failed: the build can't be recorded any longer.
    pub fn flush(&mut self) -> io::Result<()> {
        todo!()
    }

    /// Ends when output waits for a flush. Cancel-safe.
    pub async fn dirty(&self) {
        todo!()
    }

    /// A new reader of the whole stream from its start.
    #[must_use]
    pub fn subscribe(&self) -> EventStream {
        todo!()
    }
}

/// A runner's end: where output goes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventBus {}

impl EventBus {
    /// Appends `bytes` of a step's output, secrets masked. Chunks may end anywhere, also inside a line, a character or a
    /// secret. Failures are kept for the dispatcher, which ends the build.
    ///
    /// # Cancel safety
    /// The bytes were written, or none were.
    pub async fn output(&self, _step_id: Uuid, _stream: StdStream, _bytes: &[u8]) {
        todo!()
    }

    /// This bus for one attempt of a step. The executor calls it.
    #[must_use]
    pub fn for_attempt(&self, _attempt: u32) -> Self {
        todo!()
    }
}

/// A reader: every event of a run from the first to `build_end`, at its own pace.
#[derive(Debug)]
pub struct EventStream {}

impl EventStream {
    /// The next event, or `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<BuildEvent> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for EventStream {
    type Item = BuildEvent;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<BuildEvent>> {
        todo!()
    }
}
