//! What binding a plan to an engine's runners accepts, resolves and refuses, with the exact messages.

use std::{sync::Arc, time::Instant};

use hm_exec::{
    Plan,
    plan::{Base, BindOptions, BoundPlan, OutcomeRules, SoftFail, StepIndex, bind},
    runner::{ArgsSchema, ImageSupport, Limits, Network, RunnerCapabilities, RunnerDescriptor, RunnerIndex},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::ir::{fixtures, ir};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    #[serde(default)]
    #[expect(dead_code, reason = "only its shape is checked")]
    cpus: Option<u32>,
}

fn runner(name: &str, change: impl FnOnce(&mut RunnerCapabilities)) -> RunnerDescriptor {
    let mut runner = RunnerDescriptor::new(name);
    change(&mut runner.capabilities);
    if name == "docker" {
        runner.args = ArgsSchema::of::<Args>();
    }
    runner
}

/// Returns the descriptors of `sandbox` (the default), `process` and `docker`.
pub(crate) fn runners() -> Vec<RunnerDescriptor> {
    let mut runners = vec![
        runner("sandbox", |it| {
            (it.layers, it.inputs, it.secrets, it.images) = (true, true, true, ImageSupport::Local);
        }),
        runner("process", |it| it.images = ImageSupport::HostOnly),
        runner("docker", |it| it.layers = true),
    ];
    runners[0].is_default = true;
    runners
}

pub(crate) fn plan(steps: &[Value], edges: Value) -> Plan {
    let nodes: Vec<_> = steps.iter().map(|step| json!({ "step": step, "env": { "A": "1" } })).collect();
    Plan::parse(ir(&json!(nodes), &edges).to_string()).unwrap()
}

pub(crate) fn step(key: &str, more: Value) -> Value {
    let mut step = json!({ "key": key, "cmd": "true" });
    more.as_object().unwrap().iter().for_each(|(name, value)| step[name] = value.clone());
    step
}

pub(crate) fn bound(plan: &Plan, options: &BindOptions) -> BoundPlan {
    bind(plan, runners(), options).unwrap_or_else(|invalid| panic!("{invalid}"))
}

#[track_caller]
pub(crate) fn assert_refused(plan: &Plan, runners: Vec<RunnerDescriptor>, options: &BindOptions, expected: &[&str]) {
    let invalid = bind(plan, runners, options).unwrap_err();
    let lines: Vec<_> = invalid.problems().iter().map(ToString::to_string).collect();
    assert_eq!(lines, expected);
}

fn images(images: &[(&str, &str)]) -> BindOptions {
    let images = images.iter().map(|&(from, to)| (from.to_owned(), to.to_owned())).collect();
    BindOptions { images, ..BindOptions::default() }
}

fn named(runner: &str) -> BindOptions {
    BindOptions { runner: Some(runner.to_owned()), ..BindOptions::default() }
}

#[test]
fn steps_get_the_runner_they_name_else_the_option_else_the_default() {
    let plan = plan(&[step("a", json!({})), step("b", json!({ "runner": "docker" }))], json!([]));
    let indices = |options| bound(&plan, &options).steps.iter().map(|it| it.runner.0).collect::<Vec<_>>();
    assert_eq!(indices(BindOptions::default()), [0, 2]);
    assert_eq!(indices(named("process")), [1, 2]);
    assert_eq!(&*bound(&plan, &named("process")).runner(StepIndex(0)).name, "process");
}

