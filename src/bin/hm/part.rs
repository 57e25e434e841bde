//! A part of a pipeline: some of its steps, and what they need.
//!
//! Input: a plan, and the arguments that name steps. Output: a plan that has only these steps. The choice is
//! made on the IR, so that the engine runs a part like any other pipeline.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use hm_exec::{
    Plan,
    event::StepRecord,
    plan::{Dag, StepIndex},
};
use serde_json::Value;

use crate::{
    args::SourceArgs,
    failure::{Failure, Outcome},
    find_step::{ambiguous, steps_of, unreadable},
    pipelines::nearest,
    store,
};

/// How many runs are searched for the last result of a step.
const RUNS: u32 = 20;

/// Which steps of a pipeline to run.
#[derive(Debug, clap::Args)]
pub(crate) struct PartArgs {
    /// Run only these steps, by key or label, and what they need [default: all steps]
    #[arg(value_name = "STEP")]
    steps: Vec<String>,

    /// Run this step, everything that waits for it, and what these need (repeatable)
    #[arg(long, value_name = "STEP")]
    from: Vec<String>,

    /// Run the steps that did not pass when they last were in a run of the pipeline, and what they need
    #[arg(long, conflicts_with_all = ["steps", "from"])]
    pub(crate) failed: bool,
}

/// The steps that arguments name, as indices into a plan.
type Selection = BTreeSet<StepIndex>;

/// Returns the key of a step that a user named.
pub(crate) fn key_of(plan: &Plan, name: &str) -> Outcome<String> {
    let step = find(plan, name)?;
    Ok(plan.pipeline().nodes[step.get()].step.key.to_string())
}

impl PartArgs {
    /// Names these steps.
    pub(crate) fn of_steps(steps: Vec<String>) -> Self {
        Self { steps, from: Vec::new(), failed: false }
    }

    /// Returns whether the arguments name steps, other than those that failed.
    pub(crate) fn names_steps(&self, source: &SourceArgs) -> bool {
        !self.steps.is_empty() || !self.from.is_empty() || source.first_step().is_some()
    }

    /// Returns the plan of the part that the arguments name: the whole plan, if they name none. `dir` is the
    /// source directory.
    pub(crate) fn of(&self, plan: Plan, source: &SourceArgs, dir: &Path, pipeline: &str) -> Outcome<Plan> {
        let first = source.first_step();
        if self.failed && first.is_some() {
            return Err(Failure::input("`--failed` cannot be used with steps").hint("remove one of them"));
        }
        let mut selection = Selection::new();
        for name in first.into_iter().chain(self.steps.iter().map(String::as_str)) {
            selection.insert(find(&plan, name)?);
        }
        for name in &self.from {
            selection.extend(below(plan.dag(), find(&plan, name)?));
        }
        if self.failed {
            selection = not_passed(&plan, dir, pipeline)?;
        }
        if selection.is_empty() {
            return Ok(plan);
        }
        let selection = with_needs(plan.dag(), selection);
        if selection.len() == plan.dag().len() { Ok(plan) } else { cut(&plan, &selection) }
    }
}

/// Finds a step by its key, or by its label if no step has such a key.
fn find(plan: &Plan, name: &str) -> Outcome<StepIndex> {
    let nodes = &plan.pipeline().nodes;
    let by_key = nodes.iter().position(|node| *node.step.key == *name);
    let with_label = nodes.iter().zip(0..).filter(|(node, _)| node.step.label.as_deref() == Some(name));
    let with_label: Vec<(&str, usize)> = with_label.map(|(node, index)| (&*node.step.key, index)).collect();
    let index = match (by_key, &with_label[..]) {
        (Some(index), _) => Some(index),
        (None, [(_, index)]) => Some(*index),
        (None, []) => None,
        (None, several) => return Err(ambiguous(name, several.iter().map(|(key, _)| *key))),
    };
    if let Some(index) = index.and_then(|index| u32::try_from(index).ok()) {
        return Ok(StepIndex(index));
    }
    let failure = Failure::input(format_args!("no step named `{name}` in the pipeline"));
    let known: Vec<String> = nodes.iter().map(|node| node.step.key.to_string()).collect();
    Err(match nearest(name, &known) {
        Some(near) => failure.hint(format_args!("did you mean `{near}`?")),
        None => failure.hint("run `hm plan` to list the steps"),
    })
}

/// Returns a step and everything that waits for it.
fn below(dag: &Dag, step: StepIndex) -> Selection {
    let (mut found, mut open) = (Selection::from([step]), vec![step]);
    while let Some(step) = open.pop() {
        open.extend(dag.children(step).iter().map(|link| link.step).filter(|child| found.insert(*child)));
    }
    found
}

/// Returns the selected steps and everything that they wait for.
fn with_needs(dag: &Dag, selection: Selection) -> Selection {
    let mut open: Vec<StepIndex> = selection.iter().copied().collect();
    let mut found = selection;
    while let Some(step) = open.pop() {
        open.extend(dag.parents(step).iter().map(|link| link.step).filter(|parent| found.insert(*parent)));
    }
    found
}

