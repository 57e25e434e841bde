//! `hm runs`, and `hm logs` of runs that are over or still running.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    process::Stdio,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::project::{Ended, Project, eventually, ir};

fn hm(project: &Project, args: &[&str]) -> Ended {
    Ended::of(&mut project.hm(args))
}

fn runs(project: &Project, args: &[&str]) -> Vec<Value> {
    let mut all = vec!["runs", "--format", "json"];
    all.extend(args);
    serde_json::from_str(&hm(project, &all).expect(0).stdout).unwrap()
}

/// Writes pipeline `ci`, whose step waits until the file that is returned exists.
fn gated(project: &Project, before: &str, after: &str) -> std::path::PathBuf {
    let gate = project.dir.with_file_name("gate");
    let command = format!("{before}; until [ -e {} ]; do sleep 0.02; done; {after}", gate.display());
    project.file(".hm/ci.json", &ir(&[("wait", &command, None)]));
    gate
}

#[test]
fn a_damaged_journal_does_not_hide_the_runs_of_other_pipelines() {
    let project = Project::new();
    for name in ["first", "second"] {
        project.file(&format!(".hm/{name}.json"), &ir(&[(name, "echo said", None)]));
        project.run(&[name]).expect(0);
    }
    let newest = runs(&project, &["second"])[0]["run"].as_str().unwrap().to_owned();
    fs::write(project.store.join("runs").join(newest).join("journal"), "").unwrap();
    assert_eq!(hm(&project, &["logs", "first"]).expect(0).stdout, "said\n");
    // The last run is the damaged one.
    for args in [&["logs"][..], &["logs", "second"]] {
        let ended = hm(&project, args).expect(3);
        assert!(ended.stderr.contains("failed to read the journal"), "{}", ended.stderr);
    }
}

#[test]
fn runs_are_listed_with_how_they_ended() {
    let project = Project::new();
    assert_eq!(hm(&project, &["runs"]).expect(0).stdout, "no runs\n");
    project.file(".hm/ci.json", &ir(&[("a", "true", None), ("b", "exit 3", Some(0)), ("c", "exit 4", Some(0))]));
    project.run(&["ci", "-k"]).expect(1);
    project.file(".hm/docs.json", &ir(&[("a", "true", None)]));
    project.run(&["docs"]).expect(0);
    project.file(".hm/slow.json", &ir(&[("a", "sleep 60", None)]));
    project.run(&["slow", "--timeout", "3s"]).expect(124);

    let text = hm(&project, &["runs"]).expect(0).stdout;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
    let lines: Vec<Vec<&str>> =
        lines.into_iter().map(|line| line.into_iter().filter(|cell| !cell.is_empty()).collect()).collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0][1..3] == ["slow", "timed out"] && lines[0][5] == "a", "{text}");
    assert!(lines[1][1..3] == ["docs", "passed"] && lines[1].len() == 5, "{text}");
    assert!(lines[2][1..3] == ["ci", "failed"] && lines[2][5] == "b and 1 more", "{text}");
    assert!(lines.iter().all(|line| line[0].len() == 8 && line[3].ends_with(" ago")), "{text}");

    let ids: Vec<String> = runs(&project, &[]).iter().map(|run| run["run"].as_str().unwrap().to_owned()).collect();
    assert!(ids[0].starts_with(lines[0][0]) && ids[2].starts_with(lines[2][0]));
    let of_ci = runs(&project, &["ci"]);
    assert_eq!((of_ci.len(), &of_ci[0]["failed_steps"]), (1, &json!(["b", "c"])));
    assert_eq!(runs(&project, &["-n", "1"]).len(), 1);

    // A run by the beginning of its id, from any directory.
    let mut elsewhere = project.hm(&["logs", lines[2][0]]);
    let listed = Ended::of(elsewhere.current_dir("/")).expect(0).stdout;
    assert!(listed.starts_with(&format!("run {} of ci\n", ids[2])), "{listed}");
    let wrong = hm(&project, &["logs", "00000000/a"]).expect(2).stderr;
    assert!(wrong.contains("no run with id prefix `00000000`\nhint: run `hm runs`"), "{wrong}");

    fs::remove_dir_all(project.store.join("runs").join(&ids[1])).unwrap();
    let text = hm(&project, &["runs"]).expect(0).stdout;
    assert!(text.lines().nth(1).unwrap().ends_with("(its journal was removed)"), "{text}");
}

