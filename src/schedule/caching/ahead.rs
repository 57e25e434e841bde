//! Looking ahead: which steps will be found, and which of their results must be whole.
//!
//! A result is mounted only if a step that runs boots from it, and only then its layers have to be checked. A
//! result whose files another step gets is always checked: whether that step runs is not known yet.
//! So a step that is found is looked up together with the cached steps that build on it, in one read of the
//! index. From the top down, a result is checked if one of the steps that boot from it is not found. If it is
//! damaged, its step will run, and the result below it must be whole in turn. All this is settled before the
//! first of these steps is reported as found, so that a damaged result is always made again.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Caching,
    key::{KeyContext, ServiceIds, is_cached, key_of},
    lookup::IdentityState,
};
use crate::{
    cache::{BasePart, BuildCache, CacheKey, Cacheable, Found, Intact, LookupRequest},
    ir::EdgeKind,
    model::StepIndex,
    runner::RunnerIndex,
};

/// Steps that will be found, with the keys that they must then have.
#[derive(Debug, Default)]
pub(super) struct Ahead(BTreeMap<StepIndex, (CacheKey, Found)>);

impl Ahead {
    /// Adds steps.
    pub(super) fn extend(&mut self, steps: Vec<Expected>) {
        let found = |it: Expected| Some((it.step, (it.key, it.found?)));
        self.0.extend(steps.into_iter().filter_map(found));
    }

    /// Returns the result of a step with this key, if it is known. It is returned once.
    pub(super) fn take(&mut self, step: StepIndex, key: CacheKey) -> Option<Found> {
        self.0.remove(&step).filter(|(known, _)| *known == key).map(|(_, found)| found)
    }
}

/// A step that was looked up in the index.
#[derive(Debug)]
pub(in crate::schedule) struct Expected {
    step: StepIndex,
    key: CacheKey,
    /// Its result, if there is one that may be used.
    found: Option<Found>,
    /// The index of the step that it boots from.
    parent: Option<usize>,
    /// Whether a step that runs boots from it, or a step may get files of it.
    is_needed: bool,
}

impl<R> Caching<'_, R> {
    /// Looks up a step, and the cached steps that build on it. Returns `None` if the step is not found.
    pub(super) fn look_ahead(
        &self,
        step: StepIndex,
        request: LookupRequest,
        cache: &BuildCache,
    ) -> Option<Vec<Expected>> {
        let modes = self.known_modes();
        let mut steps = Vec::new();
        cache.read(|get| {
            let found = get(request)?;
            let is_needed = self.plan.needs_files(step);
            steps.push(Expected { step, key: request.key, found: Some(found), parent: None, is_needed });
            let mut at = 0;
            while at < steps.len() {
                let Expected { step, found, .. } = &steps[at];
                let Some(snapshot) = found.as_ref().map(|found| Arc::clone(&found.snapshot.0)) else {
                    at += 1;
                    continue;
                };
                let children = self.plan.dag.children(*step).iter().filter(|link| link.kind == EdgeKind::BuildsIn);
                for child in children.map(|link| link.step) {
                    match self.request_over(child, &snapshot, &modes, cache) {
                        Some(request) => {
                            let (key, found) = (request.key, get(request));
                            let is_needed = self.plan.needs_files(child);
                            steps.push(Expected { step: child, key, found, parent: Some(at), is_needed });
                        }
                        None => steps[at].is_needed = true,
                    }
                }
                at += 1;
            }
            Some(())
        })?;
        Some(steps)
    }

    /// Returns the lookup of a step over its parent's snapshot, or `None` if it will run or if that is not
    /// known yet.
    fn request_over(
        &self,
        step: StepIndex,
        snapshot: &str,
        modes: &BTreeMap<RunnerIndex, Arc<str>>,
        cache: &BuildCache,
    ) -> Option<LookupRequest> {
        let bound = self.plan.step(step);
        if bound.is_refreshed || !is_cached(self.plan, step) || self.plan.waits_for_others(step) {
            return None;
        }
        let (mode, inputs) = (modes.get(&bound.runner)?, self.inputs.get(step)?.ok()?);
        let Cacheable { dsl_key, max_age } = Cacheable::of(&bound.step)?;
        let context = KeyContext {
            base: BasePart::Snapshot(snapshot),
            mode,
            project: cache.project(),
            source_times: cache.source_times(),
            source_ignore: cache.source_ignore(),
            inputs: inputs.as_ref(),
            services: &ServiceIds::new(),
            step_inputs: None,
        };
        Some(LookupRequest { key: key_of(self.plan, step, dsl_key, &context), max_age })
    }

    /// Returns whether a step that builds on `step` has inputs that are not computed yet. It could not be
    /// looked up ahead.
    pub(super) fn is_lineage_waiting(&self, step: StepIndex) -> bool {
        if self.inputs.is_complete() {
            return false;
        }
        let mut above = vec![step];
        while let Some(step) = above.pop() {
            if self.inputs.get(step).is_none() {
                return true;
            }
            let children = self.plan.dag.children(step).iter().filter(|link| link.kind == EdgeKind::BuildsIn);
            above.extend(children.map(|link| link.step));
        }
        false
    }

    /// Returns the modes of the runners that have reported one.
    pub(super) fn known_modes(&self) -> BTreeMap<RunnerIndex, Arc<str>> {
        let known = self.identities.iter().filter_map(|((runner, _), state)| match state {
            IdentityState::Answered(Ok(Some(identity))) => Some((*runner, Arc::clone(&identity.mode))),
            _ => None,
        });
        known.collect()
    }
}

