//! `--cache auto`: what is found by what steps read is what they would do again, and nothing else is found.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::support::project::{Ended, Project, ir_of};

pub(super) const AUTO: [&str; 4] = ["--cache", "auto", "--format", "json-full"];

/// Returns a project with these steps, which have no network, and each of which builds in the one before.
pub(super) fn chain(cmds: &[&str]) -> Project {
    let project = Project::new();
    pipeline(&project, cmds, &json!({ "network": "none" }));
    project
}

fn pipeline(project: &Project, cmds: &[&str], args: &Value) {
    let step = |(at, cmd): (usize, &&str)| json!({ "step": { "key": format!("s{at}"), "cmd": cmd, "runner_args": args }, "env": {} });
    let nodes: Vec<Value> = cmds.iter().enumerate().map(step).collect();
    let edges: Vec<Value> = (1..cmds.len()).map(|at| json!([at - 1, at, "builds_in"])).collect();
    project.file(".hm/ci.json", &ir_of(&nodes, &edges));
}

/// Runs the pipeline. Returns the status of each step, in their order, or its message if it was looked up and
/// not found.
pub(super) fn run_with(project: &Project, args: &[&str]) -> Vec<String> {
    let ended = Ended::of(project.hm(&["run"]).args(args)).expect(0);
    assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
    let mut steps: Vec<(String, String)> = Vec::new();
    for event in ended.events() {
        let status = match event["kind"].as_str() {
            Some("step_cache_miss") => event["message"].as_str().unwrap_or("ran"),
            Some("step_cache_hit") => "found",
            Some("step_start") => "not looked up",
            _ => continue,
        };
        let id = event["step_id"].as_str().unwrap();
        // The first one counts: what is not found starts later.
        if steps.iter().all(|(known, _)| known != id) {
            steps.push((id.to_owned(), status.to_owned()));
        }
    }
    steps.into_iter().map(|(_, status)| status).collect()
}

pub(super) fn run(project: &Project) -> Vec<String> {
    run_with(project, &AUTO)
}

/// Returns what a step left at a path.
pub(super) fn left(project: &Project, step: &str, path: &str) -> String {
    let to = project.dir.with_file_name("copy");
    let from = format!("{step}:{path}");
    Ended::of(project.hm(&["cp", &from]).arg(&to)).expect(0);
    let text = fs::read_to_string(&to).unwrap();
    fs::remove_file(&to).unwrap();
    text
}

#[test]
fn only_steps_that_read_what_was_edited_or_what_was_made_of_it_run_again() {
    let project = chain(&["cat a > out-a", "cat b > out-b", "cat out-a out-b > all"]);
    for name in ["a", "b", "README"] {
        project.file(name, name);
    }
    assert_eq!(run(&project), ["ran", "ran", "ran"]);
    assert_eq!(run(&project), ["found", "found", "found"]);
    project.file("README", "edited");
    assert_eq!(run(&project), ["found", "found", "found"]);
    project.file("b", "edited");
    assert_eq!(run(&project), ["found", "/workspace/b changed", "/workspace/out-b changed"]);
    assert_eq!(run(&project), ["found", "found", "found"]);
    // What is reused is the result of the first edit.
    project.file("b", "b");
    assert_eq!(run(&project), ["found", "found", "found"]);
    project.file("a", "edited");
    assert_eq!(run(&project)[0], "/workspace/a changed");
}

#[test]
fn what_a_later_step_sees_is_the_result_and_the_source_of_today() {
    let project = chain(&[
        "cat a > out; rm gone; echo own > made; mkdir -p d; echo 1 > d/own",
        "find . -type f | grep -v .hm | sort | xargs grep -H ''",
    ]);
    for (name, text) in [("a", "a"), ("gone", "x"), ("other", "old"), ("d/theirs", "old"), ("removed", "x")] {
        project.file(name, text);
    }
    let see = || {
        let statuses = run(&project);
        (statuses, Ended::of(&mut project.hm(&["logs", "s1"])).expect(0).stdout)
    };
    let before = see();
    assert_eq!(before.0, ["ran", "ran"]);
    project.file("other", "new");
    project.file("d/theirs", "new");
    project.file("d/more", "new");
    fs::remove_file(project.dir.join("removed")).unwrap();
    let (statuses, reused) = see();
    assert_eq!(statuses[0], "found");
    assert_ne!(statuses[1], "found");
    // The same over a step that ran.
    assert_eq!(run_with(&project, &["--no-cache", "--cache", "auto", "--format", "json-full"]), ["ran", "ran"]);
    let fresh = Ended::of(&mut project.hm(&["logs", "s1"])).expect(0).stdout;
    assert_eq!(reused, fresh);
    assert_ne!(reused, before.1);
    for line in ["./other:new", "./d/theirs:new", "./d/more:new", "./d/own:1", "./made:own", "./out:a"] {
        assert!(fresh.lines().any(|it| it == line), "{line}: {fresh}");
    }
    assert!(!fresh.contains("gone") && !fresh.contains("removed"), "{fresh}");
}

