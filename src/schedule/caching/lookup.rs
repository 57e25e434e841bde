//! Lookups: what a cached step's key is made of, and what the cache has under it.
//!
//! A lookup first needs the identity of the step's image and the digest of its inputs. Both are queried once
//! per build, and steps wait for them.

use std::{borrow::Cow, collections::BTreeMap, future::Future, mem, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use super::{
    Caching, CachingScope, JobDone, PANICKED,
    ahead::settle,
    caught,
    key::{KeyContext, ServiceIds, args_in_keys, is_looked_up, is_traced, key_of},
};
use crate::{
    awake,
    cache::{
        BasePart, BaseRecord, BuildCache, CacheKey, CacheVerdict, Cacheable, Flight, Found, KeyRecord, Lookup,
        LookupOutcome, LookupRequest, StepInputs,
    },
    model::{Activity, CacheMissReason, StepIndex},
    outputs::Collected,
    plan::{Base, BoundService, ServiceSource},
    runner::{CacheIdentity, RunnerIndex, RunnerSet},
    schedule::{outputs::outputs_of, progress::BuildProgress},
};

/// A runner, and an image of a root step, or `None` for steps that boot from a snapshot.
pub(super) type IdentityQuery<'a> = (RunnerIndex, Option<&'a str>);

pub(super) type IdentityAnswer = Result<Option<CacheIdentity>, Arc<str>>;

/// The state of a query.
pub(super) enum IdentityState {
    /// The query is in progress, and these steps wait for it.
    InProgress(Vec<StepIndex>),
    Answered(IdentityAnswer),
}

/// Returns why a step with this service is not looked up.
pub(super) fn unknown_service(name: &str) -> Arc<str> {
    format!("it is not known what service `{name}` boots from").into()
}

/// A cached step that runs or is looked up.
pub(super) struct CachedStep {
    pub(super) key: CacheKey,
    pub(super) base: BaseRecord,
    pub(super) mode: Arc<str>,
    pub(super) inputs: Option<[u8; 32]>,
    pub(super) services: ServiceIds,
    /// The files of other steps.
    pub(super) step_inputs: Option<Arc<StepInputs>>,
    pub(super) flight: Option<Flight>,
}

impl<'a, R: RunnerSet> Caching<'a, R> {
    /// Looks up at most `limit` steps, and returns their number.
    pub(in crate::schedule) fn look_up(
        &mut self,
        progress: &mut BuildProgress<'_>,
        now: Duration,
        limit: usize,
    ) -> usize {
        let mut count = 0;
        while count < limit
            && let Some(step) = progress.look_up_next()
        {
            self.look_up_step(step, progress, now);
            count += 1;
        }
        count
    }

    /// Handles the answer to a query of an image's identity.
    pub(super) fn identified(
        &mut self,
        query: IdentityQuery<'a>,
        answer: IdentityAnswer,
        progress: &mut BuildProgress<'_>,
        now: Duration,
    ) {
        let previous = self.identities.insert(query, IdentityState::Answered(answer));
        if let Some(IdentityState::InProgress(waiting)) = previous {
            waiting.into_iter().for_each(|step| self.look_up_step(step, progress, now));
        }
    }

    /// Looks up the steps that waited for their inputs.
    pub(super) fn inputs_found(&mut self, progress: &mut BuildProgress<'_>, now: Duration) {
        let waiting = mem::take(&mut self.without_inputs);
        waiting.into_iter().for_each(|step| self.look_up_step(step, progress, now));
    }

