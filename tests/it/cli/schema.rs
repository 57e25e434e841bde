//! `hm schema` and `hm help`.

use std::{collections::BTreeSet, fs, io::Write, process::Stdio, time::Duration};

use hm_exec::{
    Plan,
    ir::{Cache, Pipeline},
    plan::Step,
};
use serde_json::{Value, json};

use crate::support::{
    backends::skip_optional,
    project::{Ended, Project},
};

fn schema(project: &Project, kind: &str) -> Value {
    let printed = Ended::of(&mut project.hm(&["schema", kind])).expect(0).stdout;
    serde_json::from_str(&printed).unwrap()
}

/// Returns a pipeline with every field that there is.
fn with_every_field() -> Value {
    let policies = [
        Cache::ttl("", Duration::from_secs(60)),
        Cache::on_change("", ["src/**"]),
        Cache::compose("", [Cache::forever("")]),
    ];
    let full = Step::new("full", "true").label("Full").image("host").env("A", "1").timeout(Duration::from_secs(5));
    let full = full.cache(Cache::compose("k", policies)).runner("sandbox");
    let full = full.runner_args([("memory", json!("64m")), ("retries", json!(2)), ("services", json!(["db"]))]);
    let child = Step::new("child", "true").builds_in("full");
    let other = Step::new("other", "true").depends_on("child").cache(Cache::ttl("k", Duration::from_millis(1500)));
    let plan = Plan::builder().default_image("host").timeout(Duration::from_secs(60)).env("CI", "1");
    let plan = plan.steps([full, child, other]).build().unwrap();
    serde_json::from_str(plan.ir_json()).unwrap()
}

/// Returns the names of a JSON object.
fn names(object: &Value) -> BTreeSet<&str> {
    object.as_object().unwrap_or_else(|| panic!("{object}")).keys().map(String::as_str).collect()
}

#[test]
fn the_schema_of_ir_has_every_field_that_is_written() {
    let project = Project::new();
    let schema = schema(&project, "ir");
    let ir = with_every_field();
    for (written, described) in [
        ("", "/properties"),
        ("/graph", "/properties/graph/properties"),
        ("/graph/nodes/0", "/properties/graph/properties/nodes/items/properties"),
        ("/graph/nodes/0/step", "/$defs/step/properties"),
    ] {
        assert_eq!(names(ir.pointer(written).unwrap()), names(schema.pointer(described).unwrap()), "{written}");
    }
    let known = names(&schema["$defs"]["policy"]["properties"]);
    for policy in ir.pointer("/graph/nodes/0/step/cache/sub_policies").unwrap().as_array().unwrap() {
        assert!(names(policy).is_subset(&known), "{policy}");
    }
    // The arguments of steps are those of the table in hm.toml.
    let config = self::schema(&project, "config");
    let args = config.pointer("/properties/step/additionalProperties/properties").unwrap();
    assert_eq!(schema.pointer("/$defs/step/properties/runner_args/properties"), Some(args));
    let old = Ended::of(&mut project.hm(&["config", "--schema"])).expect(0).stdout;
    assert_eq!(serde_json::from_str::<Value>(&old).unwrap(), config);
}

/// Prints for each of the documents on stdin whether the schema in the first argument accepts it.
const CHECK: &str = "
import json, sys, jsonschema
schema = json.loads(sys.argv[1])
jsonschema.Draft202012Validator.check_schema(schema)
check = jsonschema.Draft202012Validator(schema)
print(json.dumps([check.is_valid(document) for document in json.load(sys.stdin)]))
";

/// Returns which documents a schema accepts. `None` if this machine has nothing to check it with.
fn accepted(schema: &Value, documents: &[Value]) -> Option<Vec<bool>> {
    let mut python = std::process::Command::new("python3");
    python.args(["-c", CHECK, &schema.to_string()]);
    let python = python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut python) = python else {
        skip_optional("python3", "install it");
        return None;
    };
    // It has ended if it does not have the module.
    let _ = python.stdin.take().unwrap().write_all(&serde_json::to_vec(documents).unwrap());
    let ended = python.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    if said.contains("No module named") {
        skip_optional("jsonschema", "install python3-jsonschema");
        return None;
    }
    assert!(ended.status.success(), "{said}");
    Some(serde_json::from_slice(&ended.stdout).unwrap())
}