/// An edit, and what is said about it.
type Edit = (&'static str, fn(&Path), &'static str);

const EDITS: [(&str, Edit); 13] = [
    ("cat a", ("content", |dir| fs::write(dir.join("a"), "other").unwrap(), "/workspace/a changed")),
    ("cat a", ("content of the same size", |dir| fs::write(dir.join("a"), "z").unwrap(), "/workspace/a changed")),
    (
        "test -x a || true",
        ("mode", |dir| set_mode(&dir.join("a"), 0o755), "the mode, owner or attributes of /workspace/a changed"),
    ),
    ("test -e b || true", ("appears", |dir| fs::write(dir.join("b"), "").unwrap(), "/workspace/b appeared")),
    ("cat a", ("is gone", |dir| fs::rename(dir.join("a"), dir.join("x")).unwrap(), "/workspace/a is gone")),
    ("ls d", ("another name", |dir| fs::write(dir.join("d/g"), "").unwrap(), "/workspace/d lists other names")),
    (
        "ls d",
        (
            "another type",
            |dir| {
                fs::remove_file(dir.join("d/f")).unwrap();
                fs::create_dir(dir.join("d/f")).unwrap();
                fs::write(dir.join("d/f/x"), "").unwrap();
            },
            "/workspace/d lists other names",
        ),
    ),
    ("cat l", ("the target of a link", |dir| relink(&dir.join("l"), "d/f"), "/workspace/l changed")),
    ("readlink l", ("the target that is read", |dir| relink(&dir.join("l"), "none"), "/workspace/l changed")),
    ("cat l", ("behind a link", |dir| fs::write(dir.join("a"), "other").unwrap(), "/workspace/a changed")),
    ("echo x > a", ("what it replaces", |dir| fs::write(dir.join("a"), "other").unwrap(), "/workspace/a changed")),
    ("echo x >> a", ("what it extends", |dir| fs::write(dir.join("a"), "other").unwrap(), "/workspace/a changed")),
    ("echo x > new", ("what it makes", |dir| fs::write(dir.join("new"), "").unwrap(), "/workspace/new appeared")),
];

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn relink(path: &Path, target: &str) {
    fs::remove_file(path).unwrap();
    symlink(target, path).unwrap();
}

#[test]
fn each_kind_of_edit_of_what_it_read_makes_a_step_run() {
    for (cmd, (name, edit, because)) in EDITS {
        let cmd = if name == "is gone" { "cat a || true" } else { cmd };
        let project = chain(&[cmd]);
        project.file("a", "a");
        project.file("d/f", "f");
        symlink("a", project.dir.join("l")).unwrap();
        assert_eq!(run(&project), ["ran"], "{name}");
        assert_eq!(run(&project), ["found"], "{name}");
        edit(&project.dir);
        assert_eq!(run(&project), [because], "{name}");
        assert_eq!(run(&project), ["found"], "{name}");
    }
}

#[test]
fn what_is_not_a_file_is_part_of_the_key() {
    let project = chain(&["echo $A > out"]);
    let with = |value: &str| run_with(&project, &[&AUTO[..], &["-e", value]].concat());
    assert_eq!((with("A=1"), with("A=1"), with("A=2")), (vec!["ran".into()], vec!["found".into()], vec!["ran".into()]));
    assert_eq!(left(&project, "s0", "/workspace/out"), "2\n");
    pipeline(&project, &["echo $A  > out"], &json!({ "network": "none" }));
    assert_eq!(with("A=1"), ["ran"], "another command");
    pipeline(&project, &["echo $A  > out"], &json!({ "network": "none", "pids": 77 }));
    assert_eq!(with("A=1"), ["ran"], "other arguments");
}

