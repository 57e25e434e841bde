//! Steps whose tracing takes more than it saves are left untraced for some runs.

use rusqlite::Connection;

use super::reuse::{AUTO, chain, run, run_with};
use crate::support::project::{Ended, Project};

/// Looks for many files, which takes pid 1 longer than the limit of 100 ms in three runs.
const COSTLY: &str = "cat a; i=0; while [ $i -lt 20000 ]; do test -e missing$i || i=$((i + 1)); done";

fn index(project: &Project) -> Connection {
    Connection::open(project.store.join("index.db")).unwrap()
}

/// Returns the costs of a step: runs, processor time in µs, what was saved in ms, and runs without a trace.
fn costs(project: &Project, step: &str) -> (u32, u64, u64, u32) {
    let query = "SELECT runs, spent_us, saved_ms, left_out FROM tracing_costs WHERE step = ? AND pipeline = 'ci'";
    index(project).query_row(query, [step], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).unwrap()
}

#[test]
fn a_step_whose_tracing_takes_more_than_it_saves_is_left_untraced_and_tried_again() {
    let project = chain(&["cat b", COSTLY]);
    project.file("b", "b");
    let edited = |text: &str| {
        project.file("a", text);
        run(&project)
    };
    assert_eq!(edited("1"), ["ran", "ran"]);
    let (runs, spent, saved, left_out) = costs(&project, "s1");
    assert_eq!((runs, saved, left_out), (1, 0, 0));
    assert!(spent > 10_000, "{spent} µs");
    assert_eq!(edited("2"), ["found", "/workspace/a changed"]);
    assert_eq!(edited("3"), ["found", "/workspace/a changed"]);
    assert_eq!((costs(&project, "s1").0, costs(&project, "s0").0), (3, 1));
    let text = edited("4").remove(1);
    assert!(text.starts_with("not traced: tracing took "), "{text}");
    assert!(text.ends_with(" s in 3 runs, and no run was saved"), "{text}");
    let why = Ended::of(&mut project.hm(&["why", "s1"])).expect(0).stdout;
    assert!(why.contains(&text), "{why}");
    let inputs = Ended::of(&mut project.hm(&["inputs", "s1"])).expect(2);
    assert!(inputs.stderr.contains("was not recorded"), "{}", inputs.stderr);
    assert_eq!(costs(&project, "s1").3, 1);
    // What is asked for is done.
    assert_eq!(run_with(&project, &[&AUTO[..], &["--refresh", "s1"]].concat()), ["found", "ran"]);
    assert_eq!(costs(&project, "s1").0, 4);
    index(&project).execute("UPDATE tracing_costs SET left_out = 19 WHERE step = 's1'", []).unwrap();
    assert!(edited("5")[1].starts_with("not traced"), "the last time");
    assert_eq!(edited("6"), ["found", "/workspace/a changed"]);
    assert_eq!(costs(&project, "s1").0, 1);
}

#[test]
fn a_step_in_which_others_build_is_always_traced() {
    let project = chain(&[COSTLY, "cat b"]);
    project.file("b", "b");
    for text in ["1", "2", "3", "4"] {
        project.file("a", text);
        let expected = if text == "1" { ["ran", "ran"] } else { ["/workspace/a changed", "found"] };
        assert_eq!(run(&project), expected);
    }
    assert_eq!(costs(&project, "s0").0, 4);
}

#[test]
fn hits_save_what_the_last_run_took() {
    let project = chain(&["cat a; sleep 0.3"]);
    project.file("a", "a");
    assert_eq!(run(&project), ["ran"]);
    assert_eq!(costs(&project, "s0").2, 0);
    assert_eq!(run(&project), ["found"]);
    let (runs, _, saved, _) = costs(&project, "s0");
    assert!(runs == 1 && saved >= 300, "{saved} ms");
    assert_eq!(run(&project), ["found"]);
    assert!(costs(&project, "s0").2 >= 600);
    // Nothing is counted in other modes.
    let before = costs(&project, "s0");
    assert_eq!(run_with(&project, &["--format", "json-full"]), ["not looked up"]);
    assert_eq!(costs(&project, "s0"), before);
}
