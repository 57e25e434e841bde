//! Predictions: which steps of a build would be found in the cache if it started now.
//!
//! The keys are computed as for a lookup, along the plan's order. Nothing is run, recorded or marked as used.
//! What a remote cache has is not asked for.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use super::{
    CachingScope, fan_in,
    inputs::Inputs,
    key::{KeyContext, ServiceIds, args_in_keys, is_cached, key_of},
    lookup::{IdentityAnswer, IdentityQuery, identity, unknown_service},
};
use crate::{
    cache::{
        BasePart, BaseRecord, BuildCache, CacheVerdict, Cacheable, KeyRecord, LookupRequest, Prediction, StepInputs,
        is_young,
    },
    model::{CacheMissReason, SnapshotRef, StepIndex},
    plan::{Base, PlannedInput, ServiceSource},
    runner::{CacheIdentity, InputFiles, RunnerSet},
    store::SourceId,
};

/// A step after its lookup.
struct Expected {
    prediction: Prediction,
    /// Its result, if it would be found.
    snapshot: Option<Arc<str>>,
}

/// Returns the prediction for each step, by index. Reads the source if a step has `on_change` paths.
pub(crate) async fn predict<R: RunnerSet>(runners: &R, scope: CachingScope<'_>) -> Vec<Prediction> {
    let plan = scope.plan;
    let inputs = Inputs::new(scope);
    inputs.find().await;
    let mut identities: BTreeMap<IdentityQuery<'_>, IdentityAnswer> = BTreeMap::new();
    let mut known: BTreeMap<StepIndex, Expected> = BTreeMap::new();
    let mut records = Vec::new();
    for &step in plan.dag.order() {
        let image = match plan.base(step) {
            Base::Image(image) => Some(image),
            Base::Snapshot(_) => None,
        };
        let query = (plan.step(step).runner, image);
        if is_cached(plan, step) && !identities.contains_key(&query) {
            identities.insert(query, identity(runners, scope.probe_limit, query).await);
        }
        let from_others = match from_others(runners, scope, step, (&known, &mut identities)).await {
            Ok(from_others) => from_others,
            Err(other) => {
                let prediction = Prediction::InputRuns { step: plan.step(other).step.key.to_string() };
                known.insert(step, Expected { prediction, snapshot: None });
                continue;
            }
        };
        let own = inputs.get(step).unwrap_or_else(|| Err("its inputs are not known".into()));
        let inputs = own.and_then(|own| from_others.map(|(files, services)| (own, files, services)));
        let expected = look_up(step, scope, (identities.get(&query), inputs), &known, &mut records);
        known.insert(step, expected);
    }
    let mut predictions: Vec<Prediction> = known.into_values().map(|expected| expected.prediction).collect();
    if let Some(cache) = scope.cache {
        let source = source_now(scope, &records).await;
        let mut differences = cache.differences(records, source).await;
        for (step, prediction) in plan.dag.steps().zip(&mut predictions) {
            if let Prediction::Missed { differences: found, .. } = prediction {
                *found = differences.remove(&*plan.step(step).step.key).unwrap_or_default();
            }
        }
    }
    predictions
}

/// Returns the source if the keys of these steps depend on files in it.
async fn source_now(scope: CachingScope<'_>, records: &[KeyRecord]) -> Option<SourceId> {
    let (store, _) = scope.cache.and_then(BuildCache::store)?;
    if records.iter().all(|record| record.inputs.is_none()) {
        return None;
    }
    // It was named for the digests of these files, so this reads nothing.
    scope.archives.name(store).await.ok()
}

/// The parts of a key that come from other steps than the parent, or the reason why they are not known.
type FromOthers = Result<(Option<Arc<StepInputs>>, ServiceIds), Arc<str>>;

/// Returns what a cached step gets of other steps than its parent. Returns the step as an error if one of
/// them runs.
async fn from_others<'a, R: RunnerSet>(
    runners: &R,
    scope: CachingScope<'a>,
    step: StepIndex,
    (known, identities): (&BTreeMap<StepIndex, Expected>, &mut BTreeMap<IdentityQuery<'a>, IdentityAnswer>),
) -> Result<FromOthers, StepIndex> {
    let plan = scope.plan;
    if !is_cached(plan, step) || !plan.waits_for_others(step) {
        return Ok(Ok((None, ServiceIds::new())));
    }
    let snapshot = |other: StepIndex| known.get(&other).and_then(|it| it.snapshot.clone()).ok_or(other);
    let mut ids = ServiceIds::new();
    for service in plan.services(step) {
        let id = match &service.source {
            ServiceSource::Step(seed) => snapshot(*seed)?,
            ServiceSource::Image(image) => {
                let query = (plan.step(step).runner, Some(&**image));
                let answer = match identities.entry(query) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(free) => free.insert(identity(runners, scope.probe_limit, query).await),
                };
                match answer {
                    Ok(Some(CacheIdentity { image: Some(image), .. })) => Arc::clone(image),
                    Err(message) => return Ok(Err(Arc::clone(message))),
                    _ => return Ok(Err(unknown_service(&service.name))),
                }
            }
        };
        ids.push((Arc::clone(&service.name), id));
    }
    let Some(inputs) = plan.inputs.get(&step) else { return Ok(Ok((None, ids))) };
    let files = |input: &PlannedInput| {
        let of = (Arc::clone(&plan.step(input.step).step.key), SnapshotRef(snapshot(input.step)?));
        Ok(InputFiles::new(of, Arc::clone(&input.path), Arc::clone(&input.target)))
    };
    let files = inputs.iter().map(files).collect::<Result<Vec<_>, StepIndex>>()?;
    let read = fan_in::read(runners, (plan.step(step).runner, scope.archives), files).await;
    Ok(read.map(|files| (Some(files), ids)))
}

