//! Caching: the work that a cache adds to a build, beside its attempts.
//!
//! - A cached step is looked up before it is ready to start (`lookup`). Most lookups return at once, so a
//!   series of hits needs no future. Lookups that wait for an equal step, have much to check, or query a
//!   remote cache, are futures here.
//! - A runner whose steps may all be found in the cache is probed before its first attempt, not before the
//!   build (`late_probe`).
//! - Before a build, a user may ask which steps would be found (`predict`).
//! - The result of a cached step is published before its end is reported (`publish`), and then shared with a
//!   remote cache (`sharing`).
//! - In mode `auto`, steps without a policy are looked up by what they read (`traced`).
//!
//! The results go to the [`BuildProgress`]. The module knows neither how keys are made nor what the store
//! keeps.

mod ahead;
mod fan_in;
mod inputs;
mod key;
mod late_probe;
mod lookup;
mod predict;
mod publish;
mod sharing;
mod traced;

use std::{
    collections::BTreeMap,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::{
    ahead::{Ahead, Expected},
    fan_in::{FanIn, FanInAnswer},
    inputs::Inputs,
    late_probe::{Admission, LateProbes},
    lookup::{CachedStep, IdentityAnswer, IdentityQuery, IdentityState},
    publish::Published,
    sharing::Sharing,
    traced::Traced,
};
pub(crate) use self::{key::is_looked_up, predict::predict};
use super::{executor::AttemptReport, policy::Start, progress::BuildProgress};
use crate::{
    cache::{BuildCache, BuildEnd, CacheKey, Found, KeyRecord, LookupOutcome, LookupRequest, SharedResults},
    model::{BuildRef, SnapshotRef, StepIndex},
    outputs::StepOutputs,
    plan::BoundPlan,
    runner::{Probe, RunnerIndex, RunnerSet, StepContext, probe_within},
    source::RunSource,
};

/// The answer to a query of a runner that panicked.
const PANICKED: &str = "the runner panicked; this is a bug in the runner";

/// The most steps whose outputs are copied at a time when they are found.
const MAX_COPIES: usize = 8;

/// The caching of one build. Without a cache, and with every runner probed, it costs one or two checks per
/// step.
pub(super) struct Caching<'a, R> {
    runners: &'a R,
    probe_limit: Duration,
    plan: &'a BoundPlan,
    cache: Option<&'a BuildCache>,
    scope: CachingScope<'a>,
    /// Limits how many steps that were found have their outputs copied at a time.
    copies: Arc<Semaphore>,
    /// The work in progress that steps wait for.
    jobs: FuturesUnordered<Pin<Box<dyn Future<Output = JobDone<'a>> + Send + 'a>>>,
    identities: BTreeMap<IdentityQuery<'a>, IdentityState>,
    inputs: Arc<Inputs<'a>>,
    /// The files of other steps that cached steps get.
    fan_in: FanIn,
    archives: &'a RunSource,
    /// Steps that wait for their inputs to be computed.
    without_inputs: Vec<StepIndex>,
    /// Steps that will be found.
    ahead: Ahead,
    /// The cached steps that run, or are about to run.
    running: BTreeMap<StepIndex, CachedStep>,
    /// The steps that are looked up by what they read.
    traced: Traced,
    probes: LateProbes,
    sharing: Sharing<'a>,
    hits: Vec<[u8; 32]>,
    records: Vec<KeyRecord>,
    has_published: bool,
}

/// What the caching of a build works with.
#[derive(Clone, Copy)]
pub(crate) struct CachingScope<'a> {
    pub(crate) plan: &'a BoundPlan,
    pub(crate) cache: Option<&'a BuildCache>,
    pub(crate) remote: Option<&'a dyn SharedResults>,
    pub(crate) archives: &'a RunSource,
    /// The context of the run, and the build, for outputs of steps that are found.
    pub(crate) outputs: Option<(&'a StepContext, &'a BuildRef)>,
    pub(crate) probe_limit: Duration,
}

/// Work that is done.
pub(super) enum JobDone<'a> {
    Identified(IdentityQuery<'a>, IdentityAnswer),
    /// The inputs of steps in the source are known.
    InputsFound,
    /// The files of other steps that a step gets are known.
    StepInputsRead(StepIndex, FanInAnswer),
    /// A step and those that build on it were looked up, and those are found that have a result.
    LookedAhead(StepIndex, LookupRequest, Vec<Expected>),
    LookedUp(StepIndex, LookupOutcome),
    /// The result of the remote cache for a step that the local cache does not have.
    LookedUpRemotely(StepIndex, LookupOutcome),
    /// The result for a step that was looked up by what it read, and its key.
    LookedUpByTrace(StepIndex, Option<CacheKey>, LookupOutcome),
    /// The result of a step that was looked up so, in a run that compares.
    Expected(StepIndex, SnapshotRef),
    /// The outputs of a step that was found were copied.
    OutputsCopied(StepIndex, Found, Arc<StepOutputs>),
    Probed(RunnerIndex, Probe),
    /// Boxed, because every end of an attempt has room for it.
    Published(Box<Published>),
}

