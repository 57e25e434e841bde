//! The context of an attempt.

use std::{
    fmt,
    future::Future,
    mem,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::RunnerError;
use crate::{
    awake,
    event::EventBus,
    model::Secrets,
    outputs::StepOutputs,
    source::{FrozenSource, RunSource},
    store::{Store, StoreError},
    sync::Mutex,
};

/// The context of an attempt: everything it needs besides its input. Cheap to clone.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StepContext {
    /// The destination of the command's output: `ctx.event_bus.output(input.step_id, stream, bytes).await`.
    pub event_bus: EventBus,
    /// The run's source tree, frozen when a runner first requests it.
    pub archives: Arc<RunSource>,
    /// Fires when this attempt must end: send TERM, wait for the grace period, send KILL, then return
    /// [`StepContext::interrupted`].
    pub cancel: CancellationToken,
    /// The secrets that the step may read at `/run/secrets/NAME`.
    pub secrets: Arc<Secrets>,
    /// The number of this attempt of the step, counted from 1.
    pub attempt: u32,
    /// The time a command has between TERM and KILL.
    pub grace: Duration,
    /// Whether step filesystems outlive the build so that users can inspect them. This covers steps that
    /// pass, steps whose command fails and steps that are interrupted. A runner that cannot keep them ignores
    /// this.
    pub keep: bool,
    /// Whether anything other than this runner's own steps in this build needs the snapshot, if one is to be
    /// committed: a child on another runner, the cache, or the user. If not, a runner with the `layers`
    /// capability may commit in a cheaper form of its own.
    pub snapshot_travels: bool,
    /// The owner of the step's cache directories. If it is `None`, its cache directories are empty and are
    /// not kept.
    pub cache_owner: Option<Arc<CacheOwner>>,
    /// The directory in which runners keep the traces of steps. If it is `None`, no step is traced.
    pub traces: Option<Arc<Path>>,
    /// The outputs that the step has asked for. A runner with the capability
    /// [`outputs`](super::RunnerCapabilities::outputs) copies them when the command has ended, however it
    /// did.
    pub(crate) outputs: Option<Arc<StepOutputs>>,
    reasons: Reasons,
    at_end: AtEnd,
}

/// The owner of the cache directories of a run's steps.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheOwner {
    /// The project.
    pub project: Arc<str>,
    /// The pipeline.
    pub pipeline: Arc<str>,
}

impl CacheOwner {
    /// Names the owner.
    #[must_use]
    pub fn new(project: impl Into<Arc<str>>, pipeline: impl Into<Arc<str>>) -> Self {
        Self { project: project.into(), pipeline: pipeline.into() }
    }
}

/// The work to do at the end of the run.
#[derive(Clone, Default)]
struct AtEnd(Arc<Mutex<Vec<BoxFuture<'static, ()>>>>);

impl fmt::Debug for AtEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtEnd")
    }
}

/// The reason why [`StepContext::cancel`] fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CancelReason {
    /// The build was cancelled, or another step failed and the build does not keep going.
    Cancelled = 1,
    /// The step's or the pipeline's deadline passed.
    TimedOut = 2,
}

/// The part of an attempt with a time limit that its runner and its executor share.
#[derive(Debug)]
struct Limited {
    reason: AtomicU8,
    /// The time beyond the limit after which the attempt is ended; `None` while the clock stands still.
    beyond: Mutex<Option<Duration>>,
    changed: Notify,
}

/// The reasons of the whole run, in a cell that all its attempts share, and of one attempt, in a cell of its
/// own. Only an attempt with a time limit needs the second cell; all others share, which keeps the hot path
/// free of an allocation.
#[derive(Debug, Clone, Default)]
struct Reasons {
    run: Arc<AtomicU8>,
    attempt: Option<Arc<Limited>>,
}

impl Default for Limited {
    fn default() -> Self {
        Self { reason: AtomicU8::new(0), beyond: Mutex::new(Some(Duration::ZERO)), changed: Notify::new() }
    }
}