#[test]
fn nothing_is_looked_up_or_kept_by_default() {
    let project = chain(&["cat a"]);
    project.file("a", "a");
    let declared = ["--format", "json-full"];
    assert_eq!(run_with(&project, &declared), ["not looked up"]);
    assert_eq!(run(&project), ["ran"], "nothing was kept");
    assert_eq!(run_with(&project, &declared), ["not looked up"]);
    project.file(".hm/hm.toml", "[cache]\nmode = 'auto'\n");
    assert_eq!(run_with(&project, &declared), ["found"]);
    assert_eq!(run_with(&project, &["--cache", "declared", "--format", "json-full"]), ["not looked up"]);
}

#[test]
fn off_is_neither_to_look_up_nor_to_keep() {
    let project = Project::new();
    let cache = json!({ "policy": "none" });
    let declared = json!({ "policy": "forever", "key": "k" });
    let nodes = [cache, declared]
        .map(|cache| json!({ "step": { "key": cache["policy"], "cmd": "cat a", "cache": cache }, "env": {} }));
    project.file(".hm/ci.json", &ir_of(&nodes, &[]));
    project.file("a", "a");
    let run = |mode: &str| {
        let mut statuses = run_with(&project, &["--cache", mode, "--format", "json-full"]);
        statuses.sort_unstable();
        statuses
    };
    assert_eq!(run("off"), ["not looked up", "not looked up"]);
    assert_eq!(run("declared"), ["not looked up", "ran"]);
    assert_eq!(run("off"), ["not looked up", "not looked up"]);
    assert_eq!(run("declared"), ["found", "not looked up"]);
    assert_eq!(run("auto"), ["found", "ran"]);
    assert_eq!(run("auto"), ["found", "found"]);
}

#[test]
fn a_step_may_reuse_less_than_the_run_and_never_more() {
    let keyed = json!({ "policy": "forever", "key": "k" });
    let (off, declared) = (["not looked up", "not looked up"], ["ran", "found"]);
    for (has_key, mode, limit, expected, later) in [
        (true, "auto", "off", off, "ran"),
        (true, "declared", "off", off, "ran"),
        (true, "auto", "declared", declared, "found"),
        (true, "declared", "auto", declared, "found"),
        (true, "off", "auto", off, "ran"),
        (false, "auto", "off", off, "ran"),
        (false, "auto", "declared", off, "ran"),
        (false, "auto", "auto", declared, "found"),
        (false, "declared", "auto", off, "ran"),
        (false, "off", "auto", off, "ran"),
    ] {
        let case = format!("{has_key} {mode} {limit}");
        let project = Project::new();
        let mut step = json!({ "key": "s0", "cmd": "cat a", "runner_args": { "network": "none" } });
        if has_key {
            step["cache"] = keyed.clone();
        }
        project.file(".hm/ci.json", &ir_of(&[json!({ "step": step, "env": {} })], &[]));
        project.file("a", "a");
        project.file(".hm/hm.toml", &format!("[step.'s*']\ncache = '{limit}'\n"));
        let run = |mode: &str| run_with(&project, &["--cache", mode, "--format", "json-full"]).remove(0);
        assert_eq!([run(mode), run(mode)], expected, "{case}");
        if expected == off {
            let inputs = Ended::of(&mut project.hm(&["inputs", "s0"])).expect(2);
            assert!(inputs.stderr.contains("was not recorded"), "{case}: {}", inputs.stderr);
            let because = match (has_key, mode, limit) {
                (_, _, "off") => "not cached: its argument `cache` is `off`",
                (_, "off", _) => "not cached: the cache mode of the run was `off`",
                (_, "auto", _) => "it has no cache policy with a key, and its argument `cache` is `declared`",
                _ => "it has no cache policy with a key",
            };
            let why = Ended::of(&mut project.hm(&["why", "s0"])).expect(0);
            assert!(why.stdout.trim_end().ends_with(because), "{case}: {}", why.stdout);
        }
        let plan = Ended::of(&mut project.hm(&["plan"])).expect(0).stdout;
        assert_eq!(plan.contains(&format!("cache {limit}")), limit != "auto", "{case}: {plan}");
        // What was kept is found without the limit, and nothing else is.
        project.file(".hm/hm.toml", "");
        assert_eq!(run("auto"), later, "{case}");
    }
}

