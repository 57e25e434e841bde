//! `ignore`: files of the source that steps do not see.

use std::fs;

use serde_json::{Value, json};

use super::reuse::{AUTO, chain, run, run_with};
use crate::support::project::{Ended, Project, ir_of};

/// Returns a project with some files, and with steps of which each builds in the one before. Those with a key
/// are found by it.
fn project(steps: &[(&str, Option<&str>)]) -> Project {
    let project = Project::new();
    let node = |(at, (cmd, key)): (usize, &(&str, Option<&str>))| {
        let cache = key.map_or(json!({ "policy": "none" }), |key| json!({ "policy": "forever", "key": key }));
        let step = json!({ "key": format!("s{at}"), "cmd": cmd, "cache": cache, "runner_args": { "network": "none" } });
        json!({ "step": step, "env": {} })
    };
    let nodes: Vec<Value> = steps.iter().enumerate().map(node).collect();
    let edges: Vec<Value> = (1..steps.len()).map(|at| json!([at - 1, at, "builds_in"])).collect();
    project.file(".hm/ci.json", &ir_of(&nodes, &edges));
    for (name, text) in [("README.md", "one\n"), ("src/a", "a\n"), ("docs/a.md", "one\n"), ("docs/b", "b\n")] {
        project.file(name, text);
    }
    project
}

fn ignore(project: &Project, table: &str, patterns: &[&str]) {
    project.file(".hm/hm.toml", &format!("[{table}]\nignore = {}\n", json!(patterns)));
}

fn log(project: &Project, step: &str) -> String {
    Ended::of(&mut project.hm(&["logs", step])).expect(0).stdout
}

const DECLARED: [&str; 2] = ["--format", "json-full"];

#[test]
fn an_edit_of_files_that_steps_do_not_see_is_all_hits() {
    for table in ["step.'*'", "source"] {
        let project = chain(&["ls > names; cat src/a > out", "find . | sort"]);
        for name in ["README.md", "src/a", "src/NOTES.md", "docs/a", "other"] {
            project.file(name, "one");
        }
        ignore(&project, table, &["*.md", "/docs/"]);
        assert_eq!(run(&project), ["ran", "ran"], "{table}");
        assert_eq!(log(&project, "s1"), ".\n./names\n./other\n./out\n./src\n./src/a\n", "{table}");
        project.file("README.md", "edited");
        project.file("docs/b", "new");
        project.file("src/NEW.md", "new");
        fs::remove_file(project.dir.join("src/NOTES.md")).unwrap();
        assert_eq!(run(&project), ["found", "found"], "{table}");
        project.file("src/a", "edited");
        assert_eq!(run(&project)[0], "/workspace/src/a changed", "{table}");
        // Without it, the same edits are seen.
        project.file(".hm/hm.toml", "");
        assert_eq!(run(&project).len(), 2);
        project.file("docs/c", "new");
        assert_eq!(run(&project)[1], "/workspace/docs lists other names", "{table}");
    }
}

#[test]
fn a_child_without_the_setting_sees_the_files_and_their_edits_as_newer() {
    let project = project(&[
        ("cp README.md built", Some("k")),
        ("ls -A; ls docs; cat built", None),
        ("test README.md -nt built && echo newer; cat README.md; cat docs/a.md || true", None),
    ]);
    ignore(&project, "step.s1", &["*.md"]);
    assert_eq!(run_with(&project, &DECLARED), ["ran", "not looked up", "not looked up"]);
    assert_eq!((&*log(&project, "s1"), &*log(&project, "s2")), ("built\ndocs\nsrc\nb\none\n", "one\none\n"));
    project.file("README.md", "two\n");
    project.file("docs/a.md", "two\n");
    // The second time over the snapshot that the first one left in the cache.
    for _ in 0..2 {
        assert_eq!(run_with(&project, &DECLARED)[0], "found");
        assert_eq!(log(&project, "s1"), "built\ndocs\nsrc\nb\none\n");
        assert_eq!(log(&project, "s2"), "newer\ntwo\ntwo\n");
    }
    fs::remove_file(project.dir.join("docs/a.md")).unwrap();
    project.file("docs/a.md/x", "a directory\n");
    assert_eq!(run_with(&project, &AUTO), ["found", "ran", "ran"]);
    assert_eq!(log(&project, "s1"), "built\ndocs\nsrc\nb\none\n");
    // Now that it was traced, no edit makes it run.
    project.file("docs/c.md", "new\n");
    assert_eq!(run_with(&project, &AUTO)[..2], ["found", "found"]);
}

