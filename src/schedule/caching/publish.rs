//! Publishing: the result of a cached step goes to the cache before the step's end is reported.

use std::{sync::Arc, time::Duration};

use super::{
    Caching, JobDone,
    lookup::{CachedStep, identity},
};
use crate::{
    cache::{CacheKey, Found, Passed},
    model::StepIndex,
    runner::RunnerSet,
    schedule::{executor::AttemptReport, policy::AttemptEnd, progress::BuildProgress},
};

/// The last attempt of a step, and the step's entry in the cache, if it was published.
pub(in crate::schedule) struct Published {
    pub(super) report: AttemptReport,
    pub(super) entry: Option<(CacheKey, Found)>,
    /// Whether the entry may be shared with a remote cache.
    pub(super) is_shared: bool,
}

impl<'a, R: RunnerSet> Caching<'a, R> {
    /// Returns whether the cache needs a snapshot of `step`.
    pub(in crate::schedule) fn publishes(&self, step: StepIndex) -> bool {
        !self.running.is_empty() && self.running.contains_key(&step) || self.traced.has(step)
    }

    /// Handles an attempt's end. The result of a cached step is published first.
    pub(in crate::schedule) fn attempt_ended(
        &mut self,
        report: AttemptReport,
        progress: &mut BuildProgress<'_>,
        now: Duration,
    ) {
        let step = report.start.step;
        if self.traced.has(step) {
            self.traced_ended(report, progress, now);
        } else if self.publishes(step) {
            self.cached_ended(report, progress, now);
        } else {
            progress.attempt_ended(report, now);
        }
    }

    /// Handles the end of an attempt of a cached step. Apart from what runs for each step.
    #[inline(never)]
    fn cached_ended(&mut self, report: AttemptReport, progress: &mut BuildProgress<'_>, now: Duration) {
        let step = report.start.step;
        if report.end == AttemptEnd::Exited(0)
            && let Some(snapshot) = report.snapshot.clone()
            && let (Some(cache), Some(running)) = (self.cache, self.running.remove(&step))
        {
            let CachedStep { key, mode, flight, .. } = running;
            let (runners, limit, bound) = (self.runners, self.probe_limit, self.plan.step(step));
            let log = progress.close_log(report.start);
            let passed = Passed { key, step: Arc::clone(&bound.step.key), snapshot, log, flight, traced: false };
            self.jobs.push(Box::pin(async move {
                let published = match identity(runners, limit, (bound.runner, None)).await {
                    Ok(Some(identity)) if identity.mode == mode => cache.publish(passed).await,
                    Ok(_) => Err("the runner's mode changed during the run".into()),
                    Err(message) => Err(message),
                };
                let found = published.inspect_err(|message| {
                    tracing::warn!(step = &*bound.step.key, "failed to cache a result: {message}");
                });
                let entry = found.ok().map(|found| (key, found));
                JobDone::Published(Box::new(Published { report, entry, is_shared: true }))
            }));
            return;
        }
        progress.attempt_ended(report, now);
        if progress.has_ended(step) {
            self.running.remove(&step);
        }
    }

    /// Ends a step whose result was published, or could not be.
    pub(super) fn published(&mut self, published: Published, progress: &mut BuildProgress<'_>, now: Duration) {
        let Published { report, entry, is_shared } = published;
        let step = report.start.step;
        progress.attempt_ended(report, now);
        if let Some((key, found)) = entry {
            self.has_published = true;
            progress.keep_snapshot(step);
            if is_shared {
                self.sharing.share(step, key, found);
            }
        }
    }
}