#[test]
fn nothing_is_found_over_a_step_that_is_not_kept() {
    let project = chain(&["cat a > out", "cat out"]);
    project.file("a", "a");
    project.file(".hm/hm.toml", "[step.s0]\ncache = 'off'\n");
    assert_eq!(run(&project), ["not looked up", "ran"]);
    assert_eq!(run(&project), ["not looked up", "ran"]);
    project.file(".hm/hm.toml", "[step.s0]\ncache = 'never'\n");
    for args in [&["plan"][..], &["run", "--cache", "auto"]] {
        let refused = Ended::of(&mut project.hm(args)).expect(2);
        assert!(refused.stderr.contains("`auto`, `declared` or `off`, not `\"never\"`"), "{}", refused.stderr);
        assert!(refused.stderr.contains("[step.s0] in .hm/hm.toml:2"), "{}", refused.stderr);
    }
}

#[test]
fn steps_that_are_asked_to_run_do_and_replace_their_results() {
    let project = chain(&["cat a > out", "cat out"]);
    project.file("a", "a");
    assert_eq!(run(&project), ["ran", "ran"]);
    assert_eq!(run_with(&project, &[&AUTO[..], &["--no-cache"]].concat()), ["ran", "ran"]);
    assert_eq!(run(&project), ["found", "found"]);
    assert_eq!(run_with(&project, &[&AUTO[..], &["--refresh", "s1"]].concat()), ["found", "ran"]);
    assert_eq!(run(&project), ["found", "found"]);
}

#[test]
fn a_result_that_cannot_be_confirmed_is_not_kept() {
    for cmd in ["cat /proc/uptime", "cat /run/secrets/S", "exit 1"] {
        let project = chain(&[cmd]);
        for _ in 0..2 {
            let hm = Ended::of(project.hm(&["run", "--secret", "S"]).args(AUTO).env("S", "s3cret"));
            let hm = hm.expect(i32::from(cmd == "exit 1"));
            assert!(!hm.stdout.contains("step_cache_hit"), "{cmd}: {}", hm.stdout);
        }
    }
}

#[test]
fn steps_over_one_that_runs_each_time_are_neither_found_nor_kept() {
    let project = chain(&["cat /proc/uptime > out", "echo 1 > made"]);
    let results = || {
        let saved = Ended::of(&mut project.hm(&["cache", "du", "--format", "json"])).expect(0).stdout;
        serde_json::from_str::<Value>(&saved).unwrap()["kinds"]["steps"].as_u64().unwrap_or_default()
    };
    for _ in 0..2 {
        assert_eq!(run(&project), ["ran", "ran"]);
        assert_eq!(results(), 0);
    }
}

#[test]
fn a_result_that_took_a_second_attempt_is_not_kept() {
    // Only the time tells the attempts apart. If the first one is too late to fail, the next try gives it
    // longer.
    for seconds in [2, 10, 60] {
        let project = Project::new();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let cmd = format!("test $(date +%s) -ge {} || {{ sleep {}; exit 1; }}", now + seconds, seconds / 2);
        pipeline(&project, &[&cmd], &json!({ "network": "none", "retries": 5 }));
        let first = Ended::of(project.hm(&["run"]).args(AUTO)).expect(0).stdout;
        if first.contains("step_retry") {
            assert_eq!(run(&project), ["ran"]);
            assert_eq!(run(&project), ["found"], "it passed at once");
            return;
        }
    }
    panic!("the step did not fail");
}