#[test]
fn what_an_earlier_step_wrote_is_seen_and_no_edit_reaches_it() {
    let project =
        project(&[("echo own > README.md; echo own > docs/a.md", Some("k")), ("cat README.md docs/a.md", None)]);
    ignore(&project, "step.s1", &["*.md"]);
    for text in ["one\n", "two\n", "three\n"] {
        project.file("README.md", text);
        run_with(&project, &DECLARED);
        assert_eq!(log(&project, "s1"), "own\nown\n", "{text}");
    }
    project.file(".hm/hm.toml", "");
    run_with(&project, &DECLARED);
    assert_eq!(log(&project, "s1"), "three\nown\n", "an edit wins over a step's copy");
}

#[test]
fn what_is_seen_after_edits_is_as_in_a_fresh_lineage() {
    let seen = "find . | sort; find . -type f | sort | xargs grep -H ''";
    let project = project(&[("echo own > src/own; echo own > docs/own", Some("k")), (seen, None)]);
    project.file("gone/only.md", "x\n");
    project.file("gone-too/b", "x\n");
    project.file("becomes", "a file\n");
    ignore(&project, "step.s1", &["*.md", "/hidden/", "!src/*.md"]);
    run_with(&project, &DECLARED);
    fs::remove_dir_all(project.dir.join("gone")).unwrap();
    fs::remove_dir_all(project.dir.join("gone-too")).unwrap();
    fs::remove_file(project.dir.join("becomes")).unwrap();
    for name in ["becomes/a", "hidden/a", "docs/new.md", "docs/new", "src/shown.md", "README.md", "src/a"] {
        project.file(name, "new\n");
    }
    assert_eq!(run_with(&project, &DECLARED)[0], "found");
    let after_edits = log(&project, "s1");
    let fresh = Ended::of(project.hm(&["run", "--no-cache"]).args(DECLARED)).expect(0);
    assert!(!fresh.stdout.contains("step_cache_hit"), "{}", fresh.stdout);
    assert_eq!(log(&project, "s1"), after_edits);
    for line in ["./becomes/a:new", "./docs/new:new", "./docs/own:own", "./src/own:own", "./src/shown.md:new"] {
        assert!(after_edits.lines().any(|it| it == line), "{line}: {after_edits}");
    }
    for hidden in ["gone", "hidden", "docs/new.md", "README"] {
        assert!(!after_edits.contains(hidden), "{hidden}: {after_edits}");
    }
}

#[test]
fn everything_may_be_hidden_and_a_directory_of_the_same_name_be_made() {
    let project = project(&[
        ("test -z \"$(ls -A)\" && mkdir docs && echo own > docs/own && ls -A . docs", None),
        ("ls docs; cat README.md src/a", None),
    ]);
    for patterns in [&["**"][..], &["*"], &["/docs", "/src/", "README.md"]] {
        ignore(&project, "step.s0", patterns);
        assert_eq!(run_with(&project, &AUTO)[0], "ran", "{patterns:?}");
        assert_eq!(log(&project, "s0"), ".:\ndocs\n\ndocs:\nown\n", "{patterns:?}");
        // Older kernels mark each new directory as opaque.
        let seen = log(&project, "s1");
        assert!(["own\none\na\n", "a.md\nb\nown\none\na\n"].contains(&&*seen), "{patterns:?}: {seen}");
        // It writes where files are hidden from it, so it is not kept.
        assert_eq!(run_with(&project, &AUTO), ["ran", "ran"], "{patterns:?}");
    }
    ignore(&project, "source", &["**"]);
    let ended = Ended::of(project.hm(&["run"]).args(DECLARED));
    assert_eq!(log(&project, "s0"), ".:\ndocs\n\ndocs:\nown\n");
    ended.expect(1);
}

