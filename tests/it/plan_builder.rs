//! Plans that a program makes are the plans of the same pipelines in JSON.

use std::{collections::BTreeMap, time::Duration};

use hm_exec::{
    Plan,
    ir::{Cache, EdgeKind},
    plan::{BindOptions, PlanBuilder, Step, bind},
    runner::{ArgsSchema, ImageSupport, Limits, RunnerDescriptor},
};
use proptest::{collection, option, prelude::*, sample};
use serde_json::{Map, Value, json};

use crate::support::graphs::{Graph, cases, graphs};

/// A step as both sides are told it.
#[derive(Debug, Clone)]
struct Told {
    cmd: String,
    label: Option<String>,
    image: Option<&'static str>,
    env: BTreeMap<String, String>,
    timeout: Option<u32>,
    cache: Option<Cache>,
    runner: Option<&'static str>,
    args: BTreeMap<String, Value>,
}

#[derive(Debug, Clone)]
struct ToldPlan {
    graph: Graph,
    steps: Vec<Told>,
    env: BTreeMap<String, String>,
    default_image: Option<&'static str>,
    timeout: Option<u32>,
}

fn env() -> impl Strategy<Value = BTreeMap<String, String>> {
    collection::btree_map("[ABC]", ".{0,3}", 0..3)
        .prop_map(|env| env.into_iter().filter(|(_, value)| !value.contains('\0')).collect())
}

fn policy() -> impl Strategy<Value = Cache> {
    let plain = prop_oneof![
        "k[0-9]".prop_map(Cache::forever),
        ("k", 0..2_000_u64).prop_map(|(key, millis)| Cache::ttl(key, Duration::from_millis(millis * 500))),
        collection::vec("[a-z]{1,3}|/abs|\\*\\*", 0..3).prop_map(|paths| Cache::on_change("k", paths)),
    ];
    plain.prop_recursive(2, 6, 3, |inner| {
        ("k", collection::vec(inner, 0..3)).prop_map(|(key, parts)| Cache::compose(key, parts))
    })
}

fn args() -> impl Strategy<Value = BTreeMap<String, Value>> {
    let name = sample::select(vec!["memory", "cpus", "soft_fail", "retries", "odd"]).prop_map(ToOwned::to_owned);
    let value =
        prop_oneof![Just(json!("1g")), Just(json!(2)), Just(json!(true)), Just(json!([1, 2])), Just(json!(null))];
    collection::btree_map(name, value, 0..3)
}

fn told() -> impl Strategy<Value = Told> {
    let runner = option::of(sample::select(vec!["sandbox", "process", "sandbx"]));
    let image = option::of(sample::select(vec!["host", "rootfs:/srv", "alpine"]));
    let text = ("[a-z ]{0,3}", option::of("[A-Z]{0,2}"), image, runner);
    (text, env(), option::of(1..100_u32), option::weighted(0.3, policy()), args()).prop_map(
        |((cmd, label, image, runner), env, timeout, cache, args)| Told {
            cmd,
            label,
            image,
            env,
            timeout,
            cache,
            runner,
            args,
        },
    )
}

fn plans() -> impl Strategy<Value = ToldPlan> {
    graphs(0..=8).prop_flat_map(|graph| {
        let steps = collection::vec(told(), graph.len);
        let image = option::of(sample::select(vec!["host", "alpine"]));
        (Just(graph), steps, env(), image, option::of(1..100_u32)).prop_map(
            |(graph, steps, env, default_image, timeout)| ToldPlan { graph, steps, env, default_image, timeout },
        )
    })
}

fn kind(builds_in: bool) -> EdgeKind {
    if builds_in { EdgeKind::BuildsIn } else { EdgeKind::DependsOn }
}