#[test]
fn what_the_schema_of_ir_accepts_is_decoded() {
    let project = Project::new();
    let schema = schema(&project, "ir");
    let full = with_every_field();
    let mut right = vec![full.clone()];
    for file in fs::read_dir("tests/fixtures/ir").unwrap() {
        right.push(serde_json::from_slice(&fs::read(file.unwrap().path()).unwrap()).unwrap());
    }
    let edited = |pointer: &str, value: Value| {
        let mut ir = full.clone();
        *ir.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
        ir
    };
    let step = "/graph/nodes/0/step";
    for field in ["label", "image", "env", "timeout_seconds", "cache", "runner", "runner_args"] {
        right.push(edited(&format!("{step}/{field}"), Value::Null));
    }
    let wrong = [
        ("/version", json!("1")),
        ("/timeout_seconds", json!(0)),
        ("/graph/edge_property", json!("undirected")),
        ("/graph/node_holes", json!([1])),
        ("/graph/edges/0", json!([0, 1])),
        ("/graph/edges/0", json!([0, 1, "builds_in", 2])),
        ("/graph/edges/0", json!([0, 1, "after"])),
        ("/graph/edges/0", json!([-1, 1, "builds_in"])),
        ("/graph/nodes/0/env", json!({ "A": 1 })),
        (&format!("{step}/key"), json!("")),
        (&format!("{step}/cmd"), Value::Null),
        (&format!("{step}/timeout_seconds"), json!(0.5)),
        (&format!("{step}/cache"), json!({ "policy": "forevr", "key": "k" })),
        (&format!("{step}/cache/sub_policies/0"), json!({ "policy": "forevr" })),
        (&format!("{step}/cache"), json!({ "policy": "on_change", "key": "k", "paths": "src" })),
        (&format!("{step}/runner_args/retries"), json!(11)),
    ];
    let documents: Vec<Value> =
        right.iter().cloned().chain(wrong.iter().map(|(pointer, value)| edited(pointer, value.clone()))).collect();
    for ir in &right {
        Pipeline::decode(&serde_json::to_vec(ir).unwrap()).unwrap();
    }
    let Some(answers) = accepted(&schema, &documents) else { return };
    for (at, document) in documents.iter().enumerate() {
        let expected = at < right.len();
        let what = if expected { document.to_string() } else { format!("{:?}", wrong[at - right.len()]) };
        assert_eq!(answers[at], expected, "{what}");
    }
}

#[test]
fn help_is_that_of_commands_and_topics() {
    let project = Project::new();
    let help = |words: &[&str]| Ended::of(&mut project.hm(words)).expect(0).stdout;
    assert_eq!(help(&["help"]), help(&["--help"]));
    assert_eq!(help(&["help", "run"]), help(&["run", "--help"]));
    assert_eq!(help(&["help", "cache", "gc"]), help(&["cache", "gc", "--help"]));
    let remote = help(&["help", "remote"]);
    let run = help(&["run", "--help"]);
    let options = |text: &str| -> BTreeSet<String> {
        let words = text.split_whitespace().filter(|word| word.starts_with("--remote"));
        words.map(|word| word.trim_end_matches(['`', ',', '.']).to_owned()).collect()
    };
    assert!(options(&remote).len() >= 10, "{remote}");
    assert!(options(&remote).is_superset(&options(&run)), "{remote}");
    for text in ["Options of doctor, run, ", "[remote]", "HM_REMOTE_HEADER", "hm runners --remote grpc://"] {
        assert!(remote.contains(text), "{text}: {remote}");
    }
    assert!(!remote.contains("--docker-host") && !remote.contains('\u{1b}'), "{remote}");
}
