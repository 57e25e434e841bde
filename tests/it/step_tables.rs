//! Arguments of steps from tables: who gets them, which win, and what is refused or left out.

use hm_exec::{
    plan::{BindOptions, BoundPlan, StepIndex, StepTable, bind},
    runner::{ArgsSchema, Limits, Network, RunnerDescriptor},
};
use serde_json::{Value, json};

use crate::bind::{self as bound, step};

fn table(glob: &str, args: &[(&str, Value)]) -> StepTable {
    let table = StepTable::new(glob).unwrap();
    args.iter().fold(table, |table, (name, value)| table.arg(*name, value.clone(), format!("[{glob}]")))
}

/// Returns the sandbox's descriptor, whose steps have limits, and that of a runner without arguments.
fn with_limits() -> Vec<RunnerDescriptor> {
    let mut runners = vec![RunnerDescriptor::new("sandbox"), RunnerDescriptor::new("process")];
    runners[0].is_default = true;
    runners[0].args = ArgsSchema::of::<Limits>();
    runners
}

#[test]
fn tables_give_arguments_to_the_steps_that_they_match_and_the_last_one_wins() {
    let plan = bound::plan(
        &[
            step("unit-test", json!({ "label": "Units / fast" })),
            step("lint", json!({ "runner_args": { "memory": "1g" } })),
            step("build", json!({})),
        ],
        json!([]),
    );
    let step_tables = vec![
        table("*", &[("memory", json!("2g")), ("pids", json!(7))]),
        table("*-test", &[("pids", json!(9)), ("retries", json!(2))]),
        // A label, and `*` matches `/`.
        table("Units*fast", &[("cpus", json!(2))]),
        table("nothing", &[("cpus", json!(3))]),
    ];
    let options = BindOptions { step_tables, ..BindOptions::default() };
    let bound = bind(&plan, with_limits(), &options).unwrap();
    let args = |at: usize| bound.steps[at].step.runner_args.clone().unwrap();
    assert_eq!(args(0), json!({ "memory": "2g", "pids": 9, "cpus": 2 }));
    assert_eq!(bound.outcomes[&StepIndex(0)].retries, 2);
    assert_eq!(args(1), json!({ "memory": "1g", "pids": 7 }));
    assert_eq!(args(2), json!({ "memory": "2g", "pids": 7 }));
    assert_eq!(bound.unused_tables, [3]);
    // A key of the cache is made of the step's arguments, and cannot tell the two pipelines apart.
    let written = step("build", json!({ "runner_args": { "pids": 7, "memory": "2g" } }));
    let plan = bound::plan(&[written], json!([]));
    let written = bind(&plan, with_limits(), &BindOptions::default()).unwrap();
    let in_keys =
        |bound: &BoundPlan, at: usize| bound.runners[0].args.in_keys(bound.steps[at].step.runner_args.as_ref());
    assert_eq!(in_keys(&bound, 2), in_keys(&written, 0));
    assert_eq!(written.steps[0].step.runner_args, Some(args(2)));
}

#[test]
fn wrong_values_of_tables_are_reported_with_their_place() {
    let plan = bound::plan(&[step("a", json!({})), step("b", json!({ "runner": "process" }))], json!([]));
    let wrong = [("memory", json!("much")), ("retries", json!(99))];
    let options = BindOptions { step_tables: vec![table("*", &wrong)], ..BindOptions::default() };
    let invalid = bind(&plan, with_limits(), &options).unwrap_err();
    let lines: Vec<_> = invalid.problems().iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines.iter().all(|line| line.ends_with("(set by [*])")), "{lines:?}");
    assert!(lines[1].starts_with("step `a`: runner `sandbox` rejects runner_args.memory:"), "{lines:?}");
    assert!(lines[2].starts_with("step `b`: runner_args.retries must be"), "{lines:?}");
    assert!(StepTable::new("a[").unwrap_err().to_string().contains("a["));
}

#[test]
fn general_tables_leave_out_what_a_runner_does_not_accept_and_options_win_over_tables() {
    let plan = bound::plan(
        &[
            step("a", json!({})),
            step("b", json!({ "runner": "process" })),
            step("c", json!({ "runner": "process", "runner_args": { "cpus": 1 } })),
        ],
        json!([]),
    );
    let args = [("memory", json!("1g")), ("network", json!("none")), ("soft_fail", json!(true))];
    let options = BindOptions {
        step_tables: vec![table("[ab]", &args).general(), table("x", &args).general()],
        ..Default::default()
    };
    let invalid = bind(&plan, with_limits(), &options).unwrap_err();
    assert_eq!(invalid.problems().len(), 1, "only the step's own: {invalid}");

    let plan = bound::plan(&[step("a", json!({})), step("b", json!({ "runner": "process" }))], json!([]));
    let bound = bind(&plan, with_limits(), &options).unwrap();
    assert_eq!(bound.steps[0].step.runner_args, Some(json!({ "memory": "1g", "network": "none" })));
    assert_eq!(bound.steps[1].step.runner_args, None);
    assert_eq!(bound.outcomes.len(), 2, "the engine's arguments are for any runner");
    let left_out: Vec<_> = bound.left_out.iter().map(|(arg, count)| (&*arg.name, &*arg.runner, *count)).collect();
    assert_eq!(left_out, [("memory", "process", 1), ("network", "process", 1)]);

    let options = BindOptions { network: Some(Network::Private), ..options };
    let bound = bind(&plan, with_limits(), &options).unwrap();
    let network = bound.steps[0].step.runner_args.as_ref().unwrap().get("network");
    assert_eq!(network, None, "the default, which is private");
}