/// The parts of a step's key that come from files: the digest of those in the source, those of other steps,
/// and what its services boot from.
type InputsOfStep = Result<(Option<[u8; 32]>, Option<Arc<StepInputs>>, ServiceIds), Arc<str>>;

/// Looks up one step, whose parents are in `known`.
fn look_up(
    step: StepIndex,
    scope: CachingScope<'_>,
    (identity, inputs): (Option<&IdentityAnswer>, InputsOfStep),
    known: &BTreeMap<StepIndex, Expected>,
    records: &mut Vec<KeyRecord>,
) -> Expected {
    let CachingScope { plan, cache, .. } = scope;
    let bound = plan.step(step);
    let runs = |prediction| Expected { prediction, snapshot: None };
    let unavailable = |message: &str| {
        let reason = CacheMissReason::Unavailable;
        runs(Prediction::Missed { reason, message: Some(message.into()), differences: Vec::new() })
    };
    let (Some(cache), Some(policy), Some(identity)) = (cache, Cacheable::of(&bound.step), identity) else {
        return runs(Prediction::NotCached);
    };
    if bound.is_refreshed {
        return runs(Prediction::Refreshed);
    }
    let (image, mode) = match identity {
        Ok(Some(CacheIdentity { image, mode })) => (image, mode),
        Ok(None) => return runs(Prediction::NotCached),
        Err(message) => return unavailable(message),
    };
    let base = match (plan.base(step), image) {
        (Base::Snapshot(parent), _) => {
            let key = &plan.step(parent).step.key;
            match known.get(&parent).and_then(|parent| parent.snapshot.clone()) {
                Some(snapshot) => BaseRecord::Parent { step: Arc::clone(key), snapshot },
                None => match known.get(&parent).map(|parent| &parent.prediction) {
                    // It is found, too, if its parent is.
                    Some(Prediction::InputRuns { step }) => {
                        return runs(Prediction::InputRuns { step: step.clone() });
                    }
                    _ => return runs(Prediction::ParentRuns { parent: key.to_string() }),
                },
            }
        }
        (Base::Image(name), Some(identity)) => {
            let name = bound.step.image.clone().unwrap_or_else(|| name.into());
            BaseRecord::Image { name, identity: Arc::clone(identity) }
        }
        (Base::Image(_), None) => return unavailable("the runner does not report the identity of the image"),
    };
    let (inputs, step_inputs, services) = match inputs {
        Ok(inputs) => inputs,
        Err(message) => return unavailable(&message),
    };
    let digest = step_inputs.as_ref().map(|inputs| inputs.digest());
    let part = match &base {
        BaseRecord::Image { identity, .. } => BasePart::Image(identity),
        BaseRecord::Parent { snapshot, .. } => BasePart::Snapshot(snapshot),
    };
    let (project, source_times) = (cache.project(), cache.source_times());
    let (inputs_part, step_inputs_part) = (inputs.as_ref(), digest.as_ref());
    let context = KeyContext {
        base: part,
        mode,
        project,
        source_times,
        source_ignore: cache.source_ignore(),
        inputs: inputs_part,
        step_inputs: step_inputs_part,
        services: &services,
    };
    let key = key_of(plan, step, policy.dsl_key, &context);
    let reason = match find(cache, LookupRequest { key, max_age: policy.max_age }) {
        Ok(expected) => return expected,
        Err(reason) => reason,
    };
    let runner = plan.runner(step);
    records.push(KeyRecord {
        step: Arc::clone(&bound.step),
        env: Arc::clone(&bound.env),
        base,
        key,
        runner: Arc::clone(&runner.name),
        runner_version: runner.cache_version,
        mode: Arc::clone(mode),
        runner_args: args_in_keys(plan, step, &services),
        inputs,
        step_inputs,
        by_trace: false,
        verdict: CacheVerdict::Miss { reason, message: None },
    });
    runs(Prediction::Missed { reason, message: None, differences: Vec::new() })
}

/// Returns the entry of a step, or the reason why there is none that may be used.
fn find(cache: &BuildCache, request: LookupRequest) -> Result<Expected, CacheMissReason> {
    let found = cache.read(|get| get(LookupRequest { max_age: None, ..request })).ok_or(CacheMissReason::Absent)?;
    if !is_young(found.created_at, request.max_age) {
        return Err(CacheMissReason::Expired);
    }
    let prediction = Prediction::Cached { run: found.run, created_at: found.created_at };
    Ok(Expected { prediction, snapshot: Some(Arc::clone(&found.snapshot.0)) })
}