/// Settles which steps are found: checks the results from which steps boot that run, and forgets those that
/// are damaged. Returns false if `check` cannot answer now; then nothing is settled.
pub(super) fn settle(steps: &mut [Expected], mut check: impl FnMut(CacheKey) -> Intact) -> bool {
    let (mut damaged, mut needed) = (vec![false; steps.len()], vec![false; steps.len()]);
    for (at, step) in steps.iter().enumerate().rev() {
        if step.found.is_some() && (step.is_needed || needed[at]) {
            match check(step.key) {
                Intact::Yes => {}
                Intact::No => damaged[at] = true,
                Intact::TooMany => return false,
            }
        }
        if let Some(parent) = step.parent {
            needed[parent] |= step.found.is_none() || damaged[at];
        }
    }
    for (step, damaged) in steps.iter_mut().zip(damaged) {
        if damaged {
            step.found = None;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    /// A tree of steps: the parent of each, whether it is found, whether its result is whole, and whether
    /// another step that runs boots from it.
    fn tree() -> impl Strategy<Value = Vec<(prop::sample::Index, bool, bool, bool)>> {
        prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any::<bool>(), any::<bool>()), 1..12)
    }

    proptest! {
        #[test]
        fn every_result_that_a_running_step_boots_from_is_whole(tree in tree()) {
            let found = |step: usize| Found {
                snapshot: format!("hm1:{step}").into(),
                run: Uuid::nil(),
                step: "step".into(),
                created_at: 0,
                just_used: true,
            };
            let key = |step: usize| CacheKey([u8::try_from(step).unwrap(); 32]);
            let mut steps: Vec<Expected> = Vec::new();
            for (at, (parent, is_found, _, is_needed)) in tree.iter().enumerate() {
                let parent = (at > 0).then(|| parent.index(at));
                // As in a lookup: what builds on a step that is not found is not looked up.
                let is_found = at == 0 || (*is_found && steps[parent.unwrap_or(0)].found.is_some());
                steps.push(Expected {
                    step: StepIndex(u32::try_from(at).unwrap()),
                    key: key(at),
                    found: is_found.then(|| found(at)),
                    parent,
                    is_needed: *is_needed,
                });
            }
            let before: Vec<bool> = steps.iter().map(|step| step.found.is_some()).collect();
            let mut checked = Vec::new();
            let settled = settle(&mut steps, |key| {
                let at = usize::from(key.0[0]);
                checked.push(at);
                if tree[at].2 { Intact::Yes } else { Intact::No }
            });
            prop_assert!(settled);
            for (at, step) in steps.iter().enumerate() {
                let runs = |child: &Expected| child.parent == Some(at) && child.found.is_none();
                let is_booted_from = step.is_needed || steps.iter().any(runs);
                let expected = before[at] && (!is_booted_from || tree[at].2);
                prop_assert_eq!(step.found.is_some(), expected, "step {}", at);
                // Nothing is checked without a need, and nothing twice.
                let count = checked.iter().filter(|checked| **checked == at).count();
                prop_assert_eq!(count, usize::from(before[at] && is_booted_from));
            }
        }
    }
}