#[test]
fn root_steps_boot_from_their_image_else_the_pipelines_else_host() {
    let steps = [step("a", json!({ "image": "rootfs:/srv" })), step("b", json!({})), step("c", json!({}))];
    let edges = json!([[0, 2, "builds_in"]]);
    let plan_without = plan(&steps, edges.clone());
    let without = bound(&plan_without, &BindOptions::default());
    assert_eq!(without.base(StepIndex(0)), Base::Image("rootfs:/srv"));
    assert_eq!(without.base(StepIndex(1)), Base::Image("host"));
    assert_eq!(without.base(StepIndex(2)), Base::Snapshot(StepIndex(0)));
    assert_eq!(without.steps[2].step.image, None);
    assert!(without.steps[0].has_lineage_children && !without.steps[1].has_lineage_children);

    let mut with_default: Value = serde_json::from_str(plan_without.ir_json()).unwrap();
    with_default["default_image"] = json!("ubuntu:24.04");
    let plan = Plan::parse(with_default.to_string()).unwrap();
    let options = images(&[("ubuntu:24.04", "host"), ("alpine", "host"), ("rootfs:/srv", "rootfs:/tmp")]);
    let bound = bound(&plan, &options);
    assert_eq!(bound.base(StepIndex(0)), Base::Image("rootfs:/tmp"));
    assert_eq!(bound.base(StepIndex(1)), Base::Image("host"));
    assert_eq!(bound.unused_images, ["alpine"]);
}

#[test]
fn unchanged_fields_are_shared_with_the_plan() {
    let plan = plan(
        &[step("a", json!({ "image": "host" })), step("b", json!({})), step("c", json!({}))],
        json!([[0, 1, "builds_in"]]),
    );
    let nodes = &plan.pipeline().nodes;
    let same = bound(&plan, &BindOptions::default());
    assert!(Arc::ptr_eq(&same.steps[0].step, &nodes[0].step) && Arc::ptr_eq(&same.steps[1].step, &nodes[1].step));
    assert!(!Arc::ptr_eq(&same.steps[2].step, &nodes[2].step));
    assert!(same.steps.iter().zip(nodes).all(|(step, node)| Arc::ptr_eq(&step.env, &node.env)));

    let env = [("A".to_owned(), "2".to_owned()), ("B".to_owned(), "3".to_owned())].into();
    let merged = bound(&plan, &BindOptions { env, ..BindOptions::default() });
    assert_eq!((&*merged.steps[0].env["A"], &*merged.steps[0].env["B"]), ("2", "3"));
    assert!(Arc::ptr_eq(&merged.steps[0].env, &merged.steps[2].env));
}

#[test]
fn time_limits_and_names_are_carried_over() {
    let mut json: Value =
        serde_json::from_str(plan(&[step("a", json!({ "timeout_seconds": 9, "label": "All" }))], json!([])).ir_json())
            .unwrap();
    json["timeout_seconds"] = json!(60);
    let bound = bound(&Plan::parse(json.to_string()).unwrap(), &BindOptions::default());
    assert_eq!((bound.timeout.unwrap().as_secs(), bound.steps[0].timeout().unwrap().as_secs()), (60, 9));
    assert_eq!(&*bound.steps[0].display_name, "All");
}

#[test]
fn an_unknown_runner_is_reported_with_the_nearest_and_all_known_names() {
    for (name, nearest) in [
        ("dokcer", ", did you mean `docker`?"),
        ("Sandbox", ", did you mean `sandbox`?"),
        ("proces", ", did you mean `process`?"),
        ("kubernetes", ""),
        ("", ""),
    ] {
        let plan = plan(&[step("a", json!({ "runner": name }))], json!([]));
        let expected =
            format!("step `a`: no runner named `{name}`{nearest} (known: `sandbox`, `process` and `docker`)");
        assert_refused(&plan, runners(), &BindOptions::default(), &[&expected]);
    }
}

#[test]
fn a_runner_that_is_not_compiled_in_is_reported_as_such() {
    let plan = plan(&[step("a", json!({ "runner": "vm" }))], json!([]));
    let expected = "step `a`: runner `vm` is not compiled into this program (known: `sandbox`, `process` and `docker`)";
    assert_refused(&plan, runners(), &BindOptions::default(), &[expected]);
}

#[test]
fn a_wrong_runner_option_is_reported_once_and_not_for_each_step() {
    let plan = plan(&[step("a", json!({})), step("b", json!({}))], json!([]));
    let expected =
        "options: no runner named `sandbx`, did you mean `sandbox`? (known: `sandbox`, `process` and `docker`)";
    assert_refused(&plan, runners(), &named("sandbx"), &[expected]);
}

