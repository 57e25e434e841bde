//! Predictions: which steps of a build would be found in the cache if it started now.
//!
//! The keys are computed as for a lookup, along the plan's order. Nothing is run, recorded or marked as used.
//! What a remote cache has is not asked for.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    CachingScope, fan_in,
    inputs::Inputs,
    key::{KeyContext, is_cached, key_of},
    lookup::{IdentityAnswer, IdentityQuery, identity},
};
use crate::{
    cache::{
        BasePart, BaseRecord, BuildCache, CacheVerdict, Cacheable, KeyRecord, LookupRequest, Prediction, StepInputs,
        is_young,
    },
    model::{CacheMissReason, SnapshotRef, StepIndex},
    plan::{Base, PlannedInput},
    runner::{CacheIdentity, InputFiles, RunnerSet},
};

/// What is known of a step after its lookup.
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
        let expected = match step_inputs(runners, scope, step, &known).await {
            Ok(files) => look_up(step, scope, identities.get(&query), (&inputs, &files, &known), &mut records),
            Err(expected) => expected,
        };
        known.insert(step, expected);
    }
    let mut predictions: Vec<Prediction> = known.into_values().map(|expected| expected.prediction).collect();
    if let Some(cache) = scope.cache {
        let mut differences = cache.differences(records).await;
        for (step, prediction) in plan.dag.steps().zip(&mut predictions) {
            if let Prediction::Missed { differences: found, .. } = prediction {
                *found = differences.remove(&*plan.step(step).step.key).unwrap_or_default();
            }
        }
    }
    predictions
}

/// Returns the files of other steps that a cached step gets, or the prediction if they are not known. They are
/// read from the results in the cache unless the store has their digests.
async fn step_inputs<R: RunnerSet>(
    runners: &R,
    scope: CachingScope<'_>,
    step: StepIndex,
    known: &BTreeMap<StepIndex, Expected>,
) -> Result<Option<Arc<StepInputs>>, Expected> {
    let plan = scope.plan;
    let Some(inputs) = plan.inputs.get(&step).filter(|_| is_cached(plan, step)) else { return Ok(None) };
    let mut files = Vec::new();
    for PlannedInput { step: other, path, target, .. } in inputs {
        let key = &plan.step(*other).step.key;
        let Some(snapshot) = known.get(other).and_then(|other| other.snapshot.as_deref()) else {
            return Err(Expected { prediction: Prediction::InputRuns { step: key.to_string() }, snapshot: None });
        };
        let of = (Arc::clone(key), SnapshotRef::from(snapshot));
        files.push(InputFiles::new(of, Arc::clone(path), Arc::clone(target)));
    }
    let runner = plan.step(step).runner;
    fan_in::read(runners, (runner, scope.archives), files).await.map(Some).map_err(|message| unavailable(&message))
}

fn unavailable(message: &str) -> Expected {
    let reason = CacheMissReason::Unavailable;
    let prediction = Prediction::Missed { reason, message: Some(message.into()), differences: Vec::new() };
    Expected { prediction, snapshot: None }
}

/// Looks up one step, whose parents are in `known`.
fn look_up(
    step: StepIndex,
    scope: CachingScope<'_>,
    identity: Option<&IdentityAnswer>,
    (inputs, files, known): (&Inputs<'_>, &Option<Arc<StepInputs>>, &BTreeMap<StepIndex, Expected>),
    records: &mut Vec<KeyRecord>,
) -> Expected {
    let CachingScope { plan, cache, .. } = scope;
    let bound = plan.step(step);
    let runs = |prediction| Expected { prediction, snapshot: None };
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
                None => return runs(Prediction::ParentRuns { parent: key.to_string() }),
            }
        }
        (Base::Image(name), Some(identity)) => {
            let name = bound.step.image.clone().unwrap_or_else(|| name.into());
            BaseRecord::Image { name, identity: Arc::clone(identity) }
        }
        (Base::Image(_), None) => return unavailable("the runner does not report the identity of the image"),
    };
    let inputs = match inputs.get(step) {
        Some(Ok(inputs)) => inputs,
        Some(Err(message)) => return unavailable(&message),
        None => return unavailable("its inputs are not known"),
    };
    let part = match &base {
        BaseRecord::Image { identity, .. } => BasePart::Image(identity),
        BaseRecord::Parent { snapshot, .. } => BasePart::Snapshot(snapshot),
    };
    let (project, source_times) = (cache.project(), cache.source_times());
    let digest = files.as_ref().map(|files| files.digest());
    let context =
        KeyContext { base: part, mode, project, source_times, inputs: inputs.as_ref(), step_inputs: digest.as_ref() };
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
        runner_args: runner.args.in_keys(bound.step.runner_args.as_ref()),
        inputs,
        step_inputs: files.clone(),
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
