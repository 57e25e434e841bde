//! The IR, checked with real pipelines, with the ecosystem's own reader, and at sizes that no user writes by
//! hand.

mod mistakes;

use std::time::Instant;

use hm_exec::{
    Plan,
    ir::{Edge, EdgeKind, Pipeline},
    plan::StepIndex,
};
use hm_pipeline_ir::PipelineGraph;
use proptest::{collection, option, prelude::*, sample};
use serde_json::{Value, json};

use crate::support::{
    ir::{fixtures, ir},
    ir_oracle,
};

#[test]
fn every_fixture_decodes_as_with_the_published_reader() {
    for (name, json) in fixtures() {
        Pipeline::decode(json.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
        ir_oracle::check(json.as_bytes());
    }
}

#[test]
fn a_plan_keeps_its_text_byte_for_byte() {
    let (_, json) = fixtures().remove(0);
    assert_eq!(Plan::parse(json.clone()).unwrap().ir_json(), json);
}

#[test]
fn cache_parameters_survive_reading_and_writing() {
    let cache =
        json!({ "policy": "compose", "key": "ab", "sub_policies": [{ "policy": "ttl", "duration_seconds": 60 }] });
    let node = json!({ "step": { "key": "a", "cmd": "true", "cache": cache }, "env": {} });
    let pipeline = Pipeline::decode(ir(&json!([node]), &json!([])).to_string().as_bytes()).unwrap();
    assert_eq!(serde_json::to_value(&pipeline.nodes[0].step.cache).unwrap(), cache);
}

#[test]
fn duplicate_edges_are_merged_and_builds_in_wins() {
    let node = |key: &str| json!({ "step": { "key": key, "cmd": "true" }, "env": {} });
    let edges = json!([[0, 1, "depends_on"], [1, 2, "builds_in"], [0, 1, "builds_in"], [1, 2, "builds_in"]]);
    let text = ir(&json!([node("a"), node("b"), node("c")]), &edges).to_string();
    let pipeline = Pipeline::decode(text.as_bytes()).unwrap();
    assert_eq!(pipeline.edges, [Edge(0, 1, EdgeKind::BuildsIn), Edge(1, 2, EdgeKind::BuildsIn)]);
    ir_oracle::check(text.as_bytes());
}

#[test]
fn version_may_be_left_out_and_unknown_fields_are_ignored() {
    let text = r#"{"graph": {"nodes": [{"step": {"key": "a", "cmd": "true", "new": [1]}, "env": {}, "x": {}}],
        "edge_property": "directed", "edges": [], "y": 1}, "z": null}"#;
    assert_eq!(Pipeline::decode(text.as_bytes()).unwrap().nodes.len(), 1);
    ir_oracle::check(text.as_bytes());
}

#[test]
fn adjacent_steps_with_the_same_environment_share_it() {
    let node = |key: &str, value: &str| json!({ "step": { "key": key, "cmd": "true" }, "env": { "A": value } });
    let text = ir(&json!([node("a", "1"), node("b", "1"), node("c", "2")]), &json!([])).to_string();
    let nodes = Pipeline::decode(text.as_bytes()).unwrap().nodes;
    assert!(std::sync::Arc::ptr_eq(&nodes[0].env, &nodes[1].env));
    assert_eq!(nodes[2].env["A"], "2");
}

#[test]
fn deep_json_is_refused_without_using_up_the_stack() {
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    for (field, refused) in [("runner_args", true), ("cache", true), ("label", true), ("unknown", false)] {
        let text = format!(
            r#"{{"graph":{{"nodes":[{{"step":{{"key":"a","cmd":"b","{field}":{deep}}},"env":{{}}}}],
                "edge_property":"directed","edges":[]}}}}"#
        );
        assert_eq!(Pipeline::decode(text.as_bytes()).is_err(), refused, "{field}");
    }
    assert!(Pipeline::decode(deep.as_bytes()).is_err());
    let parameter = format!(r#"{{"policy":"ttl","deep":{deep}}}"#);
    let text = format!(
        r#"{{"graph":{{"nodes":[{{"step":{{"key":"a","cmd":"b","cache":{parameter}}},"env":{{}}}}],
            "edge_property":"directed","edges":[]}}}}"#
    );
    assert!(Pipeline::decode(text.as_bytes()).is_err());
}