#[test]
fn a_step_without_a_runner_needs_a_default() {
    let plan = plan(&[step("a", json!({})), step("b", json!({ "runner": "noop" }))], json!([]));
    let expected = "step `a`: the step names no runner, and there is no default (known: `noop`)";
    assert_refused(&plan, vec![runner("noop", |_| {})], &BindOptions::default(), &[expected]);
    let expected = [
        "step `a`: the step names no runner, and there is no default (known: none)",
        "step `b`: no runner named `noop` (known: none)",
    ];
    assert_refused(&plan, vec![], &BindOptions::default(), &expected);
}

#[test]
fn runner_args_are_checked_by_the_runner() {
    let args = |runner, args| step("a", json!({ "runner": runner, "runner_args": args }));
    let check = |step, expected: &str| {
        assert_refused(&plan(&[step], json!([])), runners(), &BindOptions::default(), &[expected]);
    };
    check(
        args("docker", json!({ "cpus": "two" })),
        "step `a`: runner `docker` rejects runner_args.cpus: invalid type: string \"two\", expected u32",
    );
    check(
        args("docker", json!({ "cpu": 2 })),
        "step `a`: runner `docker` rejects runner_args.cpu: unknown field `cpu`, expected `cpus`, \
         or `soft_fail`, `retries`, `outputs`, `inputs`, `cache`; did you mean `cpus`?",
    );
    check(
        args("docker", json!({ "\x1b[2J": 2 })),
        "step `a`: runner `docker` rejects runner_args.\\u{1b}[2J: unknown field `\\u{1b}[2J`, expected `cpus`, \
         or `soft_fail`, `retries`, `outputs`, `inputs`, `cache`",
    );
    check(
        args("docker", json!({ "retry": 2 })),
        "step `a`: runner `docker` rejects runner_args.retry: unknown field `retry`, expected `cpus`, \
         or `soft_fail`, `retries`, `outputs`, `inputs`, `cache`; did you mean `retries`?",
    );
    check(
        args("sandbox", json!({ "cpus": 2 })),
        "step `a`: runner `sandbox` rejects runner_args: this runner takes no arguments",
    );
    for args in [json!({ "cpus": 2 }), json!({}), Value::Null] {
        let step = step("a", json!({ "runner": "docker", "runner_args": args }));
        assert_eq!(bound(&plan(&[step], json!([])), &BindOptions::default()).steps[0].runner, RunnerIndex(2));
    }
}

#[test]
fn the_engine_takes_its_arguments_on_every_runner() {
    let of = |runner: &str, args: Value| step(runner, json!({ "runner": runner, "runner_args": args }));
    let steps = [
        of("process", json!({ "soft_fail": true })),
        of("docker", json!({ "cpus": 2, "retries": 10, "soft_fail": [3, 1, 3] })),
        of("sandbox", json!({ "soft_fail": false, "retries": null })),
    ];
    let plan = plan(&steps, json!([]));
    let bound = bound(&plan, &BindOptions::default());
    let expected = [
        (StepIndex(0), OutcomeRules::new(0, SoftFail::Any)),
        (StepIndex(1), OutcomeRules::new(10, SoftFail::Codes([1, 3].into()))),
    ];
    assert_eq!(bound.outcomes.into_iter().collect::<Vec<_>>(), expected);
    let rest: Vec<_> = bound.steps.iter().map(|bound| bound.step.runner_args.clone()).collect();
    assert_eq!(rest, [None, Some(json!({ "cpus": 2 })), None], "neither runners nor keys see them");
}

