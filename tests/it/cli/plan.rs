//! What `hm plan` says about a run that has not started.

use serde_json::{Value, json};

use crate::support::{
    backends::usable,
    project::{Ended, Project},
};

/// A cached step, one that builds in it, and a cached step with inputs.
fn pipeline(project: &Project, command: &str) {
    let cached = |policy: Value| json!({ "policy": policy, "key": "0123", "paths": ["*.txt"] });
    let steps = [
        json!({ "key": "build", "cmd": command, "cache": cached("forever".into()) }),
        json!({ "key": "unit", "label": "Unit tests", "cmd": "true" }),
        json!({ "key": "docs", "cmd": "cat *.txt", "cache": cached("on_change".into()) }),
        json!({ "key": "site", "cmd": "true", "cache": cached("forever".into()) }),
    ];
    let nodes: Vec<Value> = steps.into_iter().map(|step| json!({ "step": step, "env": {} })).collect();
    let edges = json!([[0, 1, "builds_in"], [2, 3, "builds_in"], [1, 3, "depends_on"]]);
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges });
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
}

fn plan(project: &Project, args: &[&str]) -> String {
    let ended = Ended::of(project.hm(&["plan"]).args(args)).expect(0);
    assert_eq!(ended.stderr, "");
    ended.stdout
}

/// Returns the lines of a plan, with one blank for each run of them and without times.
fn lines(plan: &str) -> Vec<String> {
    let words = |line: &str| {
        let words = line.split_whitespace().filter(|word| !(word.ends_with('s') && word.contains('.')));
        words.collect::<Vec<_>>().join(" ")
    };
    plan.lines().map(words).collect()
}

#[test]
fn a_plan_says_what_is_cached_and_why_the_rest_would_run() {
    let project = Project::new();
    project.file("a.txt", "one");
    pipeline(&project, "echo built > out");
    let first = plan(&project, &[]);
    assert_eq!(lines(&first)[0], "ci: 4 steps in 2 chains on sandbox");
    assert_eq!(
        lines(&first)[2..],
        ["build image host", "└─ Unit tests (unit)", "docs image host", "└─ site after unit"]
    );
    assert!(!project.store.exists(), "a store is not created for that");

    let ended = Ended::of(&mut project.hm(&["run"]));
    if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    ended.expect(0);
    let second = plan(&project, &[]);
    assert!(second.starts_with("ci: 4 steps in 2 chains on sandbox, at least "), "{second}");
    let cached = [
        "build cached image host",
        "└─ Unit tests (unit) will run",
        "docs cached image host",
        "└─ site cached after unit",
    ];
    assert_eq!(lines(&second)[2..], cached);
    assert_eq!(plan(&project, &[]), second, "a prediction changes nothing");

    let refreshed = |args: &[&str]| {
        let dry = Ended::of(project.hm(&["run", "--dry-run"]).args(args)).expect(0).stdout;
        lines(&dry).iter().any(|line| line.starts_with("build cached"))
    };
    assert!(refreshed(&[]) && !refreshed(&["--no-cache"]) && !refreshed(&["--refresh", "build"]));

    project.file("a.txt", "two");
    let edited = lines(&plan(&project, &[]));
    assert_eq!(edited[2], cached[0]);
    assert_eq!(edited[4], "docs will run: a.txt changed image host");
    assert_eq!(edited[5], "└─ site will run after unit");
    project.file("b.txt", "new");
    assert!(
        lines(&plan(&project, &[])).contains(&"docs will run: a.txt and 1 other file changed image host".to_owned())
    );

    pipeline(&project, "echo built otherwise > out");
    let changed = lines(&plan(&project, &["ci", "build", "unit"]));
    assert_eq!(changed[2..], ["build will run: its command changed image host", "└─ Unit tests (unit) will run"]);
    // `-v` shows the commands, and not the debug log, as of other commands.
    let verbose = Ended::of(&mut project.hm(&["plan", "-v", "ci", "build"])).expect(0);
    assert!(verbose.stdout.contains("\n  $ echo built otherwise > out\n"), "{}", verbose.stdout);
    assert_eq!(verbose.stderr, "");

    let json: Value = serde_json::from_str(&plan(&project, &["--format", "json"])).unwrap();
    let of = |at: usize| &json["steps"][at];
    let step = |key: &str| (0..4).map(of).find(|step| step["key"] == key).unwrap();
    assert_eq!(step("build")["prediction"]["verdict"], "missed");
    assert_eq!(step("build")["prediction"]["differences"][0]["what"], "command");
    assert_eq!(step("unit")["prediction"], json!({ "verdict": "not_cached" }));
    assert_eq!(step("site")["prediction"], json!({ "verdict": "parent_runs", "parent": "docs" }));
    assert!(step("unit")["last_ms"].is_u64() && json["expected_ms"].is_u64(), "{json}");
    let runs: Value =
        serde_json::from_str(&Ended::of(&mut project.hm(&["runs", "--format", "json"])).expect(0).stdout).unwrap();
    assert_eq!(runs.as_array().unwrap().len(), 1, "a plan is no run");
}

