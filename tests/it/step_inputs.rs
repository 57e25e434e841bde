//! Files of other steps, when a plan is bound: which are accepted, and what is said about the others.

use hm_exec::{
    Plan,
    plan::{BindOptions, StepIndex, bind},
};
use serde_json::{Value, json};

use crate::bind::{assert_refused, bound, plan, runners, step};

/// A chain of three steps, and a step beside them. The last step of the chain has `inputs`.
fn with_inputs(runner: &str, inputs: Value) -> Plan {
    let join = json!({ "runner": runner, "runner_args": { "inputs": inputs } });
    let steps = [step("a:/b", json!({})), step("between", json!({})), step("join", join), step("beside", json!({}))];
    plan(&steps, json!([[0, 1, "depends_on"], [1, 2, "builds_in"]]))
}

#[test]
fn inputs_name_a_path_of_a_step_above_and_a_target() {
    let inputs = json!({ "between:/out//x/": "/in/b", "a:/b:/out": "/in/a/", "between:/workspace": "/workspace/in" });
    let bound = bound(&with_inputs("sandbox", inputs), &BindOptions::default());
    let found: Vec<_> = bound.inputs[&StepIndex(2)].iter().map(|it| (it.step.0, &*it.path, &*it.target)).collect();
    assert_eq!(found, [(0, "/out", "/in/a"), (1, "/out/x", "/in/b"), (1, "/workspace", "/workspace/in")]);
    assert_eq!(bound.steps.iter().map(|step| step.is_input).collect::<Vec<_>>(), [true, true, false, false]);
    assert_eq!(bound.steps[2].step.runner_args, None, "neither runners nor keys see them");
    let none = bind(&with_inputs("sandbox", Value::Null), runners(), &BindOptions::default()).unwrap();
    assert!(none.inputs.is_empty() && !none.steps[0].is_input);
}

#[test]
fn wrong_inputs_are_refused_with_their_reason() {
    for (from, target, expected) in [
        ("betwen:/x", "/in", "no step with the key `betwen`, did you mean `between`?"),
        ("nothing:/x", "/in", "no step with the key `nothing`"),
        ("join:/x", "/in", "a step has its own files anyway"),
        ("beside:/x", "/in", "the step does not wait for `beside`: add it to the steps that it depends on"),
        ("between", "/in", "write a step and an absolute path, as in `test:/workspace/coverage`"),
        ("between:x", "/in", "write a step and an absolute path, as in `test:/workspace/coverage`"),
        ("between:/a/../b", "/in", "its path cannot be taken over: write an absolute path without `..`"),
        ("between:/", "/in", "its path cannot be taken over: /proc belongs to the sandbox"),
        ("between:/proc/1", "/in", "its path cannot be taken over: /proc belongs to the sandbox"),
        ("between:/x", "in", "nothing can be shown at `in`: write an absolute path without `..`"),
        ("between:/x", "/dev/shm", "nothing can be shown at `/dev/shm`: /dev belongs to the sandbox"),
        ("between:/x", "/workspace", "nothing can be shown at `/workspace`: it holds the whole source"),
    ] {
        let plan = with_inputs("sandbox", json!({ from: target }));
        let expected = format!("step `join`: wrong input `{from}`: {expected}");
        assert_refused(&plan, runners(), &BindOptions::default(), &[&expected]);
    }
    for (inputs, expected) in [
        (
            json!([]),
            "an object of at most 256 paths of steps and targets, such as {\"test:/workspace/cov\": \"/workspace/cov/test\"}, not `a list`",
        ),
        (json!({ "between:/x": 1 }), "an object whose values are paths, not `1`"),
    ] {
        let expected = format!("step `join`: runner_args.inputs must be {expected}");
        assert_refused(&with_inputs("sandbox", inputs), runners(), &BindOptions::default(), &[&expected]);
    }
    let nested = json!({ "between:/x": "/in", "between:/y": "/in/y", "between:/z": "/other" });
    let expected = ["step `join`: wrong input `between:/y`: its target /in/y overlaps with /in: choose one beside it"];
    assert_refused(&with_inputs("sandbox", nested), runners(), &BindOptions::default(), &expected);
}

#[test]
fn inputs_need_runners_that_can_show_and_keep_files() {
    let inputs = json!({ "between:/x": "/in" });
    let expected =
        ["step `join`: runner `docker` rejects runner_args.inputs: this runner cannot show files of other steps to a \
         step: use `sandbox` or `docker`"];
    assert_refused(&with_inputs("docker", inputs), runners(), &BindOptions::default(), &expected);
    let join = json!({ "runner_args": { "inputs": { "made:/x": "/in" } } });
    let plan = plan(&[step("made", json!({ "runner": "process" })), step("join", join)], json!([[0, 1, "depends_on"]]));
    let expected =
        ["step `join`: wrong input `made:/x`: runner `process` keeps no files for other steps: use `sandbox`"];
    assert_refused(&plan, runners(), &BindOptions::default(), &expected);
}
