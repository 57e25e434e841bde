//! The last lines of a build: what failed, why, and what to type next.

use std::{collections::BTreeMap, path::Path, process::Command};

use serde_json::{Value, json};

use crate::support::{
    backends::usable,
    programs::hm,
    project::{Ended, Project},
};

/// Writes the pipeline `ci` of steps without edges: each has a key, a label and a command.
fn pipeline(project: &Project, steps: &[(&str, &str, &str)], edges: &Value) {
    let node = |(key, label, cmd): &(&str, &str, &str)| {
        let label = Some(label).filter(|label| !label.is_empty());
        json!({ "step": { "key": key, "label": label, "cmd": cmd }, "env": {} })
    };
    let nodes: Vec<_> = steps.iter().map(node).collect();
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges });
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
}

/// Runs a command line as if it were pasted into a shell in the project.
fn paste(project: &Project, command: &str) -> Ended {
    paste_in(&project.dir, project, command)
}

fn paste_in(dir: &Path, project: &Project, command: &str) -> Ended {
    let mut sh = Command::new("sh");
    sh.args(["-c", &format!("hm() {{ \"$HM\" \"$@\"; }}; {command}")]).current_dir(dir);
    Ended::of(sh.env("HM", hm()).env("HM_CACHE_DIR", &project.store).env("HM_CACHE_GC", "off").env("HM_TRUST", "1"))
}

/// Returns the run that the verdict names.
fn run_of(verdict: &str) -> &str {
    verdict.rsplit_once(" · run ").unwrap_or_else(|| panic!("{verdict}")).1
}

/// Returns the commands of the last line, by their names.
fn next_commands(shown: &str) -> BTreeMap<&str, &str> {
    let last = shown.lines().last().unwrap_or_default().trim();
    last.split(" · ").filter_map(|part| part.split_once(' ')).collect()
}

#[test]
fn a_failure_shows_what_where_why_and_what_to_type_next() {
    let project = Project::new();
    // The pause keeps the order of the streams certain.
    let flood = "seq 1 500; echo 'the reason' >&2; sleep 0.5; seq 501 900; exit 101";
    pipeline(
        &project,
        &[("deps", "", "true"), ("unit", "Unit tests", flood), ("e2e", "", "true"), ("slow", "", "true")],
        &json!([[0, 1, "builds_in"], [1, 2, "depends_on"], [1, 3, "depends_on"]]),
    );
    for (runner, format) in [("sandbox", "human"), ("sandbox", "progress"), ("process", "human")] {
        let ended = Ended::of(&mut project.hm(&["run", "--runner", runner, "--format", format]));
        if !usable(runner, ended.code != Some(3), &ended.stderr) {
            continue;
        }
        let ended = ended.expect(1);
        let shown = if format == "human" { &ended.stdout } else { &ended.stderr };
        let lines: Vec<&str> = shown.lines().collect();
        let last = &lines[lines.len().saturating_sub(15)..];
        let at = last.iter().position(|line| line.starts_with("── FAILED  Unit tests (unit) · exit 101 · "));
        let block = &last[at.unwrap_or_else(|| panic!("{last:#?}"))..];
        assert!(block[0].contains(&format!("s · {runner}, from deps ──")), "{block:#?}");
        assert_eq!(block[0].chars().count(), 80, "{block:#?}");
        assert_eq!(block[1], format!("  $ {flood}"));
        assert_eq!(block[2], format!("  … 893 earlier lines: hm logs {}/unit", run_of(block[12])), "{block:#?}");
        assert_eq!(block[3], "    stderr │ the reason", "{block:#?}");
        assert_eq!(block[4], "    …", "{block:#?}");
        let numbers: Vec<String> = (894..=900).map(|number| format!("    {number}")).collect();
        assert_eq!(block[5..12], numbers);
        assert!(block[12].starts_with("── 1 failed, 1 passed, 2 skipped (e2e, slow) · "), "{block:#?}");
        assert_eq!(block.len(), 14, "{block:#?}");
        let commands = next_commands(shown);
        assert!(paste(&project, commands["logs"]).expect(0).stdout.starts_with("1\n2\n"));
        assert_eq!(commands.contains_key("shell"), runner == "sandbox", "{commands:?}");
        if let Some(shell) = commands.get("shell") {
            paste(&project, &format!("{shell} -- true")).expect(0);
        }
        let again = commands["again"];
        assert_eq!(again, format!("hm run --runner {runner} --format {format} --failed"));
        let ended = paste(&project, again).expect(1);
        let shown = if format == "human" { &ended.stdout } else { &ended.stderr };
        assert!(shown.contains("── 1 failed, 1 passed, 2 skipped (e2e, slow)"), "{shown}");
    }
}

#[test]
fn three_failures_fit_on_a_screen_each_and_many_are_named() {
    let project = Project::new();
    let command = "seq 1 50; echo broken >&2; exit 3";
    pipeline(&project, &[("a", "", command), ("b", "", command), ("c", "", command)], &json!([]));
    let ended = project.run(&["-k", "--format", "human"]).expect(1);
    let from = ended.stdout.find("── FAILED").unwrap();
    let screen: Vec<&str> = ended.stdout[from..].lines().collect();
    assert_eq!(screen.iter().filter(|line| line.starts_with("── FAILED  ")).count(), 3);
    // A heading, the command, the number of earlier lines, six lines each; the verdict, and what to type.
    assert_eq!(screen.len(), 3 * 9 + 2, "{screen:#?}");
    assert_eq!(screen.iter().filter(|line| **line == "    stderr │ broken").count(), 3, "{screen:#?}");
    assert!(screen[27].starts_with("── 3 failed · "), "{screen:#?}");

    let keys: Vec<String> = (0..14).map(|number| format!("s{number:02}")).collect();
    let steps: Vec<_> = keys.iter().map(|key| (key.as_str(), "", command)).collect();
    pipeline(&project, &steps, &json!([]));
    let ended = project.run(&["-k", "-j1", "--format", "human"]).expect(1);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[lines.len() - 3], "── FAILED  s10 (exit 3), s11 (exit 3), s12 (exit 3), s13 (exit 3)");
    assert!(lines[lines.len() - 2].starts_with("── 14 failed · "), "{lines:#?}");
}

