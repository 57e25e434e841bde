//! Errands: the work between a step's turn and its attempt, and between an attempt's end and the step's end.
//!
//! - A cached step is looked up before it is ready to start. Most lookups return at once, so a series of hits
//!   needs no future. Lookups that wait for an equal step, have much to check, or query a remote cache, are
//!   futures here.
//! - A runner whose steps may all be found in the cache is probed before its first attempt, not before the
//!   build.
//! - The result of a cached step is published before its end is reported.
//!
//! The results go to the build's [`Progress`]. The module knows neither how keys are made nor what the store
//! keeps.

use std::{
    collections::BTreeMap,
    future::Future,
    mem,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;

use super::{
    executor::Report,
    inputs::Inputs,
    policy::{AttemptEnd, Start, Stop},
    progress::Progress,
    sharing::Sharing,
};
use crate::{
    cache::{
        Ask, BasePart, BuildCache, BuildEnd, CacheKey, Cacheable, Flight, Found, KeyParts, Looked, Noted, NotedBase,
        Outcome, Passed, ProjectId, Verdict,
    },
    model::{CacheMissReason, StepIndex},
    plan::{Base, BoundPlan},
    remote_cache::RemoteCache,
    runner::{CacheIdentity, Probe, RunnerIndex, RunnerSet},
    store::Archives,
};

type Identity = Result<Option<CacheIdentity>, Arc<str>>;

/// An image of a runner, or `None` for steps that boot from a snapshot.
type Asked<'a> = (RunnerIndex, Option<&'a str>);

/// The errands of one build. Without a cache, and with every runner probed, they cost one or two checks per
/// step.
pub(super) struct Errands<'a, R> {
    runners: &'a R,
    plan: &'a BoundPlan,
    cache: Option<&'a BuildCache>,
    under_way: FuturesUnordered<Pin<Box<dyn Future<Output = Done<'a>> + Send + 'a>>>,
    identities: BTreeMap<Asked<'a>, Known>,
    /// The cached steps that run, or are about to run.
    running: BTreeMap<StepIndex, Running>,
    /// The probe results, by runner.
    probes: Vec<Probed>,
    /// Attempts whose runner was found usable.
    released: Vec<Start>,
    /// Attempts that ended before they started.
    reports: Vec<Report>,
    hits: Vec<[u8; 32]>,
    noted: Vec<Noted>,
    has_published: bool,
    inputs: Arc<Inputs<'a>>,
    /// Steps that wait for their inputs to be computed.
    without_inputs: Vec<StepIndex>,
    sharing: Sharing<'a>,
}

/// The context of a build's errands.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) plan: &'a BoundPlan,
    pub(super) cache: Option<&'a BuildCache>,
    pub(super) remote: Option<&'a RemoteCache>,
    pub(super) archives: &'a Archives,
}

/// The state of an image's identity.
enum Known {
    /// The query is in progress, and these steps wait for it.
    Asked(Vec<StepIndex>),
    Answered(Identity),
}

/// A running cached step.
struct Running {
    key: CacheKey,
    base: NotedBase,
    mode: Arc<str>,
    inputs: Option<[u8; 32]>,
    flight: Option<Flight>,
}

/// The state of a runner's probe.
enum Probed {
    Usable,
    /// Not probed yet.
    Late,
    /// The probe is in progress, and these attempts wait for it.
    Asked(Vec<Start>),
    Unusable(Arc<str>),
}

/// A finished errand.
pub(super) enum Done<'a> {
    Identified(Asked<'a>, Identity),
    /// The inputs of steps in the source are known.
    InputsFound,
    LookedUp(StepIndex, Outcome),
    /// The result of the remote cache for a step that the local cache does not have.
    AskedFor(StepIndex, Outcome),
    Probed(RunnerIndex, Probe),
    /// The step's last attempt, and the cache entry of the step, if it was published.
    Published(Report, Option<(CacheKey, Found)>),
}

/// Returns whether `step` is looked up in a cache, if there is one.
pub(crate) fn is_cached(plan: &BoundPlan, step: StepIndex) -> bool {
    plan.runner(step).capabilities.layers && Cacheable::of(&plan.step(step).step).is_some()
}

