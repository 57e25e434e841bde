//! The dispatcher: the single loop of a build, on one task.
//!
//! It owns the attempts' futures, the work of the cache ([`Caching`]), and the build's [`BuildProgress`].
//! Each turn of the loop checks the cancel token and the clock, handles the attempts that ended, starts the
//! steps that can start, and writes all resulting events with one `write`. Then it sleeps until woken. The
//! next turn checks everything, so a wake-up carries no information. `BuildProgress` and the policy behind it
//! decide synchronously what follows from each event.

use std::{
    collections::BTreeMap,
    future::{pending, poll_fn},
    num::NonZeroUsize,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures_util::{FutureExt, StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    caching::{Caching, CachingScope, JobDone, is_looked_up},
    critical_path::priorities,
    executor::{self, Attempt, AttemptReport},
    outputs::{clear_outputs, outputs_of},
    policy::{MemoryRules, Placement, Policy, Rules, StopReason},
    progress::BuildProgress,
};
use crate::{
    awake::{self, Awake},
    cache::{BuildCache, SharedResults},
    event::EventWriter,
    model::{BuildRef, SnapshotRef, StepIndex},
    outcome::BuildOutcome,
    plan::BoundPlan,
    runner::{CancelReason, Kept, Pool, RunnerIndex, RunnerSet, StepContext},
};

/// The maximum number of ended attempts that a turn handles before it writes its events and lets other tasks
/// run.
const TURN: usize = 256;

/// The time limit for all runners together to remove the snapshots of a build that ended.
const REAP_LIMIT: Duration = Duration::from_secs(30);

/// The number of retries of a step after infrastructure errors.
const RETRIES: u32 = 2;

/// The delay before the first retry.
const BACKOFF: Duration = Duration::from_millis(100);

/// Everything that is needed to run a build.
#[derive(Debug)]
pub(crate) struct Build<R> {
    /// The runners that run the steps.
    pub(crate) runners: Arc<R>,
    /// The steps.
    pub(crate) plan: BoundPlan,
    /// The cache in which cached steps are looked up.
    pub(crate) cache: Option<BuildCache>,
    /// The remote cache, for steps that the local cache does not have.
    pub(crate) remote: Option<Arc<dyn SharedResults>>,
    /// Runners that have not been probed yet.
    pub(crate) unprobed: Vec<RunnerIndex>,
    /// How long a runner may take to answer.
    pub(crate) probe_limit: Duration,
    /// The duration of each step in the last run.
    pub(crate) durations: Vec<Option<Duration>>,
    /// How the steps of local runners share the machine's memory.
    pub(crate) memory: Option<MemoryRules>,
    /// The maximum number of concurrent steps of local runners.
    pub(crate) parallelism: NonZeroUsize,
    /// Whether to continue after a failure with steps that do not need the failed step.
    pub(crate) keep_going: bool,
    /// The writer of state events.
    pub(crate) events: EventWriter,
    /// The context that attempts get theirs from. Its token is a child of `cancel`.
    pub(crate) context: StepContext,
    /// The token that cancels the build.
    pub(crate) cancel: CancellationToken,
    /// The build's identity.
    pub(crate) build: BuildRef,
    /// The start time.
    pub(crate) started_at: DateTime<Utc>,
}

/// Runs a build to its end.
///
/// # Cancel safety
/// Dropping the future kills running commands at once, removes no snapshots, and leaves a journal without its
/// last events.
pub(crate) async fn run<R: RunnerSet>(build: Build<R>) -> BuildOutcome {
    let Build {
        runners,
        plan,
        cache,
        remote,
        unprobed,
        probe_limit,
        durations,
        memory,
        parallelism,
        keep_going,
        events,
        context,
        cancel,
        build,
        started_at,
    } = build;
    let verification = context.reuse.as_ref().and_then(|reuse| reuse.verification.clone());
    let alone = verification.filter(|it| it.is_alone());
    let is_alone = alone.is_some();
    let (limits, pool_of) = pools(&plan, parallelism);
    let priorities = priorities(&plan.dag, &durations);
    let placements =
        plan.steps.iter().zip(priorities).zip((0..).map(StepIndex)).map(|((bound, priority), step)| Placement {
            pool: pool_of[usize::from(bound.runner.0)],
            priority,
            cached: is_alone || cache.is_some() && is_looked_up(&plan, step),
        });
    let outcomes = plan.outcomes.clone();
    let takers = plan.takers();
    let rules = Rules { limits, keep_going, retries: RETRIES, backoff: BACKOFF, outcomes, takers, memory };
    let policy = Policy::new(&plan.dag, &placements.collect::<Vec<_>>(), &rules);
    let mut progress = BuildProgress::new(&plan, policy, events, build.run_id, context.archives.id());
    if let Some(verification) = alone {
        progress.only_verify(verification);
    }

    let clock = Instant::now();
    let mut attempts = FuturesUnordered::new();
    let archives = Arc::clone(&context.archives);
    clear_outputs(&plan, &build, &archives).await;
    let scope = CachingScope {
        plan: &plan,
        cache: cache.as_ref(),
        remote: remote.as_deref(),
        archives: &archives,
        outputs: Some((&context, &build)),
        probe_limit,
    };
    let mut caching = Caching::new(&*runners, scope, &unprobed);
    let mut deadline = plan.timeout.map(Deadline::new);
    let mut happened = None;
    // Steps that get files of others have these copied once for all attempts.
    let mut kept: BTreeMap<StepIndex, Kept> = BTreeMap::new();
    // Whether the attempts of some steps have more in their context than those of others.
    let is_traced = context.shadow.is_some() || context.reuse.is_some();
    let has_extras = is_traced || !plan.outputs.is_empty() || !plan.inputs.is_empty();
    loop {
        let mut now = clock.elapsed();
        if cancel.is_cancelled() {
            progress.stop(StopReason::Canceled, now);
        }
        if deadline.as_mut().is_some_and(|deadline| deadline.is_over(now)) && progress.stopping().is_none() {
            // Attempts that have ended by now ended in time. Nothing starts after them.
            loop {
                if let Some(happened) = happened.take() {
                    handle(happened, &mut caching, &mut progress, now);
                }
                let ended = poll_fn(|cx| Poll::Ready(attempts.poll_next_unpin(cx))).await;
                let Poll::Ready(Some(report)) = ended else { break };
                happened = Some(Happened::AttemptEnded(report));
            }
            progress.stop(StopReason::TimedOut, now);
        }
        progress.retry_due(now);
        let mut taken = 0;
        loop {
            if let Some(happened) = happened.take() {
                now = clock.elapsed();
                // The attempt may have ended because of it: that is neither repeated nor allowed.
                if cancel.is_cancelled() {
                    progress.stop(StopReason::Canceled, now);
                }
                handle(happened, &mut caching, &mut progress, now);
                taken += 1;
            }
            interrupt(&context, progress.stopping());
            taken += caching.look_up(&mut progress, now, TURN.saturating_sub(taken));
            while let Some(start) = caching.next_start(&mut progress, now) {
                let bound = plan.step(start.step);
                let snapshot = plan.snapshot_use(start.step, caching.publishes(start.step));
                let run = &context.cancel;
                let mut context = context.for_attempt(start.attempt, bound.timeout().is_some(), snapshot.travels());
                if has_extras {
                    // Shadow mode tells how `auto` would go.
                    context.shadow = context.shadow.filter(|_| !plan.cache_limits.contains_key(&start.step));
                    context.expected = caching.expected(start.step, start.attempt);
                    context.reuse =
                        context.reuse.filter(|_| !is_alone && caching.keeps_trace(start.step, start.attempt));
                    context.outputs = outputs_of(&plan, &build, &archives, start.step, &context.secrets);
                    context.kept =
                        plan.inputs.contains_key(&start.step).then(|| kept.entry(start.step).or_default().clone());
                }
                let attempt = Attempt { start, runner: bound.runner, timeout: bound.timeout(), context };
                let span = tracing::info_span!(
                    "step",
                    key = &*bound.step.key,
                    runner = &*plan.runner(start.step).name,
                    attempt = start.attempt
                );
                let input = progress.input(start.step, snapshot);
                attempts.push(executor::execute(&*runners, run, attempt, input).instrument(span));
            }
            if taken >= TURN {
                break;
            }
            happened = match caching.take_report() {
                Some(report) => Some(Happened::AttemptEnded(report)),
                None => {
                    poll_fn(|cx| {
                        if let Poll::Ready(Some(report)) = attempts.poll_next_unpin(cx) {
                            return Poll::Ready(Some(Happened::AttemptEnded(report)));
                        }
                        if !caching.is_empty()
                            && let Poll::Ready(Some(job)) = caching.poll_next(cx)
                        {
                            return Poll::Ready(Some(Happened::JobDone(job)));
                        }
                        Poll::Ready(None)
                    })
                    .await
                }
            };
            if happened.is_none() {
                break;
            }
        }
        progress.flush(now);
        kept.retain(|step, _| !progress.has_ended(*step));
        interrupt(&context, progress.stopping());
        if progress.is_done() {
            break;
        }
        if taken >= TURN {
            tokio::task::yield_now().await;
            continue;
        }
        let stopping = progress.stopping().is_some();
        let deadline = deadline.as_ref().filter(|_| !stopping).and_then(Deadline::alarm);
        let alarm = deadline.into_iter().chain(progress.next_retry()).min();
        tokio::select! {
            biased;
            () = cancel.cancelled(), if !stopping => {}
            () = ring(alarm, clock) => {}
            report = attempts.next(), if !attempts.is_empty() => happened = report.map(Happened::AttemptEnded),
            job = poll_fn(|cx| caching.poll_next(cx)), if !caching.is_empty() => {
                happened = job.map(Happened::JobDone);
            }
            () = progress.output_waits() => {}
        }
    }
    drop((attempts, kept));
    let end = caching.finish(&progress, &cancel).await;
    if let Some(cache) = &cache {
        cache.finish(end).await;
    }
    reap(&*runners, progress.take_snapshots(), &context).await;
    let finished = progress.finish(build, started_at, clock.elapsed());
    finished.outcome(plan)
}

/// The build's time limit.
struct Deadline {
    awake: Awake,
    /// The last time at which the limit was checked.
    looked: Duration,
}

impl Deadline {
    fn new(limit: Duration) -> Self {
        Self { awake: Awake::new(limit), looked: Duration::ZERO }
    }

    fn is_over(&mut self, now: Duration) -> bool {
        self.awake.pass(now.saturating_sub(self.looked));
        self.looked = now;
        self.awake.next().is_none()
    }

    /// Returns when the limit must be checked again.
    fn alarm(&self) -> Option<Duration> {
        Some(self.looked.saturating_add(self.awake.next()?))
    }
}

/// An occurrence that a turn handles.
enum Happened<'a> {
    AttemptEnded(AttemptReport),
    JobDone(JobDone<'a>),
}

fn handle<'a, R: RunnerSet>(
    happened: Happened<'a>,
    caching: &mut Caching<'a, R>,
    progress: &mut BuildProgress<'_>,
    now: Duration,
) {
    match happened {
        Happened::AttemptEnded(report) => caching.attempt_ended(report, progress, now),
        Happened::JobDone(job) => caching.handle(job, progress, now),
    }
}

