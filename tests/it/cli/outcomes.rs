//! `soft_fail`, `retries` and `hm flaky`.

use std::fs;

use serde_json::{Value, json};

use crate::support::project::{Ended, Project};

/// Fails when it runs for the first time in a project, and passes afterwards. The first run leaves a mark
/// outside of the workspace, which each attempt gets anew.
const FIRST_FAILS: &str = "echo try; if mkdir MARK 2>/dev/null; then echo broken >&2; exit 7; fi";

/// Writes the pipeline `ci`: each step has a key, a command and `runner_args`.
fn pipeline(project: &Project, steps: &[(&str, &str, Value)], edges: &Value) {
    let mark = project.store.with_file_name("mark");
    let node = |(key, cmd, args): &(&str, &str, Value)| {
        let cmd = cmd.replace("MARK", mark.to_str().unwrap());
        json!({ "step": { "key": key, "cmd": cmd, "runner_args": args }, "env": {} })
    };
    let nodes: Vec<_> = steps.iter().map(node).collect();
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges });
    let ir = json!({ "version": "0", "default_image": "host", "graph": graph });
    project.file(".hm/ci.json", &ir.to_string());
}

fn ends(ended: &Ended) -> Vec<(Value, Value, Value)> {
    let ends = ended.events().into_iter().filter(|event| event["kind"] == "step_end");
    ends.map(|event| (event["status"].clone(), event["exit_code"].clone(), event["attempt"].clone())).collect()
}

#[test]
fn an_allowed_failure_passes_with_a_word() {
    let project = Project::new();
    let steps = [
        ("lint", "echo ugly; exit 3", json!({ "soft_fail": true })),
        ("report", "echo reported", json!({})),
        ("fix", "echo never", json!({})),
    ];
    // `process` takes no arguments at all, but the engine's.
    pipeline(&project, &steps, &json!([[0, 1, "depends_on"], [0, 2, "builds_in"]]));
    let ended = project.run(&["--format", "human"]).expect(0);
    assert!(ended.stdout.contains("=> lint failed (allowed) with exit code 3 after"), "{}", ended.stdout);
    assert!(
        ended.stdout.contains("report | reported\n") && ended.stdout.contains("=> fix skipped"),
        "{}",
        ended.stdout
    );
    let last: Vec<_> = ended.stdout.lines().rev().take(2).collect();
    assert!(last[1].starts_with("  lint failed (allowed) with exit code 3"), "{last:?}");
    assert!(last[0].starts_with("passed · 3 steps · "), "{last:?}");
    assert!(last[0].contains(" · 1 failed (allowed) · 1 skipped (fix)"), "{last:?}");

    let ended = project.run(&["--format", "json"]).expect(0);
    let events = ended.events();
    assert_eq!(ends(&ended)[0], ("failed_allowed".into(), 3.into(), 1.into()));
    let last = events.last().unwrap();
    assert_eq!((&last["exit_code"], &last["not_run"][0]["key"]), (&0.into(), &"fix".into()));
    assert!(!events.iter().any(|event| event["kind"] == "chain_failed"));
    let listed = Ended::of(&mut project.hm(&["logs"])).expect(0).stdout;
    assert!(listed.contains("failed (allowed) with exit code 3"), "{listed}");

    pipeline(&project, &[("lint", "exit 3", json!({ "soft_fail": [1, 2] }))], &json!([]));
    project.run(&[]).expect(1);
}