fn big(edges: impl Iterator<Item = String>) -> String {
    let nodes: Vec<_> = (0..BIG)
        .map(|at| format!(r#"{{"step":{{"key":"step-{at}","cmd":"true"}},"env":{{"TERM":"dumb"}}}}"#))
        .collect();
    let edges: Vec<_> = edges.collect();
    format!(
        r#"{{"version":"0","graph":{{"nodes":[{}],"node_holes":[],"edge_property":"directed","edges":[{}]}}}}"#,
        nodes.join(","),
        edges.join(",")
    )
}

const BIG: u32 = 100_000;

/// Runs on a thread with a small stack, so that recursion overflows it.
fn with_small_stack(test: fn()) {
    std::thread::Builder::new().stack_size(128 * 1024).spawn(test).unwrap().join().unwrap();
}

#[test]
fn a_chain_of_100_000_steps_parses() {
    with_small_stack(|| {
        let text = big((1..BIG).map(|to| format!(r#"[{},{to},"builds_in"]"#, to - 1)));
        let started = Instant::now();
        let plan = Plan::parse(text).unwrap();
        println!("chain of {BIG}: {:?}", started.elapsed());
        assert_eq!((plan.dag().chain_count(), plan.dag().len()), (1, BIG as usize));
        assert_eq!(plan.dag().order().last(), Some(&StepIndex(BIG - 1)));
    });
}

#[test]
fn a_chain_of_100_000_steps_written_backwards_parses() {
    with_small_stack(|| {
        let plan = Plan::parse(big((1..BIG).map(|to| format!(r#"[{to},{},"depends_on"]"#, to - 1)))).unwrap();
        assert_eq!(plan.dag().order()[0], StepIndex(BIG - 1));
        assert_eq!(plan.dag().chain_count(), BIG as usize);
    });
}

#[test]
fn a_fan_of_100_000_steps_parses() {
    with_small_stack(|| {
        let text = big((1..BIG).map(|to| format!(r#"[0,{to},"builds_in"]"#)));
        let started = Instant::now();
        let plan = Plan::parse(text).unwrap();
        println!("fan of {BIG}: {:?}", started.elapsed());
        assert_eq!(plan.dag().children(StepIndex(0)).len(), BIG as usize - 1);
        assert_eq!(plan.dag().chain_count(), BIG as usize - 1);
    });
}

#[test]
fn a_cycle_of_100_000_steps_is_one_mistake_of_one_line() {
    with_small_stack(|| {
        let text = big((0..BIG).map(|from| format!(r#"[{from},{},"depends_on"]"#, (from + 1) % BIG)));
        let error = Plan::parse(text).unwrap_err();
        assert_eq!(error.problems().len(), 1);
        let line = error.problems()[0].to_string();
        assert!(line.starts_with("pipeline: dependency cycle: `step-0` -> `step-1` -> "), "{line}");
        assert!(line.contains(" -> (99984 more) -> ") && line.ends_with("`step-99999` -> `step-0`"), "{line}");
    });
}

prop_compose! {
    fn step(at: usize)(
        cmd in "[a-z é\\n\"\\\\]{0,12}",
        label in option::of("[A-Za-z ]{0,8}"),
        image in option::of(sample::select(vec!["host", "ubuntu:24.04", "rootfs:/srv/r", ""])),
        own in option::of(collection::btree_map("[A-Z_]{1,4}", ".{0,6}".prop_filter("NUL", |it| !it.contains('\0')), 0..3)),
        timeout in option::of(1_u32..),
        cache in option::of((sample::select(vec!["none", "ttl", "new"]), option::of("[0-9a-f]{4}"), json_value())),
        runner in option::of(sample::select(vec!["docker", "sandbox", "vm", "sandbx"])),
        runner_args in option::of(json_value()),
        null in any::<bool>(),
        more in json_value(),
    ) -> Value {
        let mut step = json!({ "key": format!("k{at}"), "cmd": cmd, "more": more });
        let cache = cache.map(|(policy, key, more)| json!({ "policy": policy, "key": key, "parameter": more }));
        for (name, value) in [
            ("label", json!(label)), ("image", json!(image)), ("env", json!(own)), ("timeout_seconds", json!(timeout)),
            ("cache", json!(cache)), ("runner", json!(runner)), ("runner_args", json!(runner_args)),
        ] {
            // Absent and null are the same.
            if null || !value.is_null() {
                step[name] = value;
            }
        }
        json!({ "step": step, "env": own.unwrap_or_default() })
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,5}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            collection::btree_map("[a-z]{1,3}", inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

/// Generates valid pipelines, with edges in any order, some of them twice.
fn pipeline() -> impl Strategy<Value = Value> {
    (0_usize..12).prop_flat_map(|count| {
        let nodes = (0..count).map(step).collect::<Vec<_>>();
        let parents =
            collection::vec((option::of(any::<sample::Index>()), collection::vec(any::<sample::Index>(), 0..3)), count);
        let places = Just((0..count).collect::<Vec<_>>()).prop_shuffle();
        (nodes, parents, places, option::of(1_u32..), option::of("[a-z]{1,5}")).prop_flat_map(
            |(nodes, parents, places, timeout, image)| {
                let mut edges = Vec::new();
                for (to, (lineage, others)) in parents.into_iter().enumerate().skip(1) {
                    let mut add =
                        |from: sample::Index, kind| edges.push(json!([places[from.index(to)], places[to], kind]));
                    lineage.into_iter().for_each(|from| add(from, "builds_in"));
                    others.into_iter().for_each(|from| add(from, "depends_on"));
                }
                Just(edges).prop_shuffle().prop_map(move |edges| {
                    let mut ir = ir(&json!(nodes), &json!(edges));
                    ir["timeout_seconds"] = json!(timeout);
                    ir["default_image"] = json!(image);
                    ir
                })
            },
        )
    })
}

/// Replaces the value at `path`.
fn mutate(value: &mut Value, path: &[sample::Index], with: Value) {
    match (value, path) {
        (Value::Array(items), [index, rest @ ..]) if !items.is_empty() => {
            let at = index.index(items.len());
            mutate(&mut items[at], rest, with);
        }
        (Value::Object(fields), [index, rest @ ..]) if !fields.is_empty() => {
            let at = index.index(fields.len());
            mutate(fields.values_mut().nth(at).unwrap(), rest, with);
        }
        (value, _) => *value = with,
    }
}

proptest! {
    #[test]
    fn valid_pipelines_decode_as_with_the_published_reader(ir in pipeline()) {
        let text = ir.to_string();
        let ours = Pipeline::decode(text.as_bytes());
        prop_assert!(ours.is_ok(), "{}", ours.unwrap_err());
        prop_assert!(serde_json::from_str::<PipelineGraph>(&text).is_ok());
        ir_oracle::check(text.as_bytes());
    }

    #[test]
    fn mutated_pipelines_are_accepted_only_if_the_published_reader_accepts_them(
        mut ir in pipeline(),
        path in collection::vec(any::<sample::Index>(), 1..6),
        with in prop_oneof![json_value(), (0..4_u64).prop_map(Value::from), Just(json!("")), Just(json!("a\0"))],
    ) {
        mutate(&mut ir, &path, with);
        ir_oracle::check(ir.to_string().as_bytes());
    }

    #[test]
    fn truncated_text_is_refused(ir in pipeline(), cut in any::<sample::Index>()) {
        let text = ir.to_string();
        let cut = &text.as_bytes()[..cut.index(text.len())];
        prop_assert!(Pipeline::decode(cut).is_err());
        ir_oracle::check(cut);
    }
}