    pub(super) fn look_up_step(&mut self, step: StepIndex, progress: &mut BuildProgress<'_>, now: Duration) {
        let bound = self.plan.step(step);
        if progress.only_verifies() && (self.cache.is_none() || !is_looked_up(self.plan, step)) {
            let why = "it is not looked up".into();
            return progress.missed(step, CacheMissReason::Unavailable, Some(why), now);
        }
        if is_traced(self.plan, step) {
            return self.look_up_by_trace(step, progress, now);
        }
        let image = match self.plan.base(step) {
            Base::Image(image) => Some(image),
            Base::Snapshot(_) => None,
        };
        let Some(identity) = self.identity_for(step, (bound.runner, image)) else { return };
        // Each is asked for in turn: few steps have services, and most of those share their images.
        for service in self.plan.services(step) {
            let ServiceSource::Image(image) = &service.source else { continue };
            if self.identity_for(step, (bound.runner, Some(image))).is_none() {
                return;
            }
        }
        let Some(inputs) = self.inputs.get(step).filter(|_| !self.is_lineage_waiting(step)) else {
            self.without_inputs.push(step);
            if self.without_inputs.len() == 1 {
                let inputs = Arc::clone(&self.inputs);
                self.jobs.push(Box::pin(async move {
                    inputs.find().await;
                    JobDone::InputsFound
                }));
            }
            return;
        };
        let Some(step_inputs) = self.step_inputs(step, progress) else { return };
        let files = inputs.and_then(|inputs| Ok((inputs, step_inputs?)));
        let requested = files.and_then(|files| self.request(step, identity, files, progress));
        let (cache, cached_step, request) = match requested {
            Ok(request) => request,
            Err(message) => {
                return progress.missed(step, CacheMissReason::Unavailable, Some(message), now);
            }
        };
        self.running.insert(step, cached_step);
        if bound.is_refreshed {
            let refreshed = LookupOutcome::Missed { reason: CacheMissReason::Refresh, message: None, flight: None };
            return self.decided(step, refreshed, progress, now);
        }
        if let Some(found) = self.ahead.take(step, request.key) {
            return self.looked_up(step, LookupOutcome::Found(found), progress, now);
        }
        let Some(mut steps) = self.look_ahead(step, request, cache) else {
            return self.look_up_alone(step, request, cache, progress, now);
        };
        if settle(&mut steps, |key| cache.is_intact(key)) {
            self.ahead.extend(steps);
            return self.look_up_expected(step, request, progress, now);
        }
        self.jobs.push(Box::pin(async move {
            let settled = cache.check(move |check| {
                settle(&mut steps, check);
                steps
            });
            JobDone::LookedAhead(step, request, settled.await.unwrap_or_default())
        }));
    }

    /// Returns the answer to a query. If there is none yet, `step` is looked up again when it is there.
    fn identity_for(&mut self, step: StepIndex, query: IdentityQuery<'a>) -> Option<IdentityAnswer> {
        match self.identities.get_mut(&query) {
            Some(IdentityState::Answered(identity)) => return Some(identity.clone()),
            Some(IdentityState::InProgress(waiting)) => waiting.push(step),
            None => {
                self.identities.insert(query, IdentityState::InProgress(vec![step]));
                let (runners, limit) = (self.runners, self.probe_limit);
                let bus = self.scope.outputs.map(|(context, _)| &context.event_bus);
                self.jobs.push(Box::pin(async move {
                    let asking = identity(runners, limit, query);
                    let answer = match bus {
                        Some(bus) => bus.reporting(None, || Some((Activity::ResolvingImage, None)), asking).await,
                        None => asking.await,
                    };
                    JobDone::Identified(query, answer)
                }));
            }
        }
        None
    }

