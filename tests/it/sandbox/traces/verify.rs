//! `HM_VERIFY` and `hm verify`: steps that would be found run, and what they leave is compared.

use std::fs;

use rusqlite::Connection;
use serde_json::Value;

use super::reuse::{AUTO, chain, left, run};
use crate::support::project::{Ended, Project};

const FOUND: &str = "it would be found, and runs to be compared with its result";
/// Writes the time, which no trace has.
const CLOCK: &str = "echo 1 > same; date +%s%N > made";

fn verified(project: &Project, code: i32) -> Ended {
    Ended::of(project.hm(&["run"]).args(AUTO).env("HM_VERIFY", "1")).expect(code)
}

fn verify(project: &Project, steps: &[&str], code: i32) -> Ended {
    Ended::of(project.hm(&["verify"]).args(steps)).expect(code)
}

/// Returns what is said about each step that was looked up, and the differences.
fn events(ended: &Ended) -> (Vec<String>, Vec<Option<String>>) {
    let events = ended.events();
    let of = |kind: &'static str| events.iter().filter(move |event| event["kind"] == kind);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let missed = of("step_cache_miss").map(|event| text(&event["message"]).unwrap_or_default()).collect();
    (missed, of("step_shadow").map(|event| text(&event["difference"])).collect())
}