#[test]
fn a_flaky_step_is_never_silent() {
    let project = Project::new();
    let none = Ended::of(&mut project.hm(&["flaky"])).expect(0);
    assert_eq!((&*none.stdout, &*none.stderr), ("no flaky steps in 0 runs\n", ""));
    let steps = [("e2e", FIRST_FAILS, json!({ "retries": 2 })), ("unit", "true", json!({ "retries": 1 }))];
    pipeline(&project, &steps, &json!([[0, 1, "depends_on"]]));
    let ended = project.run(&["--format", "human"]).expect(0);
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert!(lines.contains(&"=> e2e attempt 1 failed: the command exited with 7; retry 1 of 2"), "{lines:?}");
    assert!(lines.contains(&"=> e2e started (process, image host, attempt 2)"), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| **line == "e2e | try").count(), 2, "{lines:?}");
    let last: Vec<_> = lines.iter().rev().take(2).collect();
    assert!(last[1].starts_with("  e2e flaky: passed on attempt 2 after "), "{last:?}");
    assert!(last[0].starts_with("passed · 2 steps · ") && last[0].contains(" · 1 flaky"), "{last:?}");

    // The second run passes at once, the third is flaky again.
    assert_eq!(ends(&project.run(&["--format", "json"]).expect(0))[0], ("passed".into(), 0.into(), 1.into()));
    fs::remove_dir(project.store.with_file_name("mark")).unwrap();
    let ended = project.run(&["--format", "json"]).expect(0);
    assert_eq!(ends(&ended)[0], ("flaky".into(), 0.into(), 2.into()));
    let starts = ended.events().into_iter().filter(|event| event["kind"] == "step_start");
    let retry = starts.map(|event| event["retry"].clone()).find(|retry| !retry.is_null()).unwrap();
    let expected = json!({ "backoff_ms": 0, "message": "the command exited with 7; retry 1 of 2", "exit_code": 7 });
    assert_eq!(retry, expected);

    let logs = |args: &[&str]| Ended::of(project.hm(&["logs", "e2e"]).args(args)).expect(0);
    let last = logs(&[]);
    assert_eq!(last.stdout, "try\n");
    assert_eq!(last.stderr, "note: this is attempt 2; `--attempt N` shows an earlier one: 1\n");
    for args in [&["--attempt", "1"][..], &["--attempt", "1", "-n", "9"]] {
        let first = logs(args);
        assert!(first.stdout.contains("broken\n") && first.stderr.is_empty(), "{first:?}");
    }
    assert_eq!(logs(&["--attempt", "2", "-n", "9"]).stdout, "try\n");

    let flaky = |args: &[&str]| Ended::of(project.hm(&["flaky"]).args(args)).expect(0);
    let text = flaky(&[]).stdout;
    assert!(text.starts_with("ci/e2e  flaky in 2 of 3 runs  last in run "), "{text}");
    assert!(text.ends_with("(exit code 7, passed on attempt 2)\n") && text.lines().count() == 1, "{text}");
    let json: Value = serde_json::from_str(&flaky(&["ci", "--format", "json"]).stdout).unwrap();
    assert_eq!(
        (&json["runs"], &json["steps"][0]["flaky"], &json["steps"][0]["ran"]),
        (&3.into(), &2.into(), &3.into())
    );
    assert_eq!(json["steps"][0]["failed_attempts"], json!([{ "attempt": 1, "exit_code": 7 }]));
    assert_eq!(flaky(&["other"]).stdout, "no flaky steps in 0 runs\n");
    assert!(flaky(&["-n", "1"]).stdout.starts_with("ci/e2e  flaky in 1 of 1 run  "));

    // A journal that cannot be read is counted.
    let newest = json["steps"][0]["last_run"].as_str().unwrap();
    fs::write(project.store.join("runs").join(newest).join("journal"), "torn").unwrap();
    let rest = flaky(&[]);
    assert!(rest.stdout.starts_with("ci/e2e  flaky in 1 of 2 runs  "), "{}", rest.stdout);
    assert_eq!(rest.stderr, "note: 1 run left out, whose journals were removed or are damaged\n");
}

#[test]
fn a_step_that_fails_in_every_attempt_fails_with_its_last_code() {
    let project = Project::new();
    pipeline(&project, &[("always", "echo again; exit 4", json!({ "retries": 2 }))], &json!([]));
    let ended = project.run(&["--format", "json"]).expect(1);
    assert_eq!(ends(&ended), [("failed".into(), 4.into(), 3.into())]);
    let lines = ended.events().into_iter().filter(|event| event["line"] == "again").count();
    assert_eq!(lines, 3);
    assert_eq!(Ended::of(&mut project.hm(&["flaky"])).expect(0).stdout, "no flaky steps in 1 run\n");
}

#[test]
fn a_plan_shows_them_and_mistakes_are_listed() {
    let project = Project::new();
    let steps = [("a", "true", json!({ "retries": 2, "soft_fail": [3] })), ("b", "true", json!({ "soft_fail": true }))];
    pipeline(&project, &steps, &json!([]));
    let text = Ended::of(&mut project.hm(&["plan", "--runner", "process"])).expect(0).stdout;
    assert!(text.contains("retries 2 · may fail with 3\n") && text.contains(" · may fail\n"), "{text}");
    let json = Ended::of(&mut project.hm(&["plan", "--runner", "process", "--format", "json"])).expect(0).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["steps"][0]["soft_fail"], &json["steps"][1]["soft_fail"]), (&json!([3]), &json!(true)));
    pipeline(&project, &[("a", "true", json!({ "retries": 11, "soft_fail": "x" }))], &json!([]));
    let ended = project.run(&[]).expect(2);
    assert!(
        ended.stderr.contains("runner_args.retries must be a whole number from 0 to 10, not `11`"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("runner_args.soft_fail must be `true`, `false`"), "{}", ended.stderr);
}