impl ToldPlan {
    /// Returns the pipeline as the languages write it.
    fn to_json(&self) -> String {
        let node = |(at, step): (usize, &Told)| {
            let mut merged = self.env.clone();
            merged.extend(step.env.clone());
            let own = (!step.env.is_empty()).then_some(&step.env);
            let mut command = json!({
                "key": format!("s{at}"), "cmd": step.cmd, "label": step.label, "image": step.image, "env": own,
                "timeout_seconds": step.timeout, "cache": step.cache,
            });
            if let Some(runner) = step.runner {
                command["runner"] = runner.into();
            }
            if !step.args.is_empty() {
                command["runner_args"] = Value::Object(step.args.clone().into_iter().collect());
            }
            json!({ "step": command, "env": merged })
        };
        let nodes: Vec<_> = self.steps.iter().enumerate().map(node).collect();
        let edges: Vec<_> = self.graph.edges.iter().map(|&(from, to, in_it)| json!([from, to, kind(in_it)])).collect();
        let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges });
        let mut ir = Map::from_iter([("version".to_owned(), "0".into()), ("graph".to_owned(), graph)]);
        ir.extend(self.default_image.map(|image| ("default_image".to_owned(), image.into())));
        ir.extend(self.timeout.map(|seconds| ("timeout_seconds".to_owned(), seconds.into())));
        Value::Object(ir).to_string()
    }

    fn step(&self, at: usize) -> Step {
        let told = self.steps[at].clone();
        let mut step = Step::new(format!("s{at}"), told.cmd).envs(told.env).runner_args(told.args);
        if let Some(label) = told.label {
            step = step.label(label);
        }
        if let Some(image) = told.image {
            step = step.image(image);
        }
        if let Some(seconds) = told.timeout {
            step = step.timeout(Duration::from_secs(seconds.into()));
        }
        if let Some(cache) = told.cache {
            step = step.cache(cache);
        }
        if let Some(runner) = told.runner {
            step = step.runner(runner);
        }
        step
    }

    fn builder(&self) -> PlanBuilder {
        let mut builder = Plan::builder();
        for (name, value) in &self.env {
            builder = builder.env(name, value);
        }
        if let Some(image) = self.default_image {
            builder = builder.default_image(image);
        }
        if let Some(seconds) = self.timeout {
            builder = builder.timeout(Duration::from_secs(seconds.into()));
        }
        builder
    }

    /// Builds the plan with its edges in their order.
    fn built(&self) -> Plan {
        let mut builder = self.builder().steps((0..self.steps.len()).map(|at| self.step(at)));
        for &(from, to, builds_in) in &self.graph.edges {
            builder = builder.edge(format!("s{from}"), format!("s{to}"), kind(builds_in));
        }
        builder.build().unwrap()
    }

    /// Builds the plan from steps that name their parents, some of which are added later.
    fn built_by_parents(&self) -> Plan {
        let step = |at: usize| {
            let edges = self.graph.edges.iter().filter(|edge| edge.1 == at);
            edges.fold(self.step(at), |step, &(from, _, builds_in)| match builds_in {
                true => step.builds_in(format!("s{from}")),
                false => step.depends_on(format!("s{from}")),
            })
        };
        (0..self.steps.len()).fold(self.builder(), |builder, at| builder.step(step(at))).build().unwrap()
    }
}

fn runners() -> Vec<RunnerDescriptor> {
    let mut sandbox = RunnerDescriptor::new("sandbox");
    (sandbox.is_default, sandbox.capabilities.images) = (true, ImageSupport::Local);
    sandbox.args = ArgsSchema::of::<Limits>();
    let mut process = RunnerDescriptor::new("process");
    process.capabilities.images = ImageSupport::HostOnly;
    vec![sandbox, process]
}

/// Returns everything that a bound plan has, or everything that is wrong with it.
fn bound(plan: &Plan) -> Result<String, String> {
    let bound = bind(plan, runners(), &BindOptions::default()).map_err(|invalid| invalid.to_string())?;
    Ok(format!("{:?} {:?} {:?} {:?}", bound.dag, bound.steps, bound.timeout, bound.outcomes))
}

#[track_caller]
fn assert_same(one: &Plan, other: &Plan) {
    assert_eq!(one.pipeline(), other.pipeline());
    assert_eq!(one.dag(), other.dag());
    assert_eq!(bound(one), bound(other));
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_built_plan_is_the_plan_of_the_same_json(told in plans()) {
        let parsed = Plan::parse(told.to_json()).unwrap();
        let built = told.built();
        assert_same(&built, &parsed);
        assert_same(&Plan::parse(built.ir_json()).unwrap(), &built);

        let mut by_child = told;
        by_child.graph.edges.sort_by_key(|edge| edge.1);
        assert_same(&by_child.built_by_parents(), &Plan::parse(by_child.to_json()).unwrap());
    }
}

#[test]
fn the_generated_plans_bind_and_fail_to_bind() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let results = (0..200).map(|_| bound(&plans().new_tree(&mut runner).unwrap().current().built()).is_ok());
    let fit = results.filter(|fits| *fits).count();
    assert!((20..180).contains(&fit), "{fit} of 200 bind");
}