#[test]
fn patterns_are_part_of_keys_and_keys_without_any_are_as_before() {
    let project = project(&[("ls", Some("k"))]);
    let run = || run_with(&project, &DECLARED).remove(0);
    assert_eq!(run(), "ran");
    for table in ["step.s0", "source"] {
        for patterns in [&["*.md"][..], &["*.md", "docs"]] {
            ignore(&project, table, patterns);
            assert_eq!((&*run(), &*run()), ("ran", "found"), "{table} {patterns:?}");
        }
        let why = |expected: &str| {
            ignore(&project, table, &["other"]);
            let ended = Ended::of(&mut project.hm(&["plan"])).expect(0);
            assert!(ended.stdout.contains(expected), "{}", ended.stdout);
        };
        why(if table == "source" { "`ignore` of [source] in hm.toml changed" } else { "its `runner_args` changed" });
        // Nothing is hidden by a list without patterns.
        for text in ["", "[source]\nignore = []\n"] {
            project.file(".hm/hm.toml", text);
            assert_eq!(run(), "found", "{table}");
        }
    }
}

#[test]
fn patterns_that_could_hide_nothing_are_refused_with_their_place() {
    let project = project(&[("ls", None)]);
    let many: Vec<String> = (0..10_000).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for table in ["step.s0", "source"] {
        for (patterns, why) in [
            (&["../x"][..], "wrong pattern `../x`: only files of the source"),
            (&["docs", ""], "wrong pattern ``: write the name of a file"),
            (&["#x"], "wrong pattern `#x`: it is a comment"),
            (&["{a"], "wrong pattern `{a`: "),
            (&many, "at most 1000 patterns are possible, and these are 10000"),
        ] {
            ignore(&project, table, patterns);
            let refused = Ended::of(project.hm(&["run"]).args(DECLARED)).expect(2);
            let is_named = refused.stderr.contains(why) && refused.stderr.contains("hm.toml");
            assert!(is_named, "{table} {why}: {}", refused.stderr);
            assert!(!refused.stdout.contains("step_start"), "{table}: {}", refused.stdout);
        }
    }
    project.file(".hm/hm.toml", "[step.s0]\nignore = ['*.md']\ncaches = { c = '/c' }\n");
    let refused = Ended::of(project.hm(&["run"]).args(DECLARED)).expect(2);
    assert!(refused.stderr.contains("a step with cache directories sees all files"), "{}", refused.stderr);
    // A slash at the beginning is the top of the source.
    ignore(&project, "step.s0", &["/docs", "/workspace/src", "/etc", "/README.md/"]);
    Ended::of(project.hm(&["run"]).args(DECLARED)).expect(0);
    assert_eq!(log(&project, "s0"), "README.md\nsrc\n");
}

#[test]
fn outputs_of_a_step_that_was_found_are_those_of_one_that_ran() {
    let project = chain(&["echo own > docs/own.txt"]);
    for name in ["docs/hidden.txt", "docs/other"] {
        project.file(name, "source");
    }
    let table = "[step.s0]\nignore = ['hidden.txt']\noutputs = ['docs/*.txt']\n";
    project.file(".hm/hm.toml", table);
    for expected in ["ran", "found"] {
        assert_eq!(run(&project), [expected]);
        let dir = project.dir.join(".hm/out/ci/s0/docs");
        let names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["own.txt"], "{expected}");
    }
}

#[test]
fn a_mask_that_was_collected_is_made_again() {
    let project = chain(&["ls"]);
    project.file("README.md", "one");
    project.file("a", "a");
    ignore(&project, "step.s0", &["*.md"]);
    for _ in 0..2 {
        assert_eq!(run(&project), ["ran"]);
        assert_eq!(log(&project, "s0"), "a\n");
        Ended::of(&mut project.hm(&["cache", "clean"])).expect(0);
    }
}

#[test]
fn what_a_step_writes_over_hidden_files_stays_as_it_wrote_it() {
    for (cmd, seen, expected) in [
        ("mkdir -p docs; echo own > docs/a.md", "cat docs/a.md", "own\n"),
        ("rm -rf docs", "test -e docs || echo gone", "gone\n"),
        ("rm -rf docs; echo file > docs", "cat docs", "file\n"),
    ] {
        let project = chain(&[cmd, seen]);
        project.file("docs/a.md", "one\n");
        ignore(&project, "step.s0", &["docs/**"]);
        for text in ["one\n", "two\n", "three\n"] {
            project.file("docs/a.md", text);
            run(&project);
            assert_eq!(log(&project, "s1"), expected, "{cmd}, {text}");
        }
        fs::remove_dir_all(project.dir.join("docs")).unwrap();
        run(&project);
        assert_eq!(log(&project, "s1"), expected, "{cmd}");
    }
}