/// Requests running attempts to end if the build stops.
fn interrupt(context: &StepContext, stopping: Option<StopReason>) {
    match stopping {
        Some(StopReason::TimedOut) => context.interrupt(CancelReason::TimedOut),
        Some(StopReason::Canceled | StopReason::Failed) => context.interrupt(CancelReason::Cancelled),
        None => {}
    }
}

/// Returns the limit of each pool, and each runner's pool. Pool 0 is that of the local machine.
fn pools(plan: &BoundPlan, parallelism: NonZeroUsize) -> (Vec<NonZeroUsize>, Vec<usize>) {
    let mut limits = vec![parallelism];
    let pool_of = plan.runners.iter().map(|runner| match runner.pool {
        Pool::Local => 0,
        Pool::Own { limit } => {
            limits.push(limit);
            limits.len() - 1
        }
    });
    let pool_of = pool_of.collect();
    (limits, pool_of)
}

/// Waits until `clock` has run for `alarm`.
async fn ring(alarm: Option<Duration>, clock: Instant) {
    match alarm {
        Some(alarm) => tokio::time::sleep(alarm.saturating_sub(clock.elapsed())).await,
        None => pending().await,
    }
}

/// Hands snapshots back to the runners that made them, and lets runners clean up after the build. A runner
/// that hangs or panics does not prevent the build from ending.
async fn reap<R: RunnerSet>(runners: &R, snapshots: Vec<(RunnerIndex, Vec<SnapshotRef>)>, context: &StepContext) {
    let reaping = snapshots.into_iter().map(|(runner, snapshots)| async move {
        if AssertUnwindSafe(runners.reap(runner, snapshots)).catch_unwind().await.is_err() {
            tracing::error!(runner = runner.0, "a runner panicked while it removed snapshots");
        }
    });
    let reaped = join_all(reaping).then(|_| context.end_build());
    if awake::timeout(REAP_LIMIT, pin!(reaped)).await.is_none() {
        tracing::warn!("runners did not remove the build's snapshots within {REAP_LIMIT:?}");
    }
}
