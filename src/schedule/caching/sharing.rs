//! Sharing: which steps are looked up in a remote cache, and which results are uploaded to it.
//!
//! An uploaded result includes the results that it builds on and that were found in the local cache, because
//! its key contains the ids of their snapshots. Uploads delay no step; the build's end waits for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;

use super::{
    CachingScope,
    inputs::Inputs,
    key::{KeyContext, ServiceIds, is_cached, key_of},
};
use crate::{
    awake,
    cache::{BasePart, BuildCache, CacheKey, Cacheable, Candidate, Found, LookedAhead, Question, SharedResults},
    ir::EdgeKind,
    model::{SnapshotRef, StepIndex},
    plan::{Base, BoundPlan},
    runner::RunnerIndex,
    store::Store,
};

/// The maximum time that the end of a build waits for uploads.
const FINISH_LIMIT: Duration = Duration::from_secs(10 * 60);

/// A pending query.
pub(super) type PendingQuery<'a> = Pin<Box<dyn Future<Output = Option<Found>> + Send + 'a>>;

/// The remote cache, and the results of one build to upload to it.
pub(super) struct Sharing<'a> {
    scope: SharingScope<'a>,
    /// The runners of the plan's steps, if these may be shared.
    runners: BTreeSet<RunnerIndex>,
    /// The steps found in the local cache only.
    found_here: BTreeMap<StepIndex, (CacheKey, Found)>,
    /// The steps found in either cache. No other machine knows the result of a step that ran just now, nor
    /// the results that build on it.
    found: BTreeSet<StepIndex>,
    /// The steps that ran, and were or will be shared.
    shared: BTreeSet<StepIndex>,
    ahead: LookedAhead,
    inputs: Arc<Inputs<'a>>,
    under_way: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>,
}

/// The data that does not change while a build runs.
#[derive(Clone, Copy)]
struct SharingScope<'a> {
    plan: &'a BoundPlan,
    cache: Option<&'a BuildCache>,
    exchange: Option<Exchange<'a>>,
}

/// A remote cache, the store that exchanges results with it, and the pipeline.
#[derive(Clone, Copy)]
struct Exchange<'a> {
    remote: &'a dyn SharedResults,
    store: &'a Arc<Store>,
    pipeline: &'a str,
}

impl<'a> Sharing<'a> {
    pub(super) fn new(scope: CachingScope<'a>, inputs: Arc<Inputs<'a>>) -> Self {
        let CachingScope { plan, cache, remote, .. } = scope;
        let store = cache.and_then(BuildCache::store);
        let exchange = remote.zip(store).map(|(remote, (store, pipeline))| Exchange { remote, store, pipeline });
        let runners = match exchange {
            Some(_) => plan.steps.iter().map(|step| step.runner).collect(),
            None => BTreeSet::new(),
        };
        Self {
            scope: SharingScope { plan, cache, exchange },
            runners,
            found_here: BTreeMap::new(),
            found: BTreeSet::new(),
            shared: BTreeSet::new(),
            ahead: LookedAhead::default(),
            inputs,
            under_way: FuturesUnordered::new(),
        }
    }

    /// Returns the runners whose modes affect a lookup.
    pub(super) fn runners(&self) -> impl Iterator<Item = RunnerIndex> {
        self.runners.iter().copied()
    }