/// Returns the steps that did not pass when they last were in a run of the pipeline. A run of a part says
/// nothing of the other steps.
fn not_passed(plan: &Plan, dir: &Path, pipeline: &str) -> Outcome<Selection> {
    let store = store::open()?;
    let runs = store.runs().of(dir, Some(pipeline), RUNS).map_err(unreadable)?;
    let Some((last, earlier)) = runs.split_first() else {
        return Err(Failure::input(format_args!("no earlier run of `{pipeline}` in {}", dir.display()))
            .hint("run the pipeline without `--failed`"));
    };
    let has_passed = |step: &StepRecord| step.status.is_some_and(hm_exec::StepStatus::is_success);
    let mut unknown: BTreeMap<&str, StepIndex> =
        plan.pipeline().nodes.iter().zip(0..).map(|(node, index)| (&*node.step.key, StepIndex(index))).collect();
    let mut found = Selection::new();
    let mut choose = |steps: &[StepRecord]| {
        for step in steps {
            found.extend(unknown.remove(&*step.key).filter(|_| !has_passed(step)));
        }
        unknown.is_empty()
    };
    let steps = steps_of(&store, last)?;
    if !choose(&steps) {
        // Records that are gone say nothing.
        let mut earlier = earlier.iter().filter_map(|run| steps_of(&store, run).ok());
        earlier.any(|steps| choose(&steps));
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let id = &last.id.to_string()[..8];
    let failure = if steps.iter().all(has_passed) {
        Failure::input(format_args!("every step passed in the last run of `{pipeline}` ({id})"))
    } else {
        Failure::input(format_args!("the pipeline no longer has the steps that did not pass in its last run ({id})"))
    };
    Err(failure.hint("run the pipeline without `--failed`"))
}

/// Returns a plan without the steps that are not selected. All that a selected step waits for is selected.
fn cut(plan: &Plan, selection: &Selection) -> Outcome<Plan> {
    let failed = |error: anyhow::Error| Failure::input("failed to select steps of the pipeline").because(error);
    let mut ir: Value = serde_json::from_str(plan.ir_json()).map_err(|error| failed(error.into()))?;
    // The new positions of nodes, by the old ones.
    let positions: BTreeMap<u64, usize> =
        selection.iter().enumerate().map(|(new, old)| (u64::from(old.0), new)).collect();
    if let Some(nodes) = ir.pointer_mut("/graph/nodes").and_then(Value::as_array_mut) {
        let mut index = 0_u64;
        nodes.retain(|_| {
            index += 1;
            positions.contains_key(&(index - 1))
        });
    }
    if let Some(edges) = ir.pointer_mut("/graph/edges").and_then(Value::as_array_mut) {
        edges.retain_mut(|edge| {
            let place = |edge: &Value, at: usize| positions.get(&edge.get(at)?.as_u64()?).copied();
            let (Some(from), Some(to)) = (place(edge, 0), place(edge, 1)) else { return false };
            edge[0] = from.into();
            edge[1] = to.into();
            true
        });
    }
    Plan::parse(ir.to_string()).map_err(|error| failed(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0 -> 1 -> 3, 0 -> 2, 4 alone.
    fn plan() -> Plan {
        let node = |key: &str| serde_json::json!({ "step": { "key": key, "cmd": "true", "label": key.to_uppercase() }, "env": {} });
        let nodes: Vec<_> = ["a", "b", "c", "d", "e"].map(node).into();
        let edges = serde_json::json!([[0, 1, "builds_in"], [1, 3, "depends_on"], [0, 2, "depends_on"]]);
        let graph =
            serde_json::json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges });
        Plan::parse(serde_json::json!({ "version": "0", "graph": graph, "timeout_seconds": 7 }).to_string()).unwrap()
    }

    fn part(steps: &[&str], from: &[&str]) -> (String, Vec<(u32, u32)>) {
        let text = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let args = PartArgs { steps: text(steps), from: text(from), failed: false };
        let source = SourceArgs { pipeline: None, file: None, dir: None, offline: false };
        let part = args.of(plan(), &source, Path::new("."), "ci").unwrap();
        assert_eq!(part.pipeline().timeout_seconds.map(u32::from), Some(7));
        let keys = part.pipeline().nodes.iter().map(|node| node.step.key.to_string()).collect();
        (keys, part.pipeline().edges.iter().map(|edge| (edge.0, edge.1)).collect())
    }

    #[test]
    fn a_part_has_what_its_steps_need_and_edges_between_them() {
        assert_eq!(part(&[], &[]).0, "abcde");
        assert_eq!(part(&["d"], &[]), ("abd".into(), vec![(0, 1), (1, 2)]));
        assert_eq!(part(&["E"], &[]), ("e".into(), vec![]));
        assert_eq!(part(&["c", "e"], &[]), ("ace".into(), vec![(0, 1)]));
        assert_eq!(part(&[], &["b"]), ("abd".into(), vec![(0, 1), (1, 2)]));
        assert_eq!(part(&["e"], &["c"]), ("ace".into(), vec![(0, 1)]));
        assert_eq!(part(&[], &["a"]).0, "abcd");
    }

    #[test]
    fn a_wrong_name_is_an_error() {
        let error = find(&plan(), "f").unwrap_err();
        assert!(error.to_string().contains("no step named `f`"), "{error}");
    }
}
