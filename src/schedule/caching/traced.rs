//! Steps that are looked up by what they read, and their results: the mode `auto`.
//!
//! The runner compares what a step read in earlier runs with what it would read now, and names the key of a
//! result. From there on such a result is one like any other. See `docs/design/trace-cache.md`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::{
    Caching, JobDone, PANICKED, caught,
    key::{ServiceIds, args_in_keys},
    publish::Published,
};
use crate::{
    cache::{
        BaseRecord, BuildCache, CacheKey, CacheVerdict, CostChange, KeyRecord, Lookup, LookupOutcome, LookupRequest,
        Passed, why_left_out,
    },
    ir::EdgeKind,
    model::{CacheMissReason, SnapshotRef, StepIndex},
    outputs::Collected,
    plan::{Base, SnapshotUse},
    runner::{Expected, RunnerSet, TraceLookup, Verification},
    schedule::{executor::AttemptReport, policy::AttemptEnd, progress::BuildProgress},
    store::TracingCost,
};

/// The most steps that are looked up at a time: each look-up reads files, and takes a process.
const MAX_LOOKUPS: usize = 4;

/// The steps of a build that are looked up by what they read.
#[derive(Debug)]
pub(super) struct Traced {
    /// Those that have not ended. With the key of their result, if one was found.
    steps: BTreeMap<StepIndex, Option<CacheKey>>,
    /// The results of those that run to be compared with them.
    expected: BTreeMap<StepIndex, SnapshotRef>,
    lookups: Arc<Semaphore>,
    /// What tracing took and saved in earlier runs, by key. `None` if it was not read yet.
    known_costs: Option<BTreeMap<String, TracingCost>>,
    /// What it took and saved in this run.
    costs: Vec<(Arc<str>, CostChange)>,
}

impl Default for Traced {
    fn default() -> Self {
        Self {
            steps: BTreeMap::new(),
            expected: BTreeMap::new(),
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            known_costs: None,
            costs: Vec::new(),
        }
    }
}

impl Traced {
    /// Returns whether a step that has not ended is one of them.
    pub(super) fn has(&self, step: StepIndex) -> bool {
        !self.steps.is_empty() && self.steps.contains_key(&step)
    }

    /// Records that a step was found.
    pub(super) fn saved(&mut self, key: &Arc<str>) {
        self.costs.push((Arc::clone(key), CostChange::Saved));
    }

    /// Returns what tracing took and saved in this run, by key.
    pub(super) fn costs(self) -> Vec<(Arc<str>, CostChange)> {
        self.costs
    }

    /// Returns the key of the result of a step that ends because of it.
    pub(super) fn found(&mut self, step: StepIndex) -> Option<CacheKey> {
        self.steps.remove(&step).flatten()
    }
}

