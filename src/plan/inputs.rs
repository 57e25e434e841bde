//! The `inputs` of steps: files of the steps that they wait for.
//!
//! Input: entries such as `"shard:/workspace/cov" = "/workspace/cov/1"`. Output: the step, the path there and
//! the path at which the files are shown, or the reason why that is impossible. The module does not know how
//! the files get there.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use serde::Deserialize;
use serde_json::Value;

use super::{Dag, StepIndex, nearest::nearest};
use crate::{
    ir::{Pipeline, ProblemKind},
    runner::{CacheArg, mount_point, overlap, step_path},
};

/// The most inputs of a step.
pub(super) const MOST_INPUTS: usize = 256;

/// A file or directory of another step that a step gets, read-only.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedInput {
    /// The other step.
    pub step: StepIndex,
    /// The path there.
    pub path: Arc<str>,
    /// The path at which the step gets it.
    pub target: Arc<str>,
}

/// An entry of `inputs` as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InputEntry {
    /// The step and the path.
    pub(super) from: String,
    pub(super) target: String,
}

/// The graph in which the steps of inputs are found.
pub(super) struct InputScope<'a> {
    dag: &'a Dag,
    keys: BTreeMap<&'a str, StepIndex>,
}

impl<'a> InputScope<'a> {
    pub(super) fn new(pipeline: &'a Pipeline, dag: &'a Dag) -> Self {
        let keys = dag.steps().map(|step| (&*pipeline.nodes[step.get()].step.key, step)).collect();
        Self { dag, keys }
    }

    /// Resolves the inputs of the step `at`. `args` are its arguments for the runner.
    pub(super) fn resolve(
        &self,
        at: StepIndex,
        entries: &[InputEntry],
        args: Option<&Value>,
        problems: &mut Vec<ProblemKind>,
    ) -> Vec<PlannedInput> {
        let mut found: Vec<PlannedInput> = Vec::new();
        let caches = caches(args);
        for entry in entries {
            let resolved = self.one(at, entry).and_then(|input| {
                let target = Path::new(&*input.target);
                if let Some(other) = found.iter().find(|other| overlap(Path::new(&*other.target), target)) {
                    let targets = format!("its target {} overlaps with {}", input.target, other.target);
                    return Err(format!("{targets}: choose one beside it"));
                }
                match caches.iter().find(|(_, cache)| overlap(&cache.path, target)) {
                    Some((name, _)) => {
                        Err(format!("its target {} overlaps with the cache directory `{name}`", input.target))
                    }
                    None => Ok(input),
                }
            });
            match resolved {
                Ok(input) => found.push(input),
                Err(message) => problems.push(ProblemKind::Input { input: entry.from.clone(), message }),
            }
        }
        found
    }

    fn one(&self, at: StepIndex, InputEntry { from, target }: &InputEntry) -> Result<PlannedInput, String> {
        // Keys may have colons, too.
        let places = || from.match_indices(":/").map(|(colon, _)| (&from[..colon], &from[colon + 1..]));
        let known = places().find_map(|(key, path)| Some((key, *self.keys.get(key)?, path)));
        let Some((key, step, path)) = known else {
            let Some((key, _)) = places().next() else {
                return Err("write a step and an absolute path, as in `test:/workspace/coverage`".into());
            };
            let keys: Vec<Arc<str>> = self.keys.keys().map(|key| Arc::from(*key)).collect();
            let near = nearest(key, &keys).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
            return Err(format!("no step with the key `{key}`{near}"));
        };
        if step == at {
            return Err("a step has its own files anyway".into());
        }
        if !self.waits_for(at, step) {
            return Err(format!("the step does not wait for `{key}`: add it to the steps that it depends on"));
        }
        let text = |path: std::path::PathBuf| -> Arc<str> { path.to_string_lossy().into() };
        let path = step_path(path).map_err(|why| format!("its path cannot be taken over: {why}"))?;
        let target = mount_point(target).map_err(|why| format!("nothing can be shown at `{target}`: {why}"))?;
        Ok(PlannedInput { step, path: text(path), target: text(target) })
    }

    /// Returns whether `step` waits for `other`, directly or through others.
    fn waits_for(&self, step: StepIndex, other: StepIndex) -> bool {
        let is_parent = |step: StepIndex| self.dag.parents(step).iter().any(|link| link.step == other);
        if is_parent(step) {
            return true;
        }
        let (mut above, mut seen) = (vec![step], BTreeSet::from([step]));
        while let Some(step) = above.pop() {
            if is_parent(step) {
                return true;
            }
            above.extend(self.dag.parents(step).iter().map(|link| link.step).filter(|step| seen.insert(*step)));
        }
        false
    }
}

/// Returns the cache directories of a step. Wrong ones are reported by its runner.
fn caches(args: Option<&Value>) -> BTreeMap<String, CacheArg> {
    let caches = args.and_then(|args| args.get("caches"));
    caches.and_then(|caches| BTreeMap::deserialize(caches).ok()).unwrap_or_default()
}