#[test]
fn a_result_has_its_output_and_its_files_for_the_user() {
    let project = Project::new();
    pipeline(&project, &["echo hello; cat a > out.txt"], &json!({ "network": "none", "outputs": ["out.txt"] }));
    project.file("a", "content");
    assert_eq!(run(&project), ["ran"]);
    let out = project.dir.join(".hm/out");
    fs::remove_dir_all(&out).unwrap();
    assert_eq!(run(&project), ["found"]);
    assert!(walk(&out).contains(&"content".to_owned()), "{:?}", walk(&out));
    let log = Ended::of(&mut project.hm(&["logs", "s0"])).expect(0).stdout;
    assert_eq!(log, "hello\n");
    let why = Ended::of(&mut project.hm(&["why", "s0"])).expect(0).stdout;
    assert!(why.starts_with("s0: cache hit, found by what it read: created by run "), "{why}");
    project.file("a", "edited");
    assert_eq!(run(&project), ["/workspace/a changed"]);
    let why = Ended::of(&mut project.hm(&["why", "s0"])).expect(0).stdout;
    assert_eq!(why, "s0: cache miss: /workspace/a changed\n");
}

fn walk(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    crate::support::project::walk(dir, &mut |path| found.extend(fs::read_to_string(path).ok()));
    found
}

#[test]
fn a_result_that_was_removed_is_made_again() {
    let project = chain(&["cat a > out"]);
    project.file("a", "a");
    assert_eq!(run(&project), ["ran"]);
    Ended::of(&mut project.hm(&["cache", "clean", "s0"])).expect(0);
    assert_eq!(run(&project), ["its result was removed"]);
    assert_eq!(run(&project), ["found"]);
    Ended::of(&mut project.hm(&["cache", "clean"])).expect(0);
    assert_eq!(run(&project), ["ran"]);
}

#[test]
fn results_do_not_cross_projects_and_follow_a_clone_of_the_same_one() {
    let (one, other) = (chain(&["cat a > out"]), chain(&["cat a > out"]));
    let run_in = |project: &Project| {
        let mut hm = project.hm(&["run"]);
        hm.args(AUTO).env("HM_CACHE_DIR", &one.store);
        Ended::of(&mut hm).expect(0).stdout.contains("step_cache_hit")
    };
    for project in [&one, &other] {
        project.file("a", "a");
    }
    assert!(!run_in(&one) && !run_in(&other) && run_in(&one) && run_in(&other));
    let clones = [chain(&["cat a > out"]), chain(&["cat a > out"])];
    for project in &clones {
        project.file("a", "a");
        project.file(".git/config", "[remote \"origin\"]\n\turl = https://example.com/a/b.git\n");
        project.file(".git/HEAD", "ref: refs/heads/main\n");
    }
    assert!(!run_in(&clones[0]) && run_in(&clones[1]), "a fresh clone");
}

#[test]
fn two_runs_at_once_and_killed_ones_leave_results_that_are_right() {
    let project = chain(&["cat a > out; sleep 0.2", "cat out > again"]);
    let start = || {
        let mut hm = project.hm(&["run"]);
        hm.args(AUTO).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    for round in 0..6_u64 {
        project.file("a", &format!("round {round}"));
        let mut killed = start();
        std::thread::sleep(Duration::from_millis(150 * round));
        killed.kill().unwrap();
        killed.wait().unwrap();
        for mut ended in [start(), start()] {
            assert!(ended.wait().unwrap().success(), "{round}");
        }
        assert_eq!(run(&project), ["found", "found"], "{round}");
        let seen = Ended::of(project.hm(&["run"]).args(["--cache", "auto", "--keep"])).expect(0);
        assert!(!seen.stderr.contains("warning"), "{}", seen.stderr);
        assert_eq!(left(&project, "s1", "/workspace/again"), format!("round {round}"));
    }
}

#[test]
fn results_by_traces_are_not_saved_for_other_machines() {
    let project = chain(&["cat a > out"]);
    project.file("a", "a");
    assert_eq!(run(&project), ["ran"]);
    let saved = project.dir.with_file_name("saved");
    let report = Ended::of(project.hm(&["cache", "save", "--format", "json"]).arg(&saved)).expect(0);
    assert_eq!(serde_json::from_str::<Value>(&report.stdout).unwrap()["results"], 0);
    let fresh = project.dir.with_file_name("other-store");
    let hm = |args: &[&str]| Ended::of(project.hm(args).env("HM_CACHE_DIR", &fresh));
    Ended::of(project.hm(&["cache", "restore"]).arg(&saved).env("HM_CACHE_DIR", &fresh)).expect(0);
    let ended = hm(&["run", "--cache", "auto", "--format", "json-full"]).expect(0);
    assert!(!ended.stdout.contains("step_cache_hit"), "{}", ended.stdout);
}