impl StepContext {
    /// Creates a context for a whole run, from which the executor derives those of its attempts. Tests of
    /// runners may use it as is.
    #[must_use]
    pub fn new(
        event_bus: EventBus,
        archives: Arc<RunSource>,
        secrets: Arc<Secrets>,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            event_bus,
            archives,
            cancel,
            secrets,
            attempt: 1,
            grace: Duration::from_secs(5),
            keep: false,
            snapshot_travels: true,
            cache_owner: None,
            traces: None,
            outputs: None,
            reasons: Reasons::default(),
            at_end: AtEnd::default(),
        }
    }

    /// Returns the context of one attempt within this run. Its token is a child of the run's token, so that
    /// nothing a runner does to it reaches another attempt. `limited` means that the attempt may be
    /// [interrupted](Self::interrupt) on its own.
    pub(crate) fn for_attempt(&self, attempt: u32, limited: bool, snapshot_travels: bool) -> Self {
        Self {
            event_bus: self.event_bus.for_attempt(attempt),
            archives: Arc::clone(&self.archives),
            cancel: self.cancel.child_token(),
            secrets: Arc::clone(&self.secrets),
            attempt,
            grace: self.grace,
            keep: self.keep,
            snapshot_travels,
            cache_owner: self.cache_owner.clone(),
            traces: self.traces.clone(),
            outputs: None,
            reasons: Reasons { run: Arc::clone(&self.reasons.run), attempt: limited.then(Arc::default) },
            at_end: self.at_end.clone(),
        }
    }

    /// Returns the run's source tree in the store, as [`RunSource::freeze`]. Reports what that is doing, if
    /// it takes long.
    ///
    /// # Errors
    /// As [`RunSource::freeze`].
    ///
    /// # Cancel safety
    /// As [`RunSource::freeze`].
    pub async fn frozen_source(&self, store: &Arc<Store>) -> Result<Arc<FrozenSource>, StoreError> {
        self.event_bus.reporting(None, || self.archives.activity(), self.archives.freeze(store)).await
    }

    /// Registers `work` to run after the build has ended and its snapshots were reaped, within the time that
    /// all runners have for that. Runners use it to clean up what they keep for all steps of one run.
    pub fn at_build_end(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.at_end.0.lock().push(Box::pin(work));
    }

    /// Runs the work registered with [`at_build_end`](Self::at_build_end). The creator of the run's context
    /// calls it when no attempt is running any longer.
    ///
    /// # Cancel safety
    /// Dropping the future may leave some of the work undone.
    pub async fn end_build(&self) {
        let work = mem::take(&mut *self.at_end.0.lock());
        let ended = join_all(work.into_iter().map(|work| std::panic::AssertUnwindSafe(work).catch_unwind())).await;
        if ended.iter().any(Result::is_err) {
            tracing::error!("a runner panicked at the end of a build, which is a bug in the runner");
        }
    }

    /// Ends the attempt for `reason`, or all attempts if this is a run's context. The first reason wins.
    pub fn interrupt(&self, reason: CancelReason) {
        let cell = self.reasons.attempt.as_ref().map_or(&*self.reasons.run, |limited| &limited.reason);
        let _ = cell.compare_exchange(0, reason as u8, Ordering::Release, Ordering::Relaxed);
        self.cancel.cancel();
    }

    /// Returns why the attempt must end: [`CancelReason::Cancelled`] if the token was fired without a reason.
    #[must_use]
    pub fn cancel_reason(&self) -> CancelReason {
        let attempt = self.reasons.attempt.as_ref().map_or(0, |limited| limited.reason.load(Ordering::Acquire));
        let reason = if attempt == 0 { self.reasons.run.load(Ordering::Acquire) } else { attempt };
        if reason == CancelReason::TimedOut as u8 { CancelReason::TimedOut } else { CancelReason::Cancelled }
    }

    /// Returns whether this attempt was interrupted on its own, rather than with its run.
    pub(crate) fn interrupted_alone(&self) -> bool {
        self.reasons.attempt.as_ref().is_some_and(|limited| limited.reason.load(Ordering::Acquire) != 0)
    }

    /// Stops the clock of the step's time limit: the command does not run, or something close to it keeps the
    /// limit. Runners whose steps wait elsewhere call this.
    pub fn stop_limit(&self) {
        self.set_limit(None);
    }

    /// Starts the clock of the step's time limit from zero. The attempt is ended when the limit and then
    /// `beyond` are over.
    pub fn restart_limit(&self, beyond: Duration) {
        self.set_limit(Some(beyond));
    }

    fn set_limit(&self, beyond: Option<Duration>) {
        if let Some(limited) = &self.reasons.attempt {
            *limited.beyond.lock() = beyond;
            limited.changed.notify_one();
        }
    }

    /// Completes when the attempt has reached its limit. At most one call waits at a time.
    ///
    /// # Cancel safety
    /// Only the elapsed time is lost.
    pub(crate) async fn limit_reached(&self, limit: Duration) {
        let Some(limited) = &self.reasons.attempt else { return awake::sleep(limit).await };
        loop {
            let beyond = *limited.beyond.lock();
            let time_is_up = async {
                match beyond {
                    Some(beyond) => awake::sleep(limit.saturating_add(beyond)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = limited.changed.notified() => {}
                () = time_is_up => return,
            }
        }
    }

    /// Returns the error to report after [`StepContext::cancel`] fired and the command was ended.
    #[must_use]
    pub fn interrupted(&self) -> RunnerError {
        match self.cancel_reason() {
            CancelReason::Cancelled => RunnerError::cancelled(),
            CancelReason::TimedOut => RunnerError::timed_out(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use chrono::DateTime;
    use tokio::time::Instant;
    use uuid::Uuid;

    use super::*;
    use crate::{
        event::{self, EventWriter, PlanSummary, RunDir, RunMeta},
        model::{ArchiveId, BuildRef},
    };

    /// Returns the context of an attempt with a time limit. The journal lives as long as the writer.
    pub(in crate::runner) fn limited() -> (EventWriter, StepContext) {
        let meta = RunMeta {
            build: BuildRef { run_id: Uuid::nil(), number: None, org: None, pipeline: "p".into() },
            plan: PlanSummary { step_count: 0, chain_count: 0, default_runner: "cloud".to_owned() },
            started_at: DateTime::UNIX_EPOCH,
            steps: Vec::new(),
            runners: vec!["cloud".into()],
            server: None,
        };
        let (writer, bus, _) = event::create(RunDir::Temporary, meta, &Secrets::default()).unwrap();
        let archives = Arc::new(RunSource::new(ArchiveId(Uuid::nil()), "/"));
        let run = StepContext::new(bus, archives, Arc::default(), CancellationToken::new());
        (writer, run.for_attempt(1, true, true))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_stopped_and_started_again_counts_from_zero() {
        let (_writer, ctx) = limited();
        let begun = Instant::now();
        let clock = async {
            tokio::time::sleep(8 * SECOND).await;
            ctx.stop_limit();
            tokio::time::sleep(1000 * SECOND).await;
            ctx.restart_limit(5 * SECOND);
            tokio::time::sleep(9 * SECOND).await;
            // As if the worker were lost.
            ctx.stop_limit();
            tokio::time::sleep(1000 * SECOND).await;
            ctx.restart_limit(5 * SECOND);
        };
        tokio::join!(clock, ctx.limit_reached(10 * SECOND));
        assert_eq!(begun.elapsed().as_secs(), 8 + 1000 + 9 + 1000 + 10 + 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_nobody_touches_ends_at_the_limit() {
        let (_writer, ctx) = limited();
        let begun = Instant::now();
        ctx.limit_reached(10 * SECOND).await;
        assert_eq!(begun.elapsed().as_secs(), 10);
    }
}
