//! The inputs and results of runners, compared with the ecosystem's own types.

use hm_exec::{ExecutorInput, SnapshotRef, StepResult};
use hm_plugin_protocol as theirs;
use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::support::input_oracle;

/// Checks that `value` read as `A`, written, read as `B` and written again is `value`.
fn round_trip<A: Serialize + DeserializeOwned, B: Serialize + DeserializeOwned>(value: &Value) {
    let a: A = serde_json::from_value(value.clone()).unwrap();
    let b: B = serde_json::from_value(serde_json::to_value(&a).unwrap()).unwrap();
    assert_eq!(serde_json::to_value(&b).unwrap(), *value);
}

/// Returns an input with every field set; `null` if the published crate writes it.
fn input(cache_lookup: &Value, parent_snapshot: &Value) -> Value {
    json!({
        "step": {
            "key": "build", "label": "Build", "cmd": "make", "image": "host", "env": { "A": "é" },
            "timeout_seconds": 90, "cache": { "policy": "ttl", "key": "ab12" },
            "runner": "sandbox", "runner_args": { "cpus": 2 },
        },
        "workspace_archive_id": "67e55044-10b1-426f-9247-bb680e5fe0c8",
        "env": { "A": "é", "B": "" },
        "workdir": "/workspace",
        "run_id": "67e55044-10b1-426f-9247-bb680e5fe0c9",
        "step_id": "67e55044-10b1-426f-9247-bb680e5fe0ca",
        "cache_lookup": cache_lookup,
        "parent_snapshot": parent_snapshot,
    })
}

#[test]
fn inputs_round_trip_through_our_types_and_the_published_crates() {
    for cache_lookup in [
        json!({ "kind": "hit", "tag": "hm1:1" }),
        json!({ "kind": "miss_build_as", "tag": "hm1:2" }),
        json!({ "kind": "miss_no_commit" }),
    ] {
        for parent in [Value::Null, json!("hm1:0"), json!("docker:sha256:ab")] {
            round_trip::<ExecutorInput, theirs::ExecutorInput>(&input(&cache_lookup, &parent));
            round_trip::<theirs::ExecutorInput, ExecutorInput>(&input(&cache_lookup, &parent));
        }
    }
    let mut bare = input(&json!({ "kind": "miss_no_commit" }), &Value::Null);
    bare["step"] = json!({
        "key": "a", "cmd": "", "label": null, "image": null, "env": null, "timeout_seconds": null, "cache": null
    });
    round_trip::<ExecutorInput, theirs::ExecutorInput>(&bare);
    round_trip::<theirs::ExecutorInput, ExecutorInput>(&bare);
}

#[test]
fn missing_parents_and_unknown_fields_are_handled_as_by_the_published_crate() {
    let mut value = input(&json!({ "kind": "miss_no_commit" }), &Value::Null);
    value.as_object_mut().unwrap().remove("parent_snapshot");
    assert_eq!(serde_json::from_value::<ExecutorInput>(value.clone()).unwrap().parent_snapshot, None);
    value["surprise"] = json!(1);
    let error = serde_json::from_value::<ExecutorInput>(value.clone()).unwrap_err();
    assert!(error.to_string().starts_with("unknown field `surprise`"), "{error}");
    assert!(serde_json::from_value::<theirs::ExecutorInput>(value).is_err());
}

#[test]
fn what_a_step_gets_of_other_steps_is_written_only_if_it_gets_something() {
    let mut value = input(&json!({ "kind": "miss_no_commit" }), &Value::Null);
    let none: ExecutorInput = serde_json::from_value(value.clone()).unwrap();
    assert!(none.inputs().is_empty() && none.service_snapshot("seed").is_none());
    assert_eq!(serde_json::to_value(none).unwrap(), value);
    value["other_steps"] = json!({
        "service_snapshots": { "seed": "hm1:1" },
        "inputs": [{ "step": "shard", "snapshot": "hm1:2", "path": "/cov", "target": "/in" }],
    });
    round_trip::<ExecutorInput, ExecutorInput>(&value);
    let some: ExecutorInput = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(some.service_snapshot("seed"), Some(&SnapshotRef::from("hm1:1")));
    assert_eq!(some.inputs().iter().map(|files| &*files.target).collect::<Vec<_>>(), ["/in"]);
    value["other_steps"]["surprise"] = json!(1);
    let error = serde_json::from_value::<ExecutorInput>(value).unwrap_err();
    assert!(error.to_string().starts_with("unknown field `surprise`"), "{error}");
}