impl<R: RunnerSet> Caching<'_, R> {
    /// Returns whether the trace of a step's attempt is kept with its result: only that of a first attempt. A
    /// result that needs luck is not reused.
    pub(in crate::schedule) fn keeps_trace(&self, step: StepIndex, attempt: u32) -> bool {
        attempt == 1 && self.traced.has(step)
    }

    /// Returns the result that a step's attempt is compared with: only a first attempt is.
    pub(in crate::schedule) fn expected(&self, step: StepIndex, attempt: u32) -> Option<Box<Expected>> {
        let snapshot = self.traced.expected.get(&step).filter(|_| attempt == 1)?.clone();
        Some(Box::new(Expected { snapshot, verification: self.verification()? }))
    }

    /// Returns why a step is left untraced, if it is: tracing takes more than it saves. What builds in a step
    /// would have nothing to be found over, so only those are in which no other one builds.
    fn why_left_out(&mut self, step: StepIndex) -> Option<String> {
        if self.plan.dag.children(step).iter().any(|link| link.kind == EdgeKind::BuildsIn) {
            return None;
        }
        let key = &*self.plan.step(step).step.key;
        let costs = self
            .traced
            .known_costs
            .get_or_insert_with(|| self.cache.map(BuildCache::tracing_costs).unwrap_or_default());
        why_left_out(costs.get(key)?)
    }

    fn verification(&self) -> Option<Arc<Verification>> {
        self.scope.outputs?.0.reuse.as_ref()?.verification.clone()
    }

    /// Handles the result of a step that runs although it was found, to be compared with that.
    pub(super) fn expects(
        &mut self,
        step: StepIndex,
        snapshot: SnapshotRef,
        progress: &mut BuildProgress<'_>,
        now: Duration,
    ) {
        let key = &self.plan.step(step).step.key;
        if self.verification().is_some_and(|it| !it.covers(key)) {
            self.traced.steps.remove(&step);
            progress.found(step, snapshot, Collected::default(), now);
            return;
        }
        let reason = CacheMissReason::Refresh;
        let message = Some("it would be found, and runs to be compared with its result".into());
        self.record_traced(step, CacheVerdict::Miss { reason, message: Option::clone(&message) }, progress);
        progress.runs(step, reason, message, now);
        if progress.has_ended(step) {
            self.traced.steps.remove(&step);
        } else {
            self.traced.expected.insert(step, snapshot);
        }
    }

    pub(super) fn look_up_by_trace(&mut self, step: StepIndex, progress: &mut BuildProgress<'_>, now: Duration) {
        // A snapshot that is not kept is never met again, and nothing would be found over it.
        if let Base::Snapshot(parent) = self.plan.base(step)
            && !progress.is_kept(parent)
        {
            return self.trace_missed(step, (CacheMissReason::Absent, None), progress, now);
        }
        let bound = self.plan.step(step);
        if let Some(why) = self.why_left_out(step).filter(|_| !bound.is_refreshed) {
            self.traced.costs.push((Arc::clone(&bound.step.key), CostChange::LeftOut));
            return self.trace_missed(step, (CacheMissReason::Unavailable, Some(why.into())), progress, now);
        }
        self.traced.steps.insert(step, None);
        if bound.is_refreshed {
            return self.trace_missed(step, (CacheMissReason::Refresh, None), progress, now);
        }
        let (Some(cache), Some((context, _))) = (self.cache, self.scope.outputs) else {
            let why = (CacheMissReason::Unavailable, Some("there is no cache".into()));
            return self.trace_missed(step, why, progress, now);
        };
        let (runners, runner, context) = (self.runners, bound.runner, context.clone());
        let input = progress.input(step, SnapshotUse::None);
        let lookups = Arc::clone(&self.traced.lookups);
        self.jobs.push(Box::pin(async move {
            let _permit = lookups.acquire().await;
            let missed = |reason, message| LookupOutcome::Missed { reason, message, flight: None };
            let answer = caught(runners.look_up_trace(runner, &context, input)).await;
            let (key, outcome) = match answer {
                Ok(Ok(TraceLookup::Expected(snapshot))) => return JobDone::Expected(step, snapshot),
                Ok(Ok(TraceLookup::Found(key))) => {
                    let key = CacheKey(key);
                    let outcome = match cache.look_up(LookupRequest { key, max_age: None }) {
                        Lookup::Now(outcome) => outcome,
                        Lookup::Later(outcome) => outcome.await,
                    };
                    (Some(key), outcome)
                }
                Ok(Ok(TraceLookup::Missed(why))) => (None, missed(CacheMissReason::Absent, why.map(Into::into))),
                Ok(Err(error)) => (None, missed(CacheMissReason::Unavailable, Some(error.to_line().into()))),
                Err(()) => (None, missed(CacheMissReason::Unavailable, Some(PANICKED.into()))),
            };
            JobDone::LookedUpByTrace(step, key, outcome)
        }));
    }

    pub(super) fn looked_up_by_trace(
        &mut self,
        step: StepIndex,
        (key, outcome): (Option<CacheKey>, LookupOutcome),
        progress: &mut BuildProgress<'_>,
        now: Duration,
    ) {
        match outcome {
            LookupOutcome::Found(_) => {
                self.traced.steps.insert(step, key);
                self.decided(step, outcome, progress, now);
            }
            LookupOutcome::Missed { reason, message, .. } => self.trace_missed(step, (reason, message), progress, now),
        }
    }

    fn trace_missed(
        &mut self,
        step: StepIndex,
        (reason, message): (CacheMissReason, Option<Arc<str>>),
        progress: &mut BuildProgress<'_>,
        now: Duration,
    ) {
        self.record_traced(step, CacheVerdict::Miss { reason, message: message.clone() }, progress);
        progress.missed(step, reason, message, now);
        if progress.has_ended(step) {
            self.traced.steps.remove(&step);
        }
    }

    /// Records the result of a look-up.
    pub(super) fn record_traced(&mut self, step: StepIndex, verdict: CacheVerdict, progress: &BuildProgress<'_>) {
        let (bound, runner) = (self.plan.step(step), self.plan.runner(step));
        let base = match self.plan.base(step) {
            Base::Snapshot(parent) => BaseRecord::Parent {
                step: Arc::clone(&self.plan.step(parent).step.key),
                snapshot: progress.snapshot(parent).map_or_else(|| "".into(), |snapshot| Arc::clone(&snapshot.0)),
            },
            // Which image that is now, only the runner knows.
            Base::Image(name) => {
                BaseRecord::Image { name: bound.step.image.clone().unwrap_or_else(|| name.into()), identity: "".into() }
            }
        };
        self.records.push(KeyRecord {
            step: Arc::clone(&bound.step),
            env: Arc::clone(&bound.env),
            base,
            key: self.traced.steps.get(&step).copied().flatten().unwrap_or(CacheKey([0; 32])),
            runner: Arc::clone(&runner.name),
            runner_version: runner.cache_version,
            mode: "".into(),
            runner_args: args_in_keys(self.plan, step, &ServiceIds::new()),
            inputs: None,
            step_inputs: None,
            by_trace: true,
            verdict,
        });
    }

    /// Handles the end of an attempt of a step that is looked up by what it read. What it read is kept first,
    /// with its result.
    pub(super) fn traced_ended(&mut self, mut report: AttemptReport, progress: &mut BuildProgress<'_>, now: Duration) {
        let step = report.start.step;
        if let Some(spent) = report.tracing {
            let change = CostChange::Traced { spent, took: progress.age(step, now) };
            self.traced.costs.push((Arc::clone(&self.plan.step(step).step.key), change));
        }
        if report.end == AttemptEnd::Exited(0)
            && let (Some(snapshot), Some(traced)) = (report.snapshot.clone(), report.traced.take())
            && let Some(cache) = self.cache
        {
            self.traced.steps.remove(&step);
            self.traced.expected.remove(&step);
            let (name, log) = (Arc::clone(&self.plan.step(step).step.key), progress.close_log(report.start));
            self.jobs.push(Box::pin(async move {
                let key = CacheKey(traced.result);
                let passed = Passed { key, step: Arc::clone(&name), snapshot, log, flight: None, traced: true };
                // The record last: nothing finds a result without one.
                let published = match cache.publish(passed).await {
                    Ok(found) => cache.keep_trace(traced.key, traced.record).await.map(|()| found),
                    Err(message) => Err(message),
                };
                let found = published.inspect_err(|message| {
                    tracing::warn!(step = &*name, "failed to cache a result: {message}");
                });
                let entry = found.ok().map(|found| (key, found));
                JobDone::Published(Box::new(Published { report, entry, is_shared: false }))
            }));
            return;
        }
        // In a run that only compares, what builds in the step starts from the result.
        let result = report.snapshot.clone();
        progress.attempt_ended(report, now);
        if progress.has_ended(step) {
            self.traced.steps.remove(&step);
            let expected = self.traced.expected.remove(&step);
            if expected.is_some() && expected == result {
                progress.keep_snapshot(step);
            }
        }
    }
}