/// The parts of a step's key that are not in the plan.
pub(super) struct Surroundings<'a> {
    pub(super) base: BasePart<'a>,
    pub(super) mode: &'a str,
    pub(super) project: &'a ProjectId,
    pub(super) inputs: Option<&'a [u8; 32]>,
}

/// Returns the key of `step`, whose policy has `dsl_key`.
pub(super) fn key_of(plan: &BoundPlan, step: StepIndex, dsl_key: &str, surroundings: &Surroundings<'_>) -> CacheKey {
    let Surroundings { base, mode, project, inputs } = *surroundings;
    let (bound, runner) = (plan.step(step), plan.runner(step));
    let runner_args = runner.args.in_keys(bound.step.runner_args.as_ref());
    let parts = KeyParts {
        dsl_key,
        base,
        command: &bound.step.cmd,
        env: &bound.env,
        runner: &runner.name,
        runner_version: runner.cache_version,
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        mode,
        runner_args: &runner_args,
        project: project.as_str(),
        inputs,
    };
    parts.key()
}

impl<'a, R: RunnerSet> Errands<'a, R> {
    /// Returns the errands of a build; `unprobed` are the runners that have not been probed yet.
    pub(super) fn new(runners: &'a R, scope: Scope<'a>, unprobed: &[RunnerIndex]) -> Self {
        let Scope { plan, cache, remote, archives } = scope;
        let inputs = Arc::new(Inputs::new(plan, cache, archives));
        let probe = |index| if unprobed.contains(&index) { Probed::Late } else { Probed::Usable };
        Self {
            runners,
            plan,
            cache,
            under_way: FuturesUnordered::new(),
            identities: BTreeMap::new(),
            running: BTreeMap::new(),
            probes: (0..).map(RunnerIndex).take(plan.runners.len()).map(probe).collect(),
            released: Vec::new(),
            reports: Vec::new(),
            hits: Vec::new(),
            noted: Vec::new(),
            has_published: false,
            sharing: Sharing::new(plan, cache, remote, Arc::clone(&inputs)),
            inputs,
            without_inputs: Vec::new(),
        }
    }

    /// Looks up at most `limit` steps, and returns their number.
    pub(super) fn look_up(&mut self, progress: &mut Progress<'_>, now: Duration, limit: usize) -> usize {
        let mut count = 0;
        while count < limit
            && let Some(step) = progress.look_up_next()
        {
            self.look_up_step(step, progress, now);
            count += 1;
        }
        count
    }

    /// Returns the next attempt to start.
    pub(super) fn next_start(&mut self, progress: &mut Progress<'_>, now: Duration) -> Option<Start> {
        if let Some(stop) = progress.stopping() {
            self.give_up_waiting(stop);
        }
        loop {
            let start = self.released.pop().or_else(|| progress.start_next(now))?;
            let runner = self.plan.step(start.step).runner;
            match &mut self.probes[usize::from(runner.0)] {
                Probed::Usable => return Some(start),
                Probed::Asked(waiting) => waiting.push(start),
                Probed::Unusable(message) => self.reports.push(unusable(start, message)),
                late @ Probed::Late => {
                    *late = Probed::Asked(vec![start]);
                    let runners = self.runners;
                    self.under_way.push(Box::pin(async move {
                        let probe = caught(runners.probe(runner)).await.unwrap_or_else(|()| Probe::Unusable {
                            reason: "its check of this machine panicked".into(),
                            hint: "that is a bug in it".into(),
                        });
                        Done::Probed(runner, probe)
                    }));
                }
            }
        }
    }

    /// Returns whether the cache needs a snapshot of `step`.
    pub(super) fn publishes(&self, step: StepIndex) -> bool {
        !self.running.is_empty() && self.running.contains_key(&step)
    }