impl<'a, R: RunnerSet> Caching<'a, R> {
    /// Returns the caching of a build; `unprobed` are the runners that have not been probed yet.
    pub(super) fn new(runners: &'a R, scope: CachingScope<'a>, unprobed: &[RunnerIndex]) -> Self {
        let CachingScope { plan, cache, archives, probe_limit, .. } = scope;
        let inputs = Arc::new(Inputs::new(scope));
        Self {
            runners,
            probe_limit,
            plan,
            cache,
            scope,
            copies: Arc::new(Semaphore::new(MAX_COPIES)),
            jobs: FuturesUnordered::new(),
            identities: BTreeMap::new(),
            sharing: Sharing::new(scope, Arc::clone(&inputs)),
            inputs,
            fan_in: FanIn::new(),
            archives,
            without_inputs: Vec::new(),
            ahead: Ahead::default(),
            running: BTreeMap::new(),
            traced: Traced::default(),
            probes: LateProbes::new(plan.runners.len(), unprobed),
            hits: Vec::new(),
            records: Vec::new(),
            has_published: false,
        }
    }

    /// Returns the next attempt to start.
    pub(super) fn next_start(&mut self, progress: &mut BuildProgress<'_>, now: Duration) -> Option<Start> {
        if let Some(reason) = progress.stopping() {
            self.probes.give_up(reason);
        }
        loop {
            let start = self.probes.next_released().or_else(|| progress.start_next(now))?;
            let runner = self.plan.step(start.step).runner;
            match self.probes.admit(start, runner) {
                Admission::Start => return Some(start),
                Admission::Probe => self.jobs.push(Box::pin(probe(self.runners, runner, self.probe_limit))),
                Admission::Held => {}
            }
        }
    }

    /// Handles the end of a job.
    pub(super) fn handle(&mut self, done: JobDone<'a>, progress: &mut BuildProgress<'_>, now: Duration) {
        match done {
            JobDone::Identified(query, answer) => self.identified(query, answer, progress, now),
            JobDone::InputsFound => self.inputs_found(progress, now),
            JobDone::StepInputsRead(step, answer) => {
                self.fan_in.insert(step, Some(answer));
                self.look_up_step(step, progress, now);
            }
            JobDone::LookedAhead(step, request, steps) => {
                self.ahead.extend(steps);
                self.look_up_expected(step, request, progress, now);
            }
            JobDone::LookedUp(step, outcome) => self.looked_up(step, outcome, progress, now),
            JobDone::LookedUpRemotely(step, outcome) => self.decided(step, outcome, progress, now),
            JobDone::LookedUpByTrace(step, key, outcome) => {
                self.looked_up_by_trace(step, (key, outcome), progress, now);
            }
            JobDone::Expected(step, snapshot) => self.expects(step, snapshot, progress, now),
            JobDone::OutputsCopied(step, found, outputs) => {
                self.found(step, (found, outputs.take()), progress, now);
            }
            JobDone::Probed(runner, probe) => {
                self.probes.probed(runner, &self.plan.runners[usize::from(runner.0)].name, probe);
            }
            JobDone::Published(published) => self.published(*published, progress, now),
        }
    }

    /// Returns the end of an attempt that did not start.
    pub(super) fn take_report(&mut self) -> Option<AttemptReport> {
        self.probes.take_report()
    }

    /// Returns whether nothing is in progress.
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.sharing.is_empty()
    }

    /// Polls for the next finished job. It must not be called if nothing is in progress.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<JobDone<'a>>> {
        self.sharing.poll(cx);
        match self.jobs.poll_next_unpin(cx) {
            // Nothing that a step waits for: only results are being shared.
            Poll::Ready(None) => Poll::Pending,
            polled => polled,
        }
    }

    /// Waits for the work that must finish before the build's end, and returns the build's data for its
    /// cache, if it has one.
    pub(super) async fn finish(mut self, progress: &BuildProgress<'_>, cancel: &CancellationToken) -> BuildEnd {
        self.jobs.clear();
        self.sharing.finish(cancel).await;
        let Self { plan, hits, records, has_published: published, traced, .. } = self;
        // A run that only compares is no run that could have been saved.
        let costs = if progress.only_verifies() { Vec::new() } else { traced.costs() };
        let limits = plan.cache_limits.iter().map(|(step, limit)| (plan.step(*step).step.key.to_string(), *limit));
        let modes = (plan.cache_mode, limits.collect());
        BuildEnd {
            run_dir: progress.dir(),
            records,
            modes,
            hits,
            costs,
            published,
            exit_code: progress.status().exit_code(),
        }
    }
}

/// Probes a runner.
async fn probe<'a>(runners: &impl RunnerSet, runner: RunnerIndex, limit: Duration) -> JobDone<'a> {
    let probe = caught(probe_within(runners, runner, false, limit)).await.unwrap_or_else(|()| Probe::Unusable {
        reason: "its probe panicked".into(),
        hint: "this is a bug in the runner".into(),
    });
    JobDone::Probed(runner, probe)
}

/// Returns the result of a future, or an error if it panics.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, ()> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(drop)
}