#[test]
fn a_live_run_is_followed_from_a_second_terminal() {
    let project = Project::new();
    let gate = gated(&project, "echo first; echo second", "echo third >&2; echo last; exit 5");
    let mut run = project.hm(&["run", "--runner", "process", "--format", "human"]);
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the run to be listed", || runs(&project, &[]).iter().any(|run| run["result"] == "running"));

    let follow = |args: &[&str]| {
        let mut hm = project.hm(&["logs", "-f"]);
        hm.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (mut all, mut step, mut newest) = (follow(&[]), follow(&["wait", "-t"]), follow(&["wait", "-n", "1"]));
    // Everything so far is shown while the run waits.
    let mut so_far = BufReader::new(newest.stdout.take().unwrap());
    let mut line = String::new();
    eventually("the second line", || {
        line.clear();
        so_far.read_line(&mut line).unwrap();
        line == "second\n"
    });
    fs::write(&gate, "").unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(1));
    assert_eq!(so_far.lines().map(Result::unwrap).collect::<Vec<_>>(), ["third", "last"]);
    assert!(newest.wait().unwrap().success());
    let read = |child: &mut std::process::Child| {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut text).unwrap();
        assert!(child.wait().unwrap().success());
        text
    };
    assert_eq!(read(&mut all), "wait | first\nwait | second\nwait | third\nwait | last\n");
    let timed = read(&mut step);
    assert_eq!(timed.lines().count(), 4, "{timed}");
    for line in timed.lines() {
        let (time, _) = line.split_once(' ').unwrap();
        assert!(time.len() == 24 && time.ends_with('Z'), "{timed}");
    }

    // The same, after the run.
    assert_eq!(hm(&project, &["logs", "-n", "2"]).expect(0).stdout, "wait | third\nwait | last\n");
    assert_eq!(hm(&project, &["logs", "wait", "-n", "2"]).expect(0).stdout, "third\nlast\n");
    assert_eq!(hm(&project, &["logs", "-f", "wait"]).expect(0).stdout, "first\nsecond\nthird\nlast\n");
    assert_eq!(hm(&project, &["logs", "--failed"]).expect(0).stdout, "first\nsecond\nthird\nlast\n");
    let json = hm(&project, &["logs", "wait", "--format", "json", "-n", "2"]).expect(0);
    let events = json.events();
    let of = |name: &str| events.iter().map(|event| event[name].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(of("kind"), ["step_log", "step_log"]);
    assert_eq!(
        (of("step"), of("stream"), of("line")),
        (vec!["wait"; 2], vec!["stderr", "stdout"], vec!["third", "last"])
    );
}

#[test]
fn following_a_run_whose_hm_is_killed_ends() {
    let project = Project::new();
    gated(&project, "echo up", "true");
    let mut hm_run = project.hm(&["run", "--runner", "process", "--format", "human"]);
    let mut run = hm_run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the run to be listed", || runs(&project, &[]).iter().any(|run| run["result"] == "running"));
    let mut logs = project.hm(&["logs", "-f"]);
    let mut logs = logs.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(logs.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "wait | up");
    kill_process(Pid::from_raw(i32::try_from(run.id()).unwrap()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(run.wait().unwrap().signal(), Some(9));
    assert!(lines.next().is_none());
    assert!(logs.wait().unwrap().success());
    assert_eq!(runs(&project, &[])[0]["result"], "interrupted");
}

#[test]
fn labels_name_steps_and_keys_come_first() {
    let project = Project::new();
    let node =
        |key: &str, label: &str, cmd: &str| json!({ "step": { "key": key, "label": label, "cmd": cmd }, "env": {} });
    let nodes = [node("unit", "Unit tests", "echo of unit"), node("lint", "unit", "echo of lint; exit 1")];
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": [] });
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
    let ended = project.run(&["-k", "-j1"]).expect(1);
    for what in ["started (", "passed in "] {
        assert!(ended.stdout.contains(&format!("=> Unit tests (unit) {what}")), "{}", ended.stdout);
    }
    assert_eq!(hm(&project, &["logs", "Unit tests"]).expect(0).stdout, "of unit\n");
    assert_eq!(hm(&project, &["logs", "unit"]).expect(0).stdout, "of unit\n");
    assert_eq!(hm(&project, &["logs", "--failed"]).expect(0).stdout, "of lint\n");
    project.file(".hm/ci.json", &ir(&[("fine", "true", None)]));
    project.run(&[]).expect(0);
    let none = hm(&project, &["logs", "--failed"]).expect(0);
    assert!(none.stdout.is_empty() && none.stderr.starts_with("note: no step failed in run "), "{}", none.stderr);
}

#[test]
fn a_run_of_a_part_hides_nothing_of_the_other_steps() {
    let steps = |lint: &str| ir(&[("unit", "true", None), ("lint", lint, None), ("docs", "true", None)]);
    let project = Project::new();
    project.file(".hm/ci.json", &steps("echo of lint; exit 1"));
    project.run(&["-k"]).expect(1);
    project.run(&["ci", "unit"]).expect(0);
    assert_eq!(hm(&project, &["logs", "lint"]).expect(0).stdout, "of lint\n");
    let unknown = hm(&project, &["logs", "nope"]).expect(2).stderr;
    assert!(unknown.contains("no step named `nope` in run "), "{unknown}");
    let again = project.run(&["ci", "--failed"]).expect(1).stdout;
    assert!(again.contains("lint failed with exit code 1") && again.contains("── 1 failed · "), "{again}");
    // It has passed since the run that it failed in.
    project.file(".hm/ci.json", &steps("true"));
    project.run(&["ci", "lint"]).expect(0);
    let none = project.run(&["ci", "--failed"]).expect(2).stderr;
    assert!(none.contains("every step passed in the last run of `ci` ("), "{none}");
}