#[test]
fn a_pipe_gets_whole_reasons() {
    let project = Project::new();
    let name = "A_VARIABLE_WHOSE_NAME_ALONE_IS_LONGER_THAN_A_REASON_ON_A_TERMINAL_MAY_BE";
    let write = |variables: Value| {
        let cache = json!({ "policy": "forever", "key": "0123" });
        let step = json!({ "key": "build", "cmd": "true", "cache": cache });
        let nodes = json!([{ "step": step, "env": variables }]);
        let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": [] });
        project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
    };
    write(json!({}));
    let ended = Ended::of(&mut project.hm(&["run"]));
    if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    ended.expect(0);
    write(json!({ (name): "1" }));
    let found = lines(&plan(&project, &[]));
    assert_eq!(found[2], format!("build will run: variable {name} was added image host"));
}

#[test]
fn steps_with_services_are_predicted() {
    let project = Project::new();
    project.file(".hm/hm.toml", "[service.db]\nimage = 'host'\ncmd = 'sleep 100'\n");
    let step = |key: &str, args: Value| {
        let cache = json!({ "policy": "forever", "key": key });
        json!({ "step": { "key": key, "cmd": "true", "cache": cache, "runner_args": args }, "env": {} })
    };
    let nodes = [step("plain", json!({})), step("served", json!({ "services": ["db"] }))];
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": [] });
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
    let ended = Ended::of(&mut project.hm(&["run"]));
    if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    ended.expect(0);
    let found = lines(&plan(&project, &[]));
    assert_eq!(found[2..], ["plain cached image host", "served cached image host"]);
    assert!(found[0].ends_with(", all cached"), "{found:?}");
    project.file(".hm/hm.toml", "[service.db]\nimage = 'host'\ncmd = 'sleep 200'\n");
    let found = lines(&plan(&project, &[]));
    assert_eq!(found[2..], ["plain cached image host", "served will run: its `runner_args` changed image host"]);
}

#[test]
fn a_prediction_agrees_with_the_run() {
    let project = Project::new();
    project.file("a.txt", "one");
    pipeline(&project, "echo built > out");
    let ended = Ended::of(&mut project.hm(&["run"]));
    if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    project.file("a.txt", "two");
    let json: Value = serde_json::from_str(&plan(&project, &["--format", "json"])).unwrap();
    let predicted = json["steps"].as_array().unwrap().iter().filter(|step| step["prediction"]["verdict"] == "cached");
    let predicted: Vec<&str> = predicted.map(|step| step["key"].as_str().unwrap()).collect();
    let run = Ended::of(&mut project.hm(&["run", "--format", "human"])).expect(0).stdout;
    let cached: Vec<&str> =
        run.lines().filter_map(|line| line.strip_prefix("=> ")?.strip_suffix(" was cached")).collect();
    assert_eq!(predicted, cached, "{run}");
    assert_eq!(cached, ["build"]);
}

#[test]
fn what_needs_consent_is_not_looked_at() {
    let project = Project::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir(outside.path().join("bin")).unwrap();
    pipeline(&project, "true");
    std::fs::create_dir_all(&project.store).unwrap();
    let text = std::fs::read_to_string(project.dir.join(".hm/ci.json")).unwrap();
    let image = format!("rootfs:{}", outside.path().display());
    project.file(".hm/ci.json", &text.replace("\"default_image\":\"host\"", &format!("\"default_image\":\"{image}\"")));
    let json = |more: &[(&str, &str)]| -> Value {
        let mut hm = project.hm(&["plan", "--format", "json"]);
        let ended = Ended::of(hm.envs(more.iter().copied())).expect(0);
        serde_json::from_str(&ended.stdout).unwrap()
    };
    assert_eq!(json(&[])["steps"][0]["prediction"], json!(null));
    assert_ne!(json(&[("HM_TRUST", "1")])["steps"][0]["prediction"], json!(null));
}