    /// Handles an attempt's end. The result of a cached step is published first.
    pub(super) fn attempt_ended(&mut self, report: Report, progress: &mut Progress<'_>, now: Duration) {
        let step = report.start.step;
        if !self.publishes(step) {
            progress.attempt_ended(report, now);
            return;
        }
        if report.end == AttemptEnd::Exited(0)
            && let Some(snapshot) = report.snapshot.clone()
            && let (Some(cache), Some(running)) = (self.cache, self.running.remove(&step))
        {
            let Running { key, mode, flight, .. } = running;
            let (runners, bound) = (self.runners, self.plan.step(step));
            let log = progress.close_log(report.start);
            let passed = Passed { key, step: Arc::clone(&bound.step.key), snapshot, log, flight };
            self.under_way.push(Box::pin(async move {
                let published = match identity(runners, (bound.runner, None)).await {
                    Ok(Some(identity)) if identity.mode == mode => cache.publish(passed).await,
                    Ok(_) => Err("the runner works otherwise than it said it would".into()),
                    Err(message) => Err(message),
                };
                let found = published.inspect_err(|message| {
                    tracing::warn!(step = &*bound.step.key, "a result is not cached: {message}");
                });
                Done::Published(report, found.ok().map(|found| (key, found)))
            }));
            return;
        }
        progress.attempt_ended(report, now);
        if progress.has_ended(step) {
            self.running.remove(&step);
        }
    }

    /// Handles an errand's end.
    pub(super) fn done(&mut self, done: Done<'a>, progress: &mut Progress<'_>, now: Duration) {
        match done {
            Done::Identified(asked, identity) => {
                let answered = self.identities.insert(asked, Known::Answered(identity));
                if let Some(Known::Asked(waiting)) = answered {
                    waiting.into_iter().for_each(|step| self.look_up_step(step, progress, now));
                }
            }
            Done::InputsFound => {
                let waiting = mem::take(&mut self.without_inputs);
                waiting.into_iter().for_each(|step| self.look_up_step(step, progress, now));
            }
            Done::LookedUp(step, outcome) => self.looked_up(step, outcome, progress, now),
            Done::AskedFor(step, outcome) => self.decided(step, outcome, progress, now),
            Done::Probed(runner, probe) => {
                let probed = match probe {
                    Probe::Usable { .. } => Probed::Usable,
                    Probe::Unusable { reason, hint } => {
                        let name = &self.plan.runners[usize::from(runner.0)].name;
                        Probed::Unusable(format!("runner `{name}` can't work here: {reason}; {hint}").into())
                    }
                };
                if let Probed::Asked(waiting) = mem::replace(&mut self.probes[usize::from(runner.0)], probed) {
                    self.released.extend(waiting.into_iter().rev());
                }
            }
            Done::Published(report, published) => {
                let step = report.start.step;
                progress.attempt_ended(report, now);
                if let Some((key, found)) = published {
                    self.has_published = true;
                    progress.keep_snapshot(step);
                    self.sharing.share(step, key, found);
                }
            }
        }
    }

    /// Returns the end of an attempt that did not start.
    pub(super) fn take_report(&mut self) -> Option<Report> {
        self.reports.pop()
    }