#[test]
fn cache_policy_parameters_that_the_published_crate_drops_are_kept() {
    let mut value = input(&json!({ "kind": "miss_no_commit" }), &Value::Null);
    let known = value["step"]["cache"].clone();
    value["step"]["cache"]["duration_seconds"] = json!(1.5);
    input_oracle::check(value.to_string().as_bytes());
    round_trip::<ExecutorInput, ExecutorInput>(&value);
    let theirs: theirs::ExecutorInput = serde_json::from_value(value).unwrap();
    assert_eq!(serde_json::to_value(theirs).unwrap()["step"]["cache"], known);
}

#[test]
fn a_cache_policy_parameter_with_invalid_unicode_is_refused() {
    let mut value = input(&json!({ "kind": "miss_no_commit" }), &Value::Null);
    value["step"]["cache"]["note"] = json!("x");
    let json = value.to_string().replace(r#""note":"x""#, r#""note":"\ud800""#);
    input_oracle::check(json.as_bytes());
    assert!(serde_json::from_str::<theirs::ExecutorInput>(&json).is_ok());
    let error = serde_json::from_str::<ExecutorInput>(&json).unwrap_err();
    assert!(error.to_string().starts_with("unexpected end of hex escape"), "{error}");
}

#[test]
fn results_round_trip_through_our_types_and_the_published_crates() {
    for value in [
        json!({ "exit_code": 0, "committed_snapshot": "hm1:3", "artifacts": [] }),
        json!({ "exit_code": 137, "committed_snapshot": null,
                "artifacts": [{ "key": "a/b", "mime": "text/plain", "size_bytes": 5 }] }),
    ] {
        round_trip::<StepResult, theirs::StepResult>(&value);
        round_trip::<theirs::StepResult, StepResult>(&value);
    }
}

/// Generates JSON of any shape.
fn json_values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z:]{0,4}".prop_map(Value::from),
        Just(json!("67e55044-10b1-426f-9247-bb680e5fe0c8")),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{1,2}|kind|tag", inner, 0..3).prop_map(Value::from_iter),
        ]
    })
}

/// Returns a field of `value`, of that field, and so on.
fn place<'a>(value: &'a mut Value, at: &[prop::sample::Index]) -> &'a mut Value {
    match at {
        [first, rest @ ..] if value.as_object().is_some_and(|fields| !fields.is_empty()) => {
            let fields = value.as_object_mut().unwrap();
            let nth = first.index(fields.len());
            place(fields.values_mut().nth(nth).unwrap(), rest)
        }
        _ => value,
    }
}

proptest! {
    #[test]
    fn an_input_with_any_field_replaced_is_read_by_both_or_by_neither(
        at in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        replacement in json_values(),
    ) {
        let mut value = input(&json!({ "kind": "miss_build_as", "tag": "hm1:2" }), &json!("hm1:0"));
        *place(&mut value, &at) = replacement;
        input_oracle::check(value.to_string().as_bytes());
    }
}

#[test]
fn a_cache_policy_as_an_array_is_read_by_both_or_by_neither() {
    for cache in
        [json!([]), json!([""]), json!(["ttl", "key"]), json!(["ttl", null]), json!(["ttl", "key", 1]), json!([1])]
    {
        let mut value = input(&json!({ "kind": "miss_build_as", "tag": "hm1:2" }), &json!("hm1:0"));
        value["step"]["cache"] = cache;
        input_oracle::check(value.to_string().as_bytes());
    }
}