#[test]
fn wrong_arguments_of_the_engine_are_all_reported_beside_those_of_the_runner() {
    for (args, expected) in [
        (json!({ "retries": 11 }), &["retries must be a whole number from 0 to 10, not `11`"][..]),
        (json!({ "retries": -1 }), &["retries must be a whole number from 0 to 10, not `-1`"]),
        (json!({ "retries": 1.5 }), &["retries must be a whole number from 0 to 10, not `1.5`"]),
        (json!({ "retries": 300 }), &["retries must be a whole number from 0 to 10, not `300`"]),
        (json!({ "retries": [1] }), &["retries must be a whole number from 0 to 10, not `a list`"]),
        (json!({ "cache": "on" }), &["cache must be `auto`, `declared` or `off`, not `\"on\"`"]),
        (json!({ "cache": false }), &["cache must be `auto`, `declared` or `off`, not `false`"]),
        (json!({ "soft_fail": 1 }), &["soft_fail must be `true`, `false` or a list of exit codes, not `1`"]),
        (json!({ "soft_fail": {} }), &["soft_fail must be `true`, `false` or a list of exit codes, not `an object`"]),
        (json!({ "soft_fail": [1, 0] }), &["soft_fail[1] must be an exit code from 1 to 255, not `0`"]),
        (json!({ "soft_fail": [256] }), &["soft_fail[0] must be an exit code from 1 to 255, not `256`"]),
        (
            json!({ "soft_fail": ["\u{1b}[2J"] }),
            &["soft_fail[0] must be an exit code from 1 to 255, not `\"\\u001b[2J\"`"],
        ),
        (
            json!({ "soft_fail": "yes", "retries": true }),
            &[
                "soft_fail must be `true`, `false` or a list of exit codes, not `\"yes\"`",
                "retries must be a whole number from 0 to 10, not `true`",
            ],
        ),
    ] {
        let plan = plan(&[step("a", json!({ "runner_args": args }))], json!([]));
        let expected: Vec<_> = expected.iter().map(|text| format!("step `a`: runner_args.{text}")).collect();
        let expected: Vec<_> = expected.iter().map(String::as_str).collect();
        assert_refused(&plan, runners(), &BindOptions::default(), &expected);
    }
    let args = json!({ "retries": 99, "cpu": 1 });
    let plan = plan(&[step("a", json!({ "runner": "docker", "runner_args": args }))], json!([]));
    let expected = [
        "step `a`: runner_args.retries must be a whole number from 0 to 10, not `99`",
        "step `a`: runner `docker` rejects runner_args.cpu: unknown field `cpu`, expected `cpus`, \
         or `soft_fail`, `retries`, `outputs`, `inputs`, `cache`; did you mean `cpus`?",
    ];
    assert_refused(&plan, runners(), &BindOptions::default(), &expected);
}

#[test]
fn steps_that_name_no_network_get_that_of_the_options_if_their_runner_has_it() {
    let mut runners = runners();
    runners[0].args = ArgsSchema::of::<Limits>();
    runners[0].capabilities.private_network = true;
    let plan = plan(
        &[
            step("a", json!({})),
            step("b", json!({ "runner_args": { "network": "host" } })),
            step("c", json!({ "runner_args": { "cpus": 1 } })),
            step("d", json!({ "runner": "process" })),
        ],
        json!([]),
    );
    let args = |network| {
        let options = BindOptions { network, ..BindOptions::default() };
        let bound = bind(&plan, runners.clone(), &options).unwrap();
        bound.steps.iter().map(|it| it.step.runner_args.clone().unwrap_or_default()).collect::<Vec<_>>()
    };
    let unchanged = [json!(null), json!({ "network": "host" }), json!({ "cpus": 1 }), json!(null)];
    assert_eq!(args(None), unchanged);
    assert_eq!(args(Some(Network::Private)), unchanged);
    for (network, name) in [(Network::Host, "host"), (Network::None, "none")] {
        let mut expected = unchanged.clone();
        (expected[0], expected[2]) = (json!({ "network": name }), json!({ "cpus": 1, "network": name }));
        assert_eq!(args(Some(network)), expected);
    }
}