    /// Returns whether no errand is in progress.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty() && self.sharing.is_empty()
    }

    /// Polls for the next finished errand. It must not be called if no errand is in progress.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Done<'a>>> {
        self.sharing.poll(cx);
        match self.under_way.poll_next_unpin(cx) {
            // Nothing that a step waits for: only results are being shared.
            Poll::Ready(None) => Poll::Pending,
            polled => polled,
        }
    }

    /// Waits for the work that must finish before the build's end, and returns the build's data for its
    /// cache, if it has one.
    pub(super) async fn finish(mut self, progress: &Progress<'_>, cancel: &CancellationToken) -> BuildEnd {
        self.under_way.clear();
        self.sharing.finish(cancel).await;
        let Self { hits, noted, has_published: published, .. } = self;
        BuildEnd { run_dir: progress.dir(), noted, hits, published, exit_code: progress.verdict().exit_code() }
    }

    fn look_up_step(&mut self, step: StepIndex, progress: &mut Progress<'_>, now: Duration) {
        let bound = self.plan.step(step);
        let image = match self.plan.base(step) {
            Base::Image(image) => Some(image),
            Base::Snapshot(_) => None,
        };
        let asked = (bound.runner, image);
        let identity = match self.identities.get_mut(&asked) {
            Some(Known::Answered(identity)) => identity.clone(),
            Some(Known::Asked(waiting)) => return waiting.push(step),
            None => {
                self.identities.insert(asked, Known::Asked(vec![step]));
                let runners = self.runners;
                self.under_way.push(Box::pin(async move { Done::Identified(asked, identity(runners, asked).await) }));
                return;
            }
        };
        let Some(inputs) = self.inputs.get(step) else {
            self.without_inputs.push(step);
            if self.without_inputs.len() == 1 {
                let inputs = Arc::clone(&self.inputs);
                self.under_way.push(Box::pin(async move {
                    inputs.find().await;
                    Done::InputsFound
                }));
            }
            return;
        };
        let (cache, running, ask) = match inputs.and_then(|inputs| self.ask(step, identity, inputs, progress)) {
            Ok(ask) => ask,
            Err(message) => {
                return progress.missed(step, CacheMissReason::Unavailable, Some(message), now);
            }
        };
        self.running.insert(step, running);
        if cache.is_refreshed(&bound.step.key) {
            let refreshed = Outcome::Missed { reason: CacheMissReason::Refresh, message: None, flight: None };
            return self.decided(step, refreshed, progress, now);
        }
        match cache.look_up(ask) {
            Looked::Now(outcome) => self.looked_up(step, outcome, progress, now),
            Looked::Later(outcome) => {
                self.under_way.push(Box::pin(async move { Done::LookedUp(step, outcome.await) }));
            }
        }
    }

    /// Returns the question to the cache for `step`, or the reason why the cache cannot be queried.
    fn ask(
        &self,
        step: StepIndex,
        identity: Identity,
        inputs: Option<[u8; 32]>,
        progress: &Progress<'_>,
    ) -> Result<(&'a BuildCache, Running, Ask), Arc<str>> {
        let bound = self.plan.step(step);
        let CacheIdentity { image, mode } = identity?.ok_or("the runner's steps can't be cached")?;
        let cache = self.cache.ok_or("there is no cache")?;
        let Cacheable { dsl_key, max_age } = Cacheable::of(&bound.step).ok_or("the step has no cache key")?;
        let base = match (self.plan.base(step), image) {
            (Base::Snapshot(parent), _) => {
                let snapshot = Arc::clone(&progress.snapshot(parent).ok_or("the parent left no snapshot")?.0);
                NotedBase::Parent { step: Arc::clone(&self.plan.step(parent).step.key), snapshot }
            }
            (Base::Image(name), Some(identity)) => {
                // Without a name, it is the default image, which is part of the plan.
                let name = bound.step.image.clone().unwrap_or_else(|| name.into());
                NotedBase::Image { name, identity }
            }
            (Base::Image(_), None) => return Err("the runner does not tell what the image stands for".into()),
        };
        let part = match &base {
            NotedBase::Image { identity, .. } => BasePart::Image(identity),
            NotedBase::Parent { snapshot, .. } => BasePart::Snapshot(snapshot),
        };
        let surroundings = Surroundings { base: part, mode: &mode, project: cache.project(), inputs: inputs.as_ref() };
        let key = key_of(self.plan, step, dsl_key, &surroundings);
        Ok((cache, Running { key, base, mode, inputs, flight: None }, Ask { key, max_age }))
    }

    /// Handles the result of the local cache, and queries the remote cache on a miss.
    fn looked_up(&mut self, step: StepIndex, outcome: Outcome, progress: &mut Progress<'_>, now: Duration) {
        let key = self.running.get(&step).map(|running| running.key);
        match (outcome, key) {
            (Outcome::Missed { reason, message, flight }, Some(key)) => {
                let parent = match self.plan.base(step) {
                    Base::Snapshot(parent) => progress.snapshot(parent).cloned(),
                    Base::Image(_) => None,
                };
                let Some(asking) = self.sharing.ask(step, key, parent, self.modes()) else {
                    return self.decided(step, Outcome::Missed { reason, message, flight }, progress, now);
                };
                self.under_way.push(Box::pin(async move {
                    let outcome = match asking.await {
                        None => Outcome::Missed { reason, message, flight },
                        Some(found) => {
                            if let Some(flight) = flight {
                                flight.land(found.clone());
                            }
                            Outcome::Found(found)
                        }
                    };
                    Done::AskedFor(step, outcome)
                }));
            }
            (outcome, key) => {
                if let (Outcome::Found(found), Some(key)) = (&outcome, key) {
                    self.sharing.found_here(step, key, found);
                }
                self.decided(step, outcome, progress, now);
            }
        }
    }

    /// Returns the modes of the runners. Runners that have not been queried yet are queried.
    fn modes(&self) -> impl Future<Output = BTreeMap<RunnerIndex, Arc<str>>> + use<'a, R> {
        let known = self.identities.iter().filter_map(|((runner, _), known)| match known {
            Known::Answered(Ok(Some(identity))) => Some((*runner, Arc::clone(&identity.mode))),
            _ => None,
        });
        let mut modes: BTreeMap<_, _> = known.collect();
        let unknown: Vec<_> = self.sharing.runners().filter(|runner| !modes.contains_key(runner)).collect();
        let runners = self.runners;
        async move {
            for runner in unknown {
                if let Ok(Some(identity)) = identity(runners, (runner, None)).await {
                    modes.insert(runner, identity.mode);
                }
            }
            modes
        }
    }

    fn decided(&mut self, step: StepIndex, outcome: Outcome, progress: &mut Progress<'_>, now: Duration) {
        match outcome {
            Outcome::Found(found) => {
                self.sharing.found(step);
                let Found { snapshot, run, step: made_by, created_at } = found;
                self.note(step, Verdict::Hit { run, step: made_by, created_at });
                if let Some(running) = self.running.remove(&step)
                    && progress.found(step, snapshot, now)
                {
                    self.hits.push(running.key.0);
                }
            }
            Outcome::Missed { reason, message, flight } => {
                self.note(step, Verdict::Miss { reason, message: message.clone() });
                if let Some(running) = self.running.get_mut(&step) {
                    running.flight = flight;
                }
                progress.missed(step, reason, message, now);
                if progress.has_ended(step) {
                    self.running.remove(&step);
                }
            }
        }
    }

    /// Records the result of a lookup.
    fn note(&mut self, step: StepIndex, verdict: Verdict) {
        let Some(Running { key, base, mode, inputs, .. }) = self.running.get(&step) else { return };
        let (bound, runner) = (self.plan.step(step), self.plan.runner(step));
        self.noted.push(Noted {
            step: Arc::clone(&bound.step),
            env: Arc::clone(&bound.env),
            base: base.clone(),
            key: *key,
            runner: Arc::clone(&runner.name),
            runner_version: runner.cache_version,
            mode: Arc::clone(mode),
            runner_args: runner.args.in_keys(bound.step.runner_args.as_ref()),
            inputs: *inputs,
            verdict,
        });
    }

    /// Ends the attempts that wait for a probe, because the build stops.
    fn give_up_waiting(&mut self, stop: Stop) {
        let end = if stop == Stop::TimedOut { AttemptEnd::TimedOut } else { AttemptEnd::Canceled };
        for probe in &mut self.probes {
            if let Probed::Asked(waiting) = probe {
                let given_up = waiting.drain(..).map(|start| Report {
                    start,
                    end,
                    snapshot: None,
                    artifacts: Vec::new(),
                    message: None,
                });
                self.reports.extend(given_up);
            }
        }
    }
}

/// Queries a runner for an image's identity.
async fn identity(runners: &impl RunnerSet, (runner, image): Asked<'_>) -> Identity {
    match caught(runners.cache_identity(runner, image)).await {
        Ok(identity) => identity.map_err(|error| error.to_line().into()),
        Err(()) => Err("the runner panicked, which is a bug in it".into()),
    }
}

/// Returns the result of a future, or an error if it panics.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, ()> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(drop)
}

fn unusable(start: Start, message: &Arc<str>) -> Report {
    let end = AttemptEnd::Infrastructure { retryable: false };
    Report { start, end, snapshot: None, artifacts: Vec::new(), message: Some(Arc::clone(message)) }
}