    /// Queries the remote cache for a step that the local cache does not have. Returns `None` if a query
    /// makes no sense. `modes` returns the runners' modes. If nothing is found, the files of `parent`, which
    /// the step boots from, are downloaded if they are not local.
    pub(super) fn query(
        &self,
        step: StepIndex,
        key: CacheKey,
        parent: Option<SnapshotRef>,
        modes: impl Future<Output = BTreeMap<RunnerIndex, Arc<str>>> + Send + 'a,
    ) -> Option<PendingQuery<'a>> {
        let scope = self.scope;
        let Exchange { remote, store, pipeline } = scope.exchange.filter(|_| scope.is_asked_for(step))?;
        if let Base::Snapshot(parent) = scope.plan.base(step)
            && !self.found.contains(&parent)
        {
            return None;
        }
        let known = self.ahead.lock().remove(&key);
        if known.is_none() && !scope.plan.is_portable(step) {
            return None;
        }
        let (ahead, inputs) = (Arc::clone(&self.ahead), Arc::clone(&self.inputs));
        Some(Box::pin(async move {
            let found = match known {
                Some(known) => known,
                None => {
                    inputs.find().await;
                    match scope.question(step, key, &modes.await, &inputs) {
                        Some(question) => remote.find(store, pipeline, question, &ahead).await,
                        None => None,
                    }
                }
            };
            if found.is_none()
                && let Some(parent) = parent
            {
                remote.complete(store, pipeline, &parent).await;
            }
            found
        }))
    }

    /// Records that a step need not run.
    pub(super) fn found(&mut self, step: StepIndex) {
        if self.scope.exchange.is_some() {
            self.found.insert(step);
        }
    }

    /// Records a step that was found in the local cache.
    pub(super) fn found_here(&mut self, step: StepIndex, key: CacheKey, found: &Found) {
        let pool = &self.scope.plan.runner(step).pool;
        if self.scope.exchange.is_some_and(|exchange| exchange.remote.writes(pool)) {
            self.found_here.insert(step, (key, found.clone()));
        }
    }

    /// Shares the result of a step, and the results that it builds on.
    pub(super) fn share(&mut self, step: StepIndex, key: CacheKey, found: Found) {
        let Some(Exchange { remote, store, pipeline }) = self.scope.exchange else { return };
        if !remote.writes(&self.scope.plan.runner(step).pool) {
            return;
        }
        self.shared.insert(step);
        let mut lineage = vec![(key, found)];
        let mut at = step;
        // The results below a shared step are shared, too.
        while let Some(parent) = self.scope.plan.dag.lineage_parent(at).filter(|parent| !self.shared.contains(parent)) {
            lineage.extend(self.found_here.remove(&parent));
            at = parent;
        }
        for (key, found) in lineage.into_iter().rev() {
            self.under_way.push(Box::pin(remote.share(store, pipeline, key, found)));
        }
    }

    /// Returns whether nothing is being shared.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Makes progress on the uploads.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(())) = self.under_way.poll_next_unpin(cx) {}
    }

    /// Waits until everything is shared, or until `cancel` or the time limit ends the wait.
    pub(super) async fn finish(&mut self, cancel: &CancellationToken) {
        if self.is_empty() {
            return;
        }
        let sharing = pin!(async { while self.under_way.next().await.is_some() {} });
        tokio::select! {
            biased;
            () = cancel.cancelled() => tracing::warn!("cancelled: some results of this run are not shared"),
            shared = awake::timeout(FINISH_LIMIT, sharing) => if shared.is_none() {
                tracing::warn!("some results of this run could not be shared within {FINISH_LIMIT:?}");
            }
        }
    }
}

impl<'a> SharingScope<'a> {
    fn is_asked_for(&self, step: StepIndex) -> bool {
        let is_served = self.exchange.is_some_and(|exchange| exchange.remote.reads(&self.plan.runner(step).pool));
        is_served && !self.plan.step(step).is_refreshed && is_cached(self.plan, step)
    }

    /// Returns the query for `step`, and for the cached steps that build on it.
    fn question(
        &self,
        step: StepIndex,
        key: CacheKey,
        modes: &BTreeMap<RunnerIndex, Arc<str>>,
        inputs: &Inputs<'_>,
    ) -> Option<Question<'a>> {
        let plan = self.plan;
        let cache = self.cache?;
        let (project, source_times, source_ignore) = (cache.project(), cache.source_times(), cache.source_ignore());
        let mut candidates = vec![self.candidate(step, None, modes, inputs)?];
        let mut at = 0;
        while let Some(step) = candidates.get(at).map(|candidate| candidate.step) {
            for link in plan.dag.children(step).iter().filter(|link| link.kind == EdgeKind::BuildsIn) {
                match self.candidate(link.step, Some(at), modes, inputs) {
                    Some(candidate) => candidates.push(candidate),
                    None => candidates[at].is_needed = true,
                }
            }
            at += 1;
        }
        let key_over = Box::new(move |candidate: &Candidate, snapshot: &str| {
            let (step, base) = (candidate.step, BasePart::Snapshot(snapshot));
            let dsl_key = Cacheable::of(&plan.step(step).step).map_or("", |policy| policy.dsl_key);
            let (inputs, services) = (candidate.inputs.as_ref(), &ServiceIds::new());
            let (mode, step_inputs) = (&candidate.mode, None);
            let context =
                KeyContext { base, mode, project, source_times, source_ignore, inputs, step_inputs, services };
            key_of(plan, step, dsl_key, &context)
        });
        Some(Question { key, image: plan.root_image(step), candidates, key_over })
    }

    fn candidate(
        &self,
        step: StepIndex,
        parent: Option<usize>,
        modes: &BTreeMap<RunnerIndex, Arc<str>>,
        inputs: &Inputs<'_>,
    ) -> Option<Candidate> {
        let bound = self.plan.step(step);
        if parent.is_some() && self.plan.waits_for_others(step) {
            return None;
        }
        let mode = modes.get(&bound.runner).filter(|_| self.is_asked_for(step)).cloned()?;
        let Cacheable { max_age, .. } = Cacheable::of(&bound.step)?;
        let inputs = inputs.get(step)?.ok()?;
        let (name, is_needed) = (bound.step.key.clone(), self.plan.needs_files(step));
        Some(Candidate { step, name, parent, mode, inputs, max_age, is_needed })
    }
}