#[test]
fn a_command_that_contains_a_secret_is_masked() {
    const SECRET: &str = "s3cr3t-Zx81-value";
    let project = Project::with_steps(&[("login", &format!("login --token {SECRET}; exit 4"), None)]);
    let mut hm = project.hm(&["run", "--secret", "TOKEN", "--format", "human"]);
    let ended = Ended::of(hm.env("TOKEN", SECRET));
    if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    let ended = ended.expect(1);
    assert!(ended.stdout.contains("\n  $ login --token ***; exit 4\n"), "{}", ended.stdout);
    assert!(!ended.stdout.contains(SECRET) && !ended.stderr.contains(SECRET), "{}", ended.stdout);
}

#[test]
fn a_locale_without_utf_8_gets_ascii() {
    let project = Project::new();
    pipeline(&project, &[("bad", "", "seq 9; echo é; exit 3"), ("good", "", "true")], &json!([[0, 1, "builds_in"]]));
    let run = |locale: &str| {
        let mut hm = project.hm(&["run", "--runner", "process", "--format", "human"]);
        Ended::of(hm.env("LC_ALL", locale)).expect(1).stdout
    };
    let shown = run("C");
    assert!(
        shown.contains("-- FAILED  bad - exit 3 - ") && shown.contains("  ... 2 earlier lines: hm logs "),
        "{shown}"
    );
    // What a step prints stays what it is.
    assert!(shown.replace('é', "e").is_ascii() && shown.contains("bad | é\n"), "{shown}");
    assert!(run("C.UTF-8").contains("── FAILED  bad · exit 3 · "));
    let plan = Ended::of(project.hm(&["plan"]).env("LC_ALL", "C")).expect(0).stdout;
    assert!(plan.contains("\n`- good"), "{plan}");
}

#[test]
fn commands_show_the_same_run_after_the_next_one() {
    let project = Project::new();
    pipeline(&project, &[("lint", "", "echo first; exit 1")], &json!([]));
    let first = project.run(&["--format", "human"]).expect(1);
    pipeline(&project, &[("lint", "", "echo second; exit 1")], &json!([]));
    project.run(&["--format", "human"]).expect(1);
    assert_eq!(paste(&project, next_commands(&first.stdout)["logs"]).expect(0).stdout, "first\n");
}

#[test]
fn from_another_directory_commands_name_the_run() {
    let project = Project::with_steps(&[("test", "echo said; exit 1", None)]);
    let elsewhere = project.dir.with_file_name("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let mut hm = project.hm(&["run", "--runner", "process", "--format", "human", "-d"]);
    let ended = Ended::of(hm.arg(&project.dir).current_dir(&elsewhere)).expect(1);
    let logs = next_commands(&ended.stdout)["logs"].to_owned();
    assert!(logs.starts_with("hm logs ") && logs.ends_with("/test"), "{logs}");
    assert_eq!(paste_in(&elsewhere, &project, &logs).expect(0).stdout, "said\n");
}

#[test]
fn a_passed_build_says_what_the_cache_saved() {
    let project = Project::new();
    let cache = json!({ "policy": "forever", "key": "0123" });
    let step = json!({ "key": "build", "cmd": "sleep 0.3", "cache": cache });
    let graph =
        json!({ "nodes": [{ "step": step, "env": {} }], "node_holes": [], "edge_property": "directed", "edges": [] });
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
    let run = || Ended::of(&mut project.hm(&["run", "--format", "human"]));
    let first = run();
    if !usable("the sandbox", first.code != Some(3), &first.stderr) {
        return;
    }
    first.expect(0);
    for _ in 0..4 {
        let ended = run().expect(0);
        let last = ended.stdout.lines().last().unwrap();
        assert!(last.starts_with("passed · 1 step · ") && last.contains(" · 1 cached (saved "), "{last}");
    }
}

#[test]
fn a_quiet_run_shows_only_what_failed() {
    let project = Project::new();
    pipeline(&project, &[("good", "", "echo fine; echo odd >&2")], &json!([]));
    let passed = project.run(&["-q"]).expect(0);
    assert_eq!((passed.stdout.as_str(), passed.stderr.as_str()), ("", ""));
    pipeline(&project, &[("good", "", "echo fine"), ("bad", "", "echo broken >&2; exit 3")], &json!([]));
    let failed = project.run(&["--format", "quiet", "-k"]).expect(1);
    let lines: Vec<&str> = failed.stdout.lines().collect();
    assert!(lines[0].starts_with("── FAILED  bad · exit 3 · "), "{lines:#?}");
    assert_eq!(lines[1..3], ["  $ echo broken >&2; exit 3", "    stderr │ broken"]);
    assert!(lines[3].starts_with("── 1 failed, 1 passed · "), "{lines:#?}");
    let again = "again hm run --runner process --format quiet -k --failed";
    assert_eq!(lines[4], format!("  logs hm logs {}/bad · {again}", run_of(lines[3])));
    assert_eq!((lines.len(), failed.stderr.as_str()), (5, ""));
    let both = project.run(&["-q", "--logs"]).expect(2);
    assert!(both.stderr.contains("cannot be used with"), "{}", both.stderr);
}
