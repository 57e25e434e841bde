//! The context of an attempt.

use std::{
    any::Any,
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

use super::{Expected, RunnerError, ShadowMode, TraceReuse};
use crate::{
    awake,
    event::EventBus,
    ir::CommandStep,
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
    /// Looks steps that are traced up by what they read, and compares that with what they do. Nothing is
    /// reused.
    pub shadow: Option<Arc<ShadowMode>>,
    /// Says that the result of the step is looked up by what it reads, and kept with that.
    pub(crate) reuse: Option<Arc<TraceReuse>>,
    /// The result that the step would have been found with, if it is compared with that.
    pub(crate) expected: Option<Box<Expected>>,
    /// The outputs that the step has asked for. A runner with the capability
    /// [`outputs`](super::RunnerCapabilities::outputs) copies them when the command has ended, however it
    /// did.
    pub(crate) outputs: Option<Arc<StepOutputs>>,
    /// The step, if the outputs of one that was found are copied.
    pub(crate) found_step: Option<Arc<CommandStep>>,
    /// What the step's attempts have in common. `None` if nothing is kept between them.
    pub(crate) kept: Option<Kept>,
    /// What all attempts of the run have in common.
    run: Arc<RunState>,
    /// What only an attempt with a time limit needs, to be interrupted on its own.
    limited: Option<Arc<Limited>>,
}

/// What a runner keeps of one attempt of a step for the next one. The dispatcher drops it when the step has
/// ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<Option<Arc<dyn Any + Send + Sync>>>>);

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

/// What all attempts of a run share, behind one pointer, so that a context costs one reference to it.
#[derive(Default)]
struct RunState {
    /// The reason to end all attempts.
    reason: AtomicU8,
    /// The work to do at the end of the run.
    at_end: Mutex<Vec<BoxFuture<'static, ()>>>,
}

impl fmt::Debug for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunState").field("reason", &self.reason).finish_non_exhaustive()
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
            shadow: None,
            reuse: None,
            expected: None,
            outputs: None,
            found_step: None,
            kept: None,
            run: Arc::default(),
            limited: None,
        }
    }

    /// Returns the context of one attempt within this run. Its token is its own, so that nothing a runner
    /// does to it reaches another attempt. The executor fires it when it waits for the attempt and the
    /// run's token fires: a child of the run's token, which does that by itself, would be entered in a
    /// list there, and removed from it, for every attempt. `limited` means that the attempt may be
    /// [interrupted](Self::interrupt) on its own.
    pub(crate) fn for_attempt(&self, attempt: u32, limited: bool, snapshot_travels: bool) -> Self {
        Self {
            event_bus: self.event_bus.for_attempt(attempt),
            archives: Arc::clone(&self.archives),
            cancel: CancellationToken::new(),
            secrets: Arc::clone(&self.secrets),
            attempt,
            grace: self.grace,
            keep: self.keep,
            snapshot_travels,
            cache_owner: self.cache_owner.clone(),
            traces: self.traces.clone(),
            shadow: self.shadow.clone(),
            reuse: self.reuse.clone(),
            expected: None,
            outputs: None,
            found_step: None,
            kept: None,
            run: Arc::clone(&self.run),
            limited: limited.then(Arc::default),
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
        self.run.at_end.lock().push(Box::pin(work));
    }

    /// Runs the work registered with [`at_build_end`](Self::at_build_end). The creator of the run's context
    /// calls it when no attempt is running any longer.
    ///
    /// # Cancel safety
    /// Dropping the future may leave some of the work undone.
    pub async fn end_build(&self) {
        let work = mem::take(&mut *self.run.at_end.lock());
        let ended = join_all(work.into_iter().map(|work| std::panic::AssertUnwindSafe(work).catch_unwind())).await;
        if ended.iter().any(Result::is_err) {
            tracing::error!("a runner panicked at the end of a build, which is a bug in the runner");
        }
    }

    /// Returns what an earlier attempt of the step has left for this one.
    pub(crate) fn kept<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.kept.as_ref()?.0.lock().clone()?.downcast().ok()
    }

    /// Leaves something to the next attempt of the step, if there is one.
    pub(crate) fn keep_for_next<T: Any + Send + Sync>(&self, kept: &Arc<T>) {
        if let Some(Kept(slot)) = &self.kept {
            let kept: Arc<T> = Arc::clone(kept);
            *slot.lock() = Some(kept);
        }
    }

    /// Ends the attempt for `reason`, or all attempts if this is a run's context. The first reason wins.
    pub fn interrupt(&self, reason: CancelReason) {
        let cell = self.limited.as_ref().map_or(&self.run.reason, |limited| &limited.reason);
        let _ = cell.compare_exchange(0, reason as u8, Ordering::Release, Ordering::Relaxed);
        self.cancel.cancel();
    }

    /// Returns why the attempt must end: [`CancelReason::Cancelled`] if the token was fired without a reason.
    #[must_use]
    pub fn cancel_reason(&self) -> CancelReason {
        let attempt = self.limited.as_ref().map_or(0, |limited| limited.reason.load(Ordering::Acquire));
        let reason = if attempt == 0 { self.run.reason.load(Ordering::Acquire) } else { attempt };
        if reason == CancelReason::TimedOut as u8 { CancelReason::TimedOut } else { CancelReason::Cancelled }
    }

    /// Returns whether this attempt was interrupted on its own, rather than with its run.
    pub(crate) fn interrupted_alone(&self) -> bool {
        self.limited.as_ref().is_some_and(|limited| limited.reason.load(Ordering::Acquire) != 0)
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
        if let Some(limited) = &self.limited {
            *limited.beyond.lock() = beyond;
            limited.changed.notify_one();
        }
    }

    /// Completes when the attempt has reached its limit. At most one call waits at a time.
    ///
    /// # Cancel safety
    /// Only the elapsed time is lost.
    pub(crate) async fn limit_reached(&self, limit: Duration) {
        let Some(limited) = &self.limited else { return awake::sleep(limit).await };
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
            details: Default::default(),
        };
        let (writer, bus, _) = event::create(RunDir::Temporary, meta, &Secrets::default()).unwrap();
        let archives = Arc::new(RunSource::new(ArchiveId(Uuid::nil()), "/"));
        let run = StepContext::new(bus, archives, Arc::default(), CancellationToken::new());
        (writer, run.for_attempt(1, true, true))
    }

    #[tokio::test]
    async fn what_is_kept_is_for_attempts_of_the_same_step_alone() {
        let (_writer, mut first) = limited();
        first.keep_for_next(&Arc::new(1_u8));
        assert_eq!(first.kept::<u8>(), None, "there is no next attempt");
        let slot = Kept::default();
        first.kept = Some(slot.clone());
        first.keep_for_next(&Arc::new(1_u8));
        let mut second = first.for_attempt(2, false, true);
        assert_eq!(second.kept::<u8>(), None, "the dispatcher decides");
        second.kept = Some(slot);
        assert_eq!((second.kept::<u8>().as_deref(), second.kept::<u16>()), (Some(&1), None));
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
