//! `--cache auto` if results or records are lost: collected at the wrong moment, or not kept on a full disk.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use serde_json::json;

use super::reuse::{AUTO, chain, left, run};
use crate::support::{
    filesystem::Filesystem,
    project::{Ended, Project, ir_of},
};

#[test]
fn a_result_that_is_collected_after_it_was_found_is_still_there_for_the_next_step() {
    let project = Project::new();
    let node = |key: &str, cmd: &str| {
        let step = json!({ "key": key, "cmd": cmd, "runner_args": { "network": "none" } });
        json!({ "step": step, "env": {} })
    };
    let nodes = [node("found", "cat a > out"), node("slow", "sleep 2"), node("next", "cat out b")];
    let edges = [json!([0, 2, "builds_in"]), json!([1, 2, "depends_on"])];
    project.file(".hm/ci.json", &ir_of(&nodes, &edges));
    project.file("a", "a\n");
    project.file("b", "one\n");
    assert_eq!(run(&project), ["ran", "ran", "ran"]);
    project.file("b", "two\n");
    let mut hm = project.hm(&["run", "--refresh", "slow"]);
    let mut hm = hm.args(AUTO).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(hm.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut has = |what: &str| lines.any(|line| line.contains(what));
    assert!(has("\"step_cache_hit\""));
    for _ in 0..3 {
        Ended::of(&mut project.hm(&["cache", "clean", "--all"])).expect(0);
    }
    assert!(has("\"build_end\"") && hm.wait().unwrap().success());
    assert_eq!(Ended::of(&mut project.hm(&["logs", "next"])).expect(0).stdout, "a\ntwo\n");
    // What was collected is made again.
    for _ in 0..2 {
        let ended = Ended::of(project.hm(&["run"]).args(AUTO)).expect(0);
        assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
        assert_eq!(Ended::of(&mut project.hm(&["logs", "next"])).expect(0).stdout, "a\ntwo\n");
    }
    assert_eq!(run(&project), ["found", "found", "found"]);
}

#[test]
fn a_disk_that_is_full_when_a_result_is_kept_costs_that_result_alone() {
    let Some(disk) = Filesystem::ext4(64) else { return };
    let project = chain(&["cat a > out; if test -e full; then cat /dev/zero > fill 2> /dev/null; fi; true", "cat out"]);
    let hm = |args: &[&str]| Ended::of(project.hm(args).env("HM_CACHE_DIR", disk.dir().join("store")));
    let auto = [&["run"][..], &AUTO].concat();
    let seen = || hm(&["logs", "s1"]).expect(0).stdout;
    project.file("a", "one\n");
    hm(&auto).expect(0);
    assert_eq!(seen(), "one\n");
    project.file("full", "");
    project.file("a", "two\n");
    let full = hm(&auto);
    // There may be no room for the next step.
    assert!(matches!(full.code, Some(0 | 3)), "{full:?}");
    assert!(!full.stderr.contains("panicked"), "{}", full.stderr);
    fs::remove_file(project.dir.join("full")).unwrap();
    hm(&["cache", "clean"]).expect(0);
    for text in ["two\n", "one\n", "two\n"] {
        project.file("a", text);
        for _ in 0..2 {
            let ended = hm(&auto).expect(0);
            assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
            assert_eq!(seen(), text);
        }
    }
}

#[test]
fn a_result_or_a_record_that_cannot_be_kept_is_a_warning_and_leaves_nothing_to_be_found() {
    for table in ["traces", "cache"] {
        let project = chain(&["cat a > out"]);
        project.file("a", "one");
        assert_eq!(run(&project), ["ran"]);
        let index = rusqlite::Connection::open(project.store.join("index.db")).unwrap();
        let refuse =
            format!("CREATE TRIGGER refuse BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'disk full'); END");
        index.execute(&refuse, []).unwrap();
        project.file("a", "two");
        for _ in 0..2 {
            let ended = Ended::of(project.hm(&["run"]).args(AUTO)).expect(0);
            assert!(!ended.stdout.contains("step_cache_hit"), "{table}: {}", ended.stdout);
            assert_eq!(ended.stderr.matches("disk full").count(), 1, "{table}: {}", ended.stderr);
        }
        // What was kept before is found, and nothing of the failed runs is.
        project.file("a", "one");
        assert_eq!(run(&project), ["found"], "{table}");
        index.execute("DROP TRIGGER refuse", []).unwrap();
        project.file("a", "two");
        let second = run(&project);
        assert_ne!(second, ["found"], "{table}");
        assert_eq!(run(&project), ["found"], "{table}");
        assert_eq!(left(&project, "s0", "/workspace/out"), "two", "{table}");
    }
}
