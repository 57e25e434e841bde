//! `HM_CACHE_SHADOW`: what a look-up by what steps read would have done.

use serde_json::{Value, json};

use crate::support::{
    backends::usable,
    project::{Ended, Project},
};

fn project(commands: &[&str]) -> Project {
    let project = Project::new();
    let step = |(at, cmd): (usize, &&str)| json!({ "step": { "key": format!("s{at}"), "cmd": cmd, "runner_args": { "network": "none" } }, "env": {} });
    let nodes: Vec<_> = commands.iter().enumerate().map(step).collect();
    let edges: Vec<_> = (1..commands.len()).map(|at| json!([at - 1, at, "builds_in"])).collect();
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges });
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
    for (file, content) in [("src/a.c", "a"), ("src/b.c", "b"), ("README", "text")] {
        project.file(file, content);
    }
    project
}

fn run(project: &Project, value: &str) -> Option<Ended> {
    let mut run = project.hm(&["run", "--format", "json-full"]);
    let ended = Ended::of(run.env("HM_CACHE_SHADOW", value));
    let works = !ended.stderr.contains("cannot be recorded here") && !ended.stderr.contains("runner sandbox");
    usable("runner sandbox", works, &ended.stderr).then_some(ended)
}

/// Returns the events of the look-ups, in the order of the steps.
fn verdicts(ended: &Ended) -> Vec<Value> {
    let events = ended.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|event| event["kind"] == "step_shadow").collect()
}

#[test]
fn each_step_is_looked_up_and_an_edit_is_named() {
    let project = project(&["cat src/a.c > made", "cat made src/b.c > both"]);
    let Some(first) = run(&project, "1") else { return };
    let first = verdicts(&first.expect(0));
    assert_eq!(first.len(), 2, "{first:?}");
    assert!(first.iter().all(|it| it["found"] == false && it.get("reasons").is_none()), "{first:?}");
    project.file("README", "edited");
    let second = verdicts(&run(&project, "1").unwrap().expect(0));
    assert_eq!(second.len(), 2, "{second:?}");
    assert!(second.iter().all(|it| it["found"] == true && it.get("difference").is_none()), "{second:?}");
    project.file("src/b.c", "edited");
    let third = verdicts(&run(&project, "strict").unwrap().expect(0));
    assert_eq!(third[0]["found"], true, "{third:?}");
    assert_eq!((&third[1]["found"], &third[1]["miss"]), (&json!(false), &json!("/workspace/src/b.c changed")));
}

#[test]
fn a_result_that_would_be_wrong_is_a_warning_and_fails_a_strict_run() {
    let project = project(&["date +%s%N > made", "true"]);
    let Some(first) = run(&project, "1") else { return };
    first.expect(0);
    let second = run(&project, "1").unwrap().expect(0);
    let verdict = verdicts(&second).remove(0);
    assert_eq!((&verdict["found"], &verdict["difference"]), (&json!(true), &json!("it wrote other files")));
    assert!(second.stderr.contains("step s0 would have been found"), "{}", second.stderr);
    assert!(second.stderr.contains("would have been wrong for 1 step"), "{}", second.stderr);
    let strict = run(&project, "strict").unwrap().expect(3);
    assert!(strict.stderr.contains("would have been wrong for 1 step"), "{}", strict.stderr);
}

#[test]
fn a_step_that_would_not_be_looked_up_is_not_compared() {
    let project = project(&["date +%s%N > made", "true"]);
    project.file(".hm/hm.toml", "[step.s0]\ncache = 'declared'\n");
    let Some(first) = run(&project, "strict") else { return };
    first.expect(0);
    let second = run(&project, "strict").unwrap().expect(0);
    assert_eq!(verdicts(&second).len(), 1, "{}", second.stdout);
}

#[test]
fn a_record_that_cannot_be_kept_is_a_warning_and_fails_a_strict_run() {
    let project = project(&["cat src/a.c > made"]);
    let Some(first) = run(&project, "strict") else { return };
    first.expect(0);
    let index = rusqlite::Connection::open(project.store.join("index.db")).unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON traces BEGIN SELECT RAISE(ABORT, 'refused'); END";
    index.execute(refuse, []).unwrap();
    project.file("src/a.c", "edited");
    let second = run(&project, "1").unwrap().expect(0);
    assert!(second.stderr.contains("what step s0 read was not kept: "), "{}", second.stderr);
    assert!(second.stderr.contains("was not compared for all of them"), "{}", second.stderr);
    let strict = run(&project, "strict").unwrap().expect(3);
    assert!(strict.stderr.contains("was not compared for all of them"), "{}", strict.stderr);
    index.execute("DROP TRIGGER refuse", []).unwrap();
    run(&project, "strict").unwrap().expect(0);
}

#[test]
fn another_value_is_refused_and_none_records_nothing() {
    let project = project(&["cat src/a.c > made"]);
    let refused = run(&project, "yes").unwrap().expect(2);
    assert!(refused.stderr.contains("HM_CACHE_SHADOW") && refused.stderr.contains("`strict`"), "{}", refused.stderr);
    for value in ["", "0"] {
        let Some(ended) = run(&project, value) else { return };
        assert_eq!(verdicts(&ended.expect(0)), Vec::<Value>::new());
    }
    let inputs = Ended::of(&mut project.hm(&["inputs", "s0"])).expect(2);
    assert!(inputs.stderr.contains("was not recorded"), "{}", inputs.stderr);
}