#[test]
fn limits_are_checked_with_the_place_of_the_mistake() {
    let holds_limits = || {
        let mut runners = runners();
        runners[0].args = ArgsSchema::of::<Limits>();
        runners
    };
    let plan = |args| plan(&[step("a", json!({ "runner_args": args }))], json!([]));
    for (args, says) in [
        (
            json!({ "memory": "much" }),
            "memory: invalid value: string \"much\", expected a number of bytes of at least 4194304, or text such as \"512m\"",
        ),
        (
            json!({ "cpus": 0 }),
            "cpus: invalid value: floating point `0.0`, expected a number of processors from 0.01 to 4096",
        ),
        (json!({ "pids": 0 }), "pids: invalid value: integer `0`, expected a nonzero u64"),
        (
            json!({ "network": "bridge" }),
            "network: unknown variant `bridge`, expected one of `host`, `private`, `none`",
        ),
        (
            json!({ "disk": 1 }),
            "disk: unknown field `disk`, expected one of `memory`, `cpus`, `pids`, `network`, `host_ports`, `egress`, `caches`, `ignore`, `services`, \
             or `soft_fail`, `retries`, `outputs`, `inputs`, `cache`",
        ),
    ] {
        let expected = format!("step `a`: runner `sandbox` rejects runner_args.{says}");
        assert_refused(&plan(args), holds_limits(), &BindOptions::default(), &[&expected]);
    }
    let all = json!({ "memory": "512m", "cpus": 1.5, "pids": 100, "network": "none" });
    bind(&plan(all), holds_limits(), &BindOptions::default()).unwrap();
}

#[test]
fn images_that_a_runner_cannot_boot_are_reported_with_a_remedy() {
    let steps = [
        step("a", json!({ "image": "debian:bookworm" })),
        step("b", json!({ "image": "rootfs:/srv", "runner": "process" })),
        step("c", json!({ "image": "rootfs:" })),
        step("d", json!({ "image": "anything", "runner": "docker" })),
        step("e", json!({ "image": "ignored" })),
    ];
    let plan = plan(&steps, json!([[3, 4, "builds_in"]]));
    let expected = [
        "step `a`: runner `sandbox` cannot start from image `oci:dir`, only from `host` and `rootfs:DIR`; to run on this \
         machine's system instead: `--image debian:bookworm=host`",
        "step `b`: runner `process` cannot start from image `rootfs:/srv`, only from `host`; to run on this machine's \
         system instead: `--image rootfs:/srv=host`",
        "step `c`: runner `sandbox` cannot start from image `rootfs:`, only from `host` and `rootfs:DIR`; to run on this \
         machine's system instead: `--image rootfs:=host`",
    ];
    assert_refused(&plan, runners(), &images(&[("debian:bookworm", "oci:dir")]), &expected);
}

#[test]
fn invalid_and_missing_images_are_reported() {
    let everywhere = || {
        let images = [ImageSupport::All, ImageSupport::Portable, ImageSupport::Any];
        let mut runners: Vec<_> = ["all", "portable", "any"]
            .into_iter()
            .zip(images)
            .map(|(name, images)| runner(name, |it| it.images = images))
            .collect();
        runners[0].is_default = true;
        runners
    };
    let wrong = ["oci:/no/such/dir", "rootfs:/no/such/dir", "docker-archive:/no/such/file:a:b", "oci:"];
    let steps: Vec<_> = wrong.iter().map(|image| step(image, json!({ "image": image }))).collect();
    let expected = [
        "step `oci:/no/such/dir`: invalid image name `oci:/no/such/dir`: `/no/such/dir` does not exist",
        "step `rootfs:/no/such/dir`: cannot use `/no/such/dir` as a root filesystem: no such directory",
        "step `docker-archive:/no/such/file:a:b`: invalid image name `docker-archive:/no/such/file:a:b`: \
         `/no/such/file` does not exist",
        "step `oci:`: invalid image name `oci:`: expected `oci:PATH` or `oci:PATH:TAG`",
    ];
    assert_refused(&plan(&steps, json!([])), everywhere(), &BindOptions::default(), &expected);
    for on in ["portable", "any"] {
        let plan = plan(&[step("a", json!({ "image": "a//b", "runner": on }))], json!([]));
        let bound = bind(&plan, everywhere(), &BindOptions::default());
        assert_eq!(bound.is_ok(), on == "any" || cfg!(not(feature = "registry")), "{on}");
    }
    // Children boot from their parent's snapshot.
    let plan = plan(&[step("a", json!({})), step("b", json!({ "image": "oci:" }))], json!([[0, 1, "builds_in"]]));
    bind(&plan, everywhere(), &BindOptions::default()).unwrap();
}