/// Returns what the store has: results, records, runs, and layers.
fn kept(project: &Project) -> (Vec<String>, usize) {
    let index = Connection::open(project.store.join("index.db")).unwrap();
    let rows = |query: &str| -> Vec<String> {
        let mut statement = index.prepare(query).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let mut all = rows("SELECT 'result ' || hex(key) || snapshot FROM cache ORDER BY 1");
    all.extend(rows("SELECT 'record ' || hex(key) || hex(id) FROM traces ORDER BY 1"));
    all.extend(rows("SELECT 'run ' || hex(id) FROM runs ORDER BY 1"));
    (all, fs::read_dir(project.store.join("layers")).unwrap().count())
}

#[test]
fn a_step_that_would_be_found_runs_and_is_the_same() {
    let project = chain(&["cat a > out", "cat out > all", "cat b > more"]);
    project.file("a", "a");
    project.file("b", "b");
    assert_eq!(run(&project), ["ran", "ran", "ran"]);
    project.file("b", "edited");
    let ended = verified(&project, 0);
    assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
    let (looked_up, differences) = events(&ended);
    assert_eq!(looked_up, [FOUND, FOUND, "/workspace/b changed"]);
    assert_eq!(differences, [None, None]);
    assert_eq!(run(&project), ["found", "found", "found"]);
}

#[test]
fn a_difference_names_its_file_and_what_the_step_left_is_kept() {
    let project = chain(&[CLOCK, "cat same"]);
    assert_eq!(run(&project), ["ran", "ran"]);
    let first = left(&project, "s0", "/workspace/made");
    let ended = verified(&project, 3);
    let difference = "it wrote other files: /workspace/made (content)";
    let (looked_up, differences) = events(&ended);
    // The second one is found over another parent.
    assert_eq!(looked_up, [FOUND, FOUND]);
    assert_eq!(differences, [Some(difference.to_owned()), None]);
    let warning = format!("step s0 would have been found by what it read, but {difference}");
    assert!(ended.stderr.contains(&warning), "{}", ended.stderr);
    assert!(ended.stderr.contains("would have been wrong for 1 step"), "{}", ended.stderr);
    let second = left(&project, "s0", "/workspace/made");
    assert_ne!(first, second);
    assert_eq!(run(&project), ["found", "found"]);
    assert_eq!(left(&project, "s0", "/workspace/made"), second);
}

#[test]
fn each_kind_of_difference_is_named() {
    for (cmd, named) in [
        ("ln -s $(date +%s%N) link", "/workspace/link (target)"),
        ("mkdir $(date +%s%N)", "(is missing), /workspace/"),
        ("echo 1 > f; test $(($(date +%s) % 2)) = 0 || chmod 600 f", "/workspace/f (mode)"),
    ] {
        let project = chain(&[cmd]);
        assert_eq!(run(&project), ["ran"]);
        let differs = (0..20).find_map(|_| {
            let ended = Ended::of(project.hm(&["run"]).args(AUTO).env("HM_VERIFY", "1"));
            (ended.code == Some(3)).then_some(ended)
        });
        let stderr = differs.expect("it differs at some time").stderr;
        assert!(stderr.contains(named), "{cmd}: {stderr}");
    }
}

#[test]
fn a_step_that_does_not_pass_any_longer_differs() {
    // Only the time decides, which no trace has.
    let project = chain(&["test $(($(date +%s) % 2)) = 0"]);
    let until = |code: i32, variable: &str| {
        let ended = (0..100).find_map(|_| {
            let ended = Ended::of(project.hm(&["run"]).args(AUTO).env("HM_VERIFY", variable));
            (ended.code == Some(code)).then_some(ended)
        });
        ended.expect("it ends so at some time")
    };
    until(0, "0");
    assert_eq!(events(&until(3, "1")).1, [Some("it exited with 1".to_owned())]);
    let ended = (0..100).find_map(|_| {
        let ended = Ended::of(&mut project.hm(&["verify"]));
        (ended.code == Some(1)).then_some(ended)
    });
    let stdout = ended.expect("it differs at some time").stdout;
    assert!(stdout.contains("s0: it exited with 1\n"), "{stdout}");
}

#[test]
fn what_is_put_over_another_parent_is_compared_with_a_run_over_it() {
    let project = chain(&["cat a > out; cat b > log", "cat out > all; date +%s%N > made", "cat all"]);
    project.file("a", "a");
    project.file("b", "b");
    assert_eq!(run(&project).len(), 3);
    project.file("b", "edited");
    let before = kept(&project);
    // Nothing is put there before its parent has run.
    let ended = verify(&project, &[], 0);
    assert!(ended.stdout.contains("s0: not compared: /workspace/b changed\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("no step was compared"), "{}", ended.stdout);
    // The source of today is frozen, as it is for each run.
    assert_eq!(kept(&project).0, before.0);
    Ended::of(project.hm(&["run", "ci", "s0"]).args(AUTO)).expect(0);
    let before = kept(&project);
    let ended = verify(&project, &[], 1);
    let expected =
        "s0: the same (3 paths)\ns1: it wrote other files\n  /workspace/made (content)\ns2: the same (0 paths)\n";
    assert!(ended.stdout.starts_with(expected), "{}", ended.stdout);
    assert_eq!(kept(&project), before, "neither results, nor what was put over another parent");
    let ended = verified(&project, 3);
    let (looked_up, differences) = events(&ended);
    assert_eq!(looked_up, [FOUND, FOUND, FOUND]);
    let difference = "it wrote other files: /workspace/made (content)";
    assert_eq!(differences, [None, Some(difference.to_owned()), None]);
}

#[test]
fn hm_verify_keeps_nothing_and_says_what_it_compared() {
    let project = chain(&["cat a > out; echo 1 > .hm-out", CLOCK, "cat out"]);
    project.file("a", "a");
    assert_eq!(run(&project), ["ran", "ran", "ran"]);
    let before = kept(&project);
    for (steps, code, expected) in [
        (
            &[][..],
            1,
            "s0: the same (3 paths)\ns1: it wrote other files\n  /workspace/made (content)\ns2: the same (0 paths)\n3 steps: 1 \
             not the same as before\n",
        ),
        (&["s0"][..], 0, "s0: the same (3 paths)\n1 step: the same as before\n"),
        (&["s2"], 0, "s2: the same (0 paths)\n1 step: the same as before\n"),
        (
            &["s2", "s1"],
            1,
            "s1: it wrote other files\n  /workspace/made (content)\ns2: the same (0 paths)\n2 steps: 1 \
             not the same as before\n",
        ),
    ] {
        let ended = verify(&project, steps, code);
        assert_eq!(ended.stdout, expected, "{}", ended.stderr);
        assert_eq!(kept(&project), before);
    }
    assert_eq!(run(&project), ["found", "found", "found"]);
}

#[test]
fn hm_verify_runs_nothing_that_is_not_found() {
    let project = chain(&["cat a > out", "cat /proc/uptime > made", "cat out"]);
    project.file("a", "a");
    let ended = verify(&project, &["--format", "human"], 0);
    assert_eq!(ended.stdout.matches("not compared").count(), 3, "{}", ended.stdout);
    assert_eq!(run(&project), ["ran", "ran", "ran"]);
    let ended = verify(&project, &[], 0);
    let expected = "s0: the same (2 paths)\ns1: not compared: it has no result\ns2: not compared: it has no result\n1 step: the \
                    same as before\n";
    assert_eq!(ended.stdout, expected, "{}", ended.stderr);
    let unknown = verify(&project, &["nope"], 2);
    assert!(unknown.stderr.contains("no step named `nope`"), "{}", unknown.stderr);
}

#[test]
fn settings_that_do_not_go_together_are_named() {
    let project = chain(&["cat a"]);
    project.file("a", "a");
    let ended = Ended::of(project.hm(&["run"]).env("HM_VERIFY", "1")).expect(0);
    let note = "note: HM_VERIFY has no effect without `--cache auto`";
    assert_eq!(ended.stderr.matches(note).count(), 1, "{}", ended.stderr);
    let ended = Ended::of(project.hm(&["run"]).args(AUTO).env("HM_VERIFY", "1")).expect(0);
    assert!(!ended.stderr.contains("HM_VERIFY"), "{}", ended.stderr);
    let both = Ended::of(project.hm(&["run"]).env("HM_VERIFY", "1").env("HM_CACHE_SHADOW", "1")).expect(2);
    assert!(both.stderr.contains("HM_CACHE_SHADOW and HM_VERIFY cannot be used together"), "{}", both.stderr);
    assert!(both.stderr.contains("hint: unset HM_CACHE_SHADOW"), "{}", both.stderr);
    let both = Ended::of(project.hm(&["verify"]).env("HM_CACHE_SHADOW", "strict")).expect(2);
    assert!(both.stderr.contains("HM_CACHE_SHADOW and `hm verify`"), "{}", both.stderr);
    let other = Ended::of(project.hm(&["run"]).env("HM_VERIFY", "yes")).expect(2);
    assert!(other.stderr.contains("HM_VERIFY has no such value"), "{}", other.stderr);
}