    /// Returns what the services of a step boot from, or the reason why that is not known.
    fn service_ids(&self, step: StepIndex, progress: &BuildProgress<'_>) -> Result<ServiceIds, Arc<str>> {
        let runner = self.plan.step(step).runner;
        let id = |service: &'a BoundService| {
            let id = match &service.source {
                ServiceSource::Image(image) => match self.identities.get(&(runner, Some(&**image))) {
                    Some(IdentityState::Answered(answer)) => answer.clone()?.and_then(|identity| identity.image),
                    _ => None,
                },
                ServiceSource::Step(seed) => progress.snapshot(*seed).map(|snapshot| Arc::clone(&snapshot.0)),
            };
            let id = id.ok_or_else(|| unknown_service(&service.name))?;
            Ok((Arc::clone(&service.name), id))
        };
        self.plan.services(step).iter().map(id).collect()
    }

    /// Looks up a step after those that build on it.
    pub(super) fn look_up_expected(
        &mut self,
        step: StepIndex,
        request: LookupRequest,
        progress: &mut BuildProgress<'_>,
        now: Duration,
    ) {
        match (self.ahead.take(step, request.key), self.cache) {
            (Some(found), _) => self.looked_up(step, LookupOutcome::Found(found), progress, now),
            (None, Some(cache)) => self.look_up_alone(step, request, cache, progress, now),
            (None, None) => {
                let reason = CacheMissReason::Unavailable;
                self.decided(step, LookupOutcome::Missed { reason, message: None, flight: None }, progress, now);
            }
        }
    }

    /// Looks up a step that is not found ahead: it has no result, or one that is damaged, or an equal step is
    /// in flight.
    fn look_up_alone(
        &mut self,
        step: StepIndex,
        request: LookupRequest,
        cache: &'a BuildCache,
        progress: &mut BuildProgress<'_>,
        now: Duration,
    ) {
        match cache.look_up(request) {
            Lookup::Now(outcome) => self.looked_up(step, outcome, progress, now),
            Lookup::Later(outcome) => {
                self.jobs.push(Box::pin(async move { JobDone::LookedUp(step, outcome.await) }));
            }
        }
    }

    /// Returns the request to the cache for `step`, or the reason why the cache cannot be queried.
    fn request(
        &self,
        step: StepIndex,
        identity: IdentityAnswer,
        (inputs, step_inputs): (Option<[u8; 32]>, Option<Arc<StepInputs>>),
        progress: &BuildProgress<'_>,
    ) -> Result<(&'a BuildCache, CachedStep, LookupRequest), Arc<str>> {
        let bound = self.plan.step(step);
        let CacheIdentity { image, mode } = identity?.ok_or("the runner does not support caching")?;
        let cache = self.cache.ok_or("there is no cache")?;
        let Cacheable { dsl_key, max_age } = Cacheable::of(&bound.step).ok_or("the step has no cache key")?;
        let base = match (self.plan.base(step), image) {
            (Base::Snapshot(parent), _) => {
                let snapshot = Arc::clone(&progress.snapshot(parent).ok_or("the parent step has no snapshot")?.0);
                BaseRecord::Parent { step: Arc::clone(&self.plan.step(parent).step.key), snapshot }
            }
            (Base::Image(name), Some(identity)) => {
                // Without a name, it is the default image, which is part of the plan.
                let name = bound.step.image.clone().unwrap_or_else(|| name.into());
                BaseRecord::Image { name, identity }
            }
            (Base::Image(_), None) => return Err("the runner does not report the identity of the image".into()),
        };
        let part = match &base {
            BaseRecord::Image { identity, .. } => BasePart::Image(identity),
            BaseRecord::Parent { snapshot, .. } => BasePart::Snapshot(snapshot),
        };
        let (project, source_times) = (cache.project(), cache.source_times());
        let services = self.service_ids(step, progress)?;
        let digest = step_inputs.as_ref().map(|inputs| inputs.digest());
        let (inputs_part, step_inputs_part) = (inputs.as_ref(), digest.as_ref());
        let context = KeyContext {
            base: part,
            mode: &mode,
            project,
            source_times,
            source_ignore: cache.source_ignore(),
            inputs: inputs_part,
            step_inputs: step_inputs_part,
            services: &services,
        };
        let key = key_of(self.plan, step, dsl_key, &context);
        let cached = CachedStep { key, base, mode, inputs, step_inputs, services, flight: None };
        Ok((cache, cached, LookupRequest { key, max_age }))
    }

    /// Handles the result of the local cache, and queries the remote cache on a miss.
    pub(super) fn looked_up(
        &mut self,
        step: StepIndex,
        outcome: LookupOutcome,
        progress: &mut BuildProgress<'_>,
        now: Duration,
    ) {
        let key = self.running.get(&step).map(|running| running.key);
        match (outcome, key) {
            (LookupOutcome::Missed { reason, message, flight }, Some(key)) => {
                let parent = match self.plan.base(step) {
                    Base::Snapshot(parent) => progress.snapshot(parent).cloned(),
                    Base::Image(_) => None,
                };
                let Some(query) = self.sharing.query(step, key, parent, self.modes()) else {
                    return self.decided(step, LookupOutcome::Missed { reason, message, flight }, progress, now);
                };
                self.jobs.push(Box::pin(async move {
                    let outcome = match query.await {
                        None => LookupOutcome::Missed { reason, message, flight },
                        Some(found) => {
                            if let Some(flight) = flight {
                                flight.land(found.clone());
                            }
                            LookupOutcome::Found(found)
                        }
                    };
                    JobDone::LookedUpRemotely(step, outcome)
                }));
            }
            (outcome, key) => {
                if let (LookupOutcome::Found(found), Some(key)) = (&outcome, key) {
                    self.sharing.found_here(step, key, found);
                }
                self.decided(step, outcome, progress, now);
            }
        }
    }

    /// Returns the modes of the runners. Runners that have not been queried yet are queried.
    fn modes(&self) -> impl Future<Output = BTreeMap<RunnerIndex, Arc<str>>> + use<'a, R> {
        let mut modes = self.known_modes();
        let unknown: Vec<_> = self.sharing.runners().filter(|runner| !modes.contains_key(runner)).collect();
        let (runners, limit) = (self.runners, self.probe_limit);
        async move {
            for runner in unknown {
                if let Ok(Some(identity)) = identity(runners, limit, (runner, None)).await {
                    modes.insert(runner, identity.mode);
                }
            }
            modes
        }
    }

    /// Ends a step that was found, and allows another to start.
    pub(super) fn decided(
        &mut self,
        step: StepIndex,
        outcome: LookupOutcome,
        progress: &mut BuildProgress<'_>,
        now: Duration,
    ) {
        match outcome {
            LookupOutcome::Found(found) => {
                self.sharing.found(step);
                let CachingScope { plan, archives, outputs, .. } = self.scope;
                let wanted = outputs.and_then(|(context, build)| {
                    let outputs = outputs_of(plan, build, archives, step, &context.secrets)?;
                    Some((context, outputs))
                });
                let Some((context, outputs)) = wanted else {
                    return self.found(step, (found, Collected::default()), progress, now);
                };
                let (runners, runner, snapshot) = (self.runners, plan.step(step).runner, found.snapshot.clone());
                let mut context = context.clone();
                context.outputs = Some(Arc::clone(&outputs));
                context.found_step = Some(Arc::clone(&plan.step(step).step));
                let copies = Arc::clone(&self.copies);
                self.jobs.push(Box::pin(async move {
                    let _permit = copies.acquire().await;
                    // A runner that panics has copied nothing.
                    let _ = caught(runners.copy_outputs(runner, &context, snapshot)).await;
                    JobDone::OutputsCopied(step, found, outputs)
                }));
            }
            LookupOutcome::Missed { reason, message, flight } => {
                self.record(step, CacheVerdict::Miss { reason, message: message.clone() });
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

    /// Ends a step that was found.
    pub(super) fn found(
        &mut self,
        step: StepIndex,
        (found, collected): (Found, Collected),
        progress: &mut BuildProgress<'_>,
        now: Duration,
    ) {
        let Found { snapshot, run, step: made_by, created_at, just_used } = found;
        let verdict = CacheVerdict::Hit { run, step: made_by, created_at };
        if self.traced.has(step) {
            self.traced.saved(&self.plan.step(step).step.key);
            self.record_traced(step, verdict, progress);
        } else {
            self.record(step, verdict);
        }
        let key = self.running.remove(&step).map(|running| running.key).or_else(|| self.traced.found(step));
        if let Some(key) = key
            && progress.found(step, snapshot, collected, now)
            && !just_used
        {
            self.hits.push(key.0);
        }
    }

    /// Records the result of a lookup.
    fn record(&mut self, step: StepIndex, verdict: CacheVerdict) {
        let Some(CachedStep { key, base, mode, inputs, step_inputs, services, .. }) = self.running.get(&step) else {
            return;
        };
        let (bound, runner) = (self.plan.step(step), self.plan.runner(step));
        let mut base = base.clone();
        // As in the journal: `hm why` and reports print it.
        if let (BaseRecord::Image { name, identity }, Some((context, _))) = (&mut base, self.scope.outputs) {
            for text in [name, identity] {
                if let Cow::Owned(masked) = context.event_bus.masked_text(text) {
                    *text = masked.into();
                }
            }
        }
        self.records.push(KeyRecord {
            step: Arc::clone(&bound.step),
            env: Arc::clone(&bound.env),
            base,
            key: *key,
            runner: Arc::clone(&runner.name),
            runner_version: runner.cache_version,
            mode: Arc::clone(mode),
            runner_args: args_in_keys(self.plan, step, services),
            inputs: *inputs,
            step_inputs: step_inputs.clone(),
            by_trace: false,
            verdict,
        });
    }
}

/// Queries a runner for an image's identity, and waits at most for `limit`.
pub(super) async fn identity(
    runners: &impl RunnerSet,
    limit: Duration,
    (runner, image): IdentityQuery<'_>,
) -> IdentityAnswer {
    let asked: BoxFuture<'_, _> = Box::pin(runners.cache_identity(runner, image));
    match caught(awake::timeout(limit, asked)).await {
        Ok(Some(identity)) => identity.map_err(|error| error.to_line().into()),
        Ok(None) => Err(format!("the runner did not answer within {} s", limit.as_secs_f64()).into()),
        Err(()) => Err(PANICKED.into()),
    }
}