#[test]
fn secrets_need_a_runner_that_supports_them() {
    let of = |runner| step(runner, json!({ "runner": runner }));
    let plan = plan(&[of("sandbox"), of("process"), step("more", json!({ "runner": "process" }))], json!([]));
    bound(&plan, &BindOptions::default());
    let options = BindOptions { has_secrets: true, ..BindOptions::default() };
    let expected = "step `process`: runner `process` does not support secrets, but this run has some";
    assert_refused(&plan, runners(), &options, &[expected]);
}

#[test]
fn a_child_boots_on_another_runner_only_if_both_support_layers() {
    let of = |runner| step(runner, json!({ "runner": runner }));
    let steps = [of("sandbox"), of("docker"), of("process")];
    bound(&plan(&steps, json!([[0, 1, "builds_in"], [1, 2, "depends_on"]])), &BindOptions::default());
    let expected = "step `process`: runner `process` can't boot from the snapshot of `docker`, which runner `docker` \
                    makes: run both on the same";
    let plan = plan(&steps, json!([[0, 1, "builds_in"], [1, 2, "builds_in"]]));
    assert_refused(&plan, runners(), &BindOptions::default(), &[expected]);
}

#[test]
fn variables_that_cannot_be_passed_to_a_program_are_refused() {
    let env = [("A=B".to_owned(), String::new()), ("C".to_owned(), "\0".to_owned())].into();
    let expected = [
        "options: invalid variable name `A=B`: a name must not be empty or contain `=` or NUL bytes",
        "options: variable `C` contains a NUL byte, which cannot be passed to a program",
    ];
    let options = BindOptions { env, ..BindOptions::default() };
    assert_refused(&plan(&[], json!([])), runners(), &options, &expected);
}

#[test]
fn all_mistakes_of_a_real_pipeline_are_reported_at_once() {
    let (_, text) = fixtures().into_iter().find(|(name, _)| name == "kitchen-sink.json").unwrap();
    let runners = runners().into_iter().filter(|runner| &*runner.name != "docker").collect();
    let expected = [
        "step `a`: runner `sandbox` cannot start from image `debian:bookworm`, only from `host` and `rootfs:DIR`; to run \
         on this machine's system instead: `--image debian:bookworm=host`",
        "step `c`: runner `docker` is not compiled into this program (known: `sandbox` and `process`)",
        "step `e`: runner `sandbox` cannot start from image `ubuntu:24.04`, only from `host` and `rootfs:DIR`; to run on \
         this machine's system instead: `--image ubuntu:24.04=host`",
        "step `f`: runner `cloud` is not compiled into this program (known: `sandbox` and `process`)",
        "step `g`: runner `vm` is not compiled into this program (known: `sandbox` and `process`)",
    ];
    assert_refused(&Plan::parse(text).unwrap(), runners, &BindOptions::default(), &expected);
}

#[test]
fn a_hundred_thousand_steps_bind() {
    let steps: Vec<_> = (0..100_000).map(|at| step(&format!("step-{at}"), json!({}))).collect();
    let edges: Vec<_> = (1..100_000).map(|to| json!([0, to, "depends_on"])).collect();
    let plan = plan(&steps, json!(edges));
    let started = Instant::now();
    let bound = bound(&plan, &BindOptions::default());
    println!("bind 100,000 steps: {:?}", started.elapsed());
    assert_eq!(bound.steps.len(), 100_000);
}
