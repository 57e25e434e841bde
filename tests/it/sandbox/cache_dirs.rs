//! Directories that persist between runs: whose content a step starts from, when it is kept, and what build
//! tools take for new beside it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::support::{
    backends::{usable, usable_program},
    project::{Ended, Project},
};

/// Writes a pipeline of one step with the cache directory `kept`, and perhaps others.
fn pipeline(project: &Project, name: &str, cmd: &str, caches: &Value) {
    let step = json!({ "key": "step", "cmd": cmd, "runner_args": { "caches": caches } });
    steps(project, name, &[step], &json!([]));
}

fn steps(project: &Project, name: &str, steps: &[Value], edges: &Value) {
    let nodes: Vec<_> = steps.iter().map(|step| json!({ "step": step, "env": {} })).collect();
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges });
    let ir = json!({ "version": "0", "default_image": "host", "graph": graph });
    project.file(&format!(".hm/{name}.json"), &ir.to_string());
}

/// Runs a command with the cache directory `/var/tmp/kept`. Returns what it printed.
fn run(project: &Project, cmd: &str, args: &[&str]) -> Vec<String> {
    pipeline(project, "ci", cmd, &json!({ "kept": "/var/tmp/kept" }));
    printed(&ended(project, &[&["ci"], args].concat()).expect(0))
}

fn ended(project: &Project, args: &[&str]) -> Ended {
    Ended::of(project.hm(&["run", "--format", "human"]).args(args))
}

/// Returns the lines that steps printed.
fn printed(ended: &Ended) -> Vec<String> {
    let lines = ended.stdout.lines().filter_map(|line| line.split_once(" | "));
    lines.map(|(_, line)| line.to_owned()).collect()
}

/// Starts a run, and waits until its step prints `ready`.
fn start(project: &Project, args: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = project.hm(&["run", "--format", "human"]).args(args).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("| ready") {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "the run has ended");
    }
    (child, output)
}

#[test]
fn a_link_leads_a_cache_directory_to_nothing_of_the_machine() {
    let project = Project::new();
    let outside = project.store.with_file_name("outside");
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink("/", project.dir.join("root")).unwrap();
    std::os::unix::fs::symlink(format!("..{}", outside.display()), project.dir.join("up")).unwrap();
    let look = format!("test ! -e /..{}", outside.display());
    pipeline(&project, "ci", &look, &json!({ "a": "/workspace/root" }));
    ended(&project, &["ci"]).expect(0);
    pipeline(&project, "ci", "true", &json!({ "b": "/workspace/up/made" }));
    // There is no such directory in the step's root.
    ended(&project, &["ci"]).expect(3);
    assert!(!outside.join("made").exists());
}

#[test]
fn content_is_kept_if_the_step_passes() {
    let project = Project::new();
    let nothing: [&str; 0] = [];
    assert_eq!(run(&project, "ls /var/tmp/kept; echo one > /var/tmp/kept/n; mkdir /var/tmp/kept/d", &[]), nothing);
    pipeline(&project, "ci", "echo two > /var/tmp/kept/n; exit 3", &json!({ "kept": "/var/tmp/kept" }));
    ended(&project, &["ci"]).expect(1);
    assert_eq!(run(&project, "cat /var/tmp/kept/n", &[]), ["one"]);
    // An edit of the pipeline, and other paths, change nothing.
    pipeline(&project, "ci", "cat /var/tmp/other/n; ls -d /var/tmp/other/d", &json!({ "kept": "/var/tmp/other" }));
    assert_eq!(printed(&ended(&project, &["ci"]).expect(0)), ["one", "/var/tmp/other/d"]);
    assert_eq!(run(&project, "ls /var/tmp/kept; echo three > /var/tmp/kept/n", &["--no-caches"]), nothing);
    assert_eq!(run(&project, "cat /var/tmp/kept/n; rm /var/tmp/kept/n", &[]), ["one"]);
    assert_eq!(run(&project, "ls /var/tmp/kept", &[]), ["d"]);

    let du = Ended::of(&mut project.hm(&["cache", "du"])).expect(0).stdout;
    assert!(du.contains("cache directories"), "{du}");
    let clean = Ended::of(&mut project.hm(&["cache", "clean"])).expect(0).stdout;
    assert!(clean.contains("removed: cache directories"), "{clean}");
    assert_eq!(run(&project, "ls /var/tmp/kept", &[]), nothing);
}

#[test]
fn scopes_decide_who_shares_a_directory() {
    let project = Project::new();
    let caches = json!({
        "own": "/var/tmp/own",
        "all": { "path": "/var/tmp/all", "scope": "project" },
        "user": { "path": "/var/tmp/user", "scope": "user" },
    });
    let cmd = "ls /var/tmp/own /var/tmp/all /var/tmp/user; touch /var/tmp/own/1 /var/tmp/all/2 /var/tmp/user/3";
    let files = |name: &str| {
        pipeline(&project, name, cmd, &caches);
        let lines = printed(&ended(&project, &["--trust", name]).expect(0));
        lines.into_iter().filter(|line| line.len() == 1).collect::<Vec<_>>()
    };
    assert_eq!(files("one"), [""; 0]);
    assert_eq!(files("other"), ["2", "3"]);
    let mut other = Project::new();
    other.store.clone_from(&project.store);
    pipeline(&other, "one", cmd, &caches);
    // What a project leaves there, other projects use.
    let refused = ended(&other, &["one"]).expect(2);
    assert!(refused.stderr.contains("caches = \"user\""), "{}", refused.stderr);
    let lines = printed(&ended(&other, &["--trust", "one"]).expect(0));
    assert_eq!(lines.into_iter().filter(|line| line.len() == 1).collect::<Vec<_>>(), ["3"]);
}

#[test]
fn steps_that_write_at_once_both_pass_and_the_later_success_wins() {
    let project = Project::new();
    run(&project, "echo before > /var/tmp/kept/before", &[]);
    let go = project.store.with_file_name("go");
    fs::create_dir(&go).unwrap();
    let caches = json!({ "kept": { "path": "/var/tmp/kept", "scope": "project" } });
    let wait = format!("until test -e {}/now; do sleep 0.05; done", go.display());
    let slow = format!("touch /var/tmp/kept/slow; echo ready; {wait}; ls /var/tmp/kept");
    pipeline(&project, "slow", &slow, &caches);
    let (child, output) = start(&project, &["slow", "--host-dir", go.to_str().unwrap()]);
    pipeline(&project, "fast", "ls /var/tmp/kept; touch /var/tmp/kept/fast", &caches);
    assert_eq!(printed(&ended(&project, &["fast"]).expect(0)), [""; 0]);
    pipeline(&project, "look", "ls /var/tmp/kept", &caches);
    assert_eq!(printed(&ended(&project, &["look"]).expect(0)), ["fast"]);
    fs::write(go.join("now"), "").unwrap();
    let rest: Vec<String> = output.lines().map(Result::unwrap).collect();
    assert!(child.wait_with_output().unwrap().status.success(), "{rest:?}");
    assert!(rest.iter().any(|line| line.ends_with("| slow")) && !rest.iter().any(|line| line.ends_with("| fast")));
    assert_eq!(printed(&ended(&project, &["look"]).expect(0)), ["slow"]);
}

#[test]
fn a_kill_leaves_the_last_good_content() {
    let project = Project::new();
    run(&project, "echo good > /var/tmp/kept/n", &[]);
    for _ in 0..3 {
        let cmd = "echo bad > /var/tmp/kept/n; echo ready; sleep 100";
        pipeline(&project, "ci", cmd, &json!({ "kept": "/var/tmp/kept" }));
        let (mut child, _output) = start(&project, &["ci"]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(run(&project, "cat /var/tmp/kept/n", &[]), ["good"]);
    }
}

#[test]
fn many_runs_do_not_pile_up_layers() {
    let project = Project::new();
    for at in 0..20 {
        run(&project, &format!("touch /var/tmp/kept/{at}; rm -f /var/tmp/kept/$(({at} - 2))"), &[]);
    }
    assert_eq!(run(&project, "ls /var/tmp/kept", &[]), ["18", "19"]);
    assert!((1..=16).contains(&layers(&project)), "{}", layers(&project));
}

/// Returns the number of layers of the only cache directory.
fn layers(project: &Project) -> usize {
    let index = rusqlite::Connection::open(project.store.join("index.db")).unwrap();
    let stack: String = index.query_row("SELECT stack FROM cache_dirs", [], |row| row.get(0)).unwrap();
    stack.lines().count()
}

#[test]
fn what_a_step_changes_about_the_directory_itself_is_kept_once() {
    let project = Project::new();
    let look = "stat -c %a:%u /var/tmp/kept";
    run(&project, "touch /var/tmp/kept/file; chmod 700 /var/tmp/kept", &[]);
    let before = layers(&project);
    assert_eq!([run(&project, look, &[]), run(&project, look, &[])], [["700:0"]; 2]);
    assert_eq!(layers(&project), before, "nothing was changed");
    run(&project, "chmod 755 /var/tmp/kept", &[]);
    assert_eq!(run(&project, look, &[]), ["755:0"]);
    // An ordinary user has no second user for its steps, unless the machine gives it some.
    if rustix::process::geteuid().is_root() {
        run(&project, "chown 7 /var/tmp/kept", &[]);
        assert_eq!([run(&project, look, &[]), run(&project, look, &[])], [["755:7"]; 2]);
        run(&project, "chown 0 /var/tmp/kept", &[]);
        assert_eq!(run(&project, look, &[]), ["755:0"]);
    }
}

/// Writes a file of the source with a time long ago, as `rsync -t` and `unzip` leave it.
fn put_old(project: &Project, name: &str, text: &str) {
    project.file(name, text);
    let file = fs::File::open(project.dir.join(name)).unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
}

#[test]
fn an_edit_with_an_old_time_is_rebuilt_in_a_cached_build_directory() {
    if !usable_program("make") {
        return;
    }
    let project = Project::new();
    project.file("Makefile", "target/out: in\n\tcp in target/out\n");
    let build = json!({
        "key": "build",
        "cmd": "make; cat target/out",
        "runner_args": { "caches": { "target": "/workspace/target" } },
    });
    let root = json!({ "key": "root", "cmd": "echo made > made" });
    // In a fresh lineage, and over a parent.
    for (name, all, edges) in
        [("alone", vec![build.clone()], json!([])), ("child", vec![root, build], json!([[0, 1, "builds_in"]]))]
    {
        steps(&project, name, &all, &edges);
        for text in ["one", "two", "six", "two", "one"] {
            put_old(&project, "in", &format!("{text}\n"));
            assert_eq!(printed(&ended(&project, &[name]).expect(0)), ["cp in target/out", text]);
            let again = printed(&ended(&project, &[name]).expect(0));
            assert_eq!(again, ["make: 'target/out' is up to date.", text]);
        }
    }
}

#[test]
fn an_edit_is_not_lost_if_another_step_commits_the_cache_first() {
    if !usable_program("make") {
        return;
    }
    let project = Project::new();
    project.file("Makefile", "target/%: %.in\n\tcp $< $@\n");
    let step = |key: &str, cmd: &str| json!({ "key": key, "cmd": cmd, "runner_args": { "caches": { "target": "/workspace/target" } } });
    // In this order.
    let all = [step("x", "make -s target/x"), step("y", "make -s target/y; cat target/x target/y")];
    steps(&project, "ci", &all, &json!([[0, 1, "depends_on"]]));
    put_old(&project, "x.in", "x1\n");
    for text in ["y1", "y2", "y3", "y1"] {
        put_old(&project, "y.in", &format!("{text}\n"));
        assert_eq!(printed(&ended(&project, &["ci"]).expect(0)), ["x1", text]);
    }
    // Over a parent that saw the edit, but whose layers are older than the cache.
    let mut all = vec![json!({ "key": "root", "cmd": "touch made", "cache": { "policy": "forever", "key": "k" } })];
    all.push(json!({ "key": "between", "cmd": "touch made-2" }));
    all.extend([step("x", "make -s target/x"), step("y", "make -s target/y; cat target/x target/y")]);
    steps(
        &project,
        "ci",
        &all,
        &json!([[0, 1, "builds_in"], [1, 2, "builds_in"], [1, 3, "builds_in"], [2, 3, "depends_on"]]),
    );
    for text in ["y2", "y3", "y4", "y2"] {
        put_old(&project, "y.in", &format!("{text}\n"));
        assert_eq!(printed(&ended(&project, &["ci"]).expect(0)), ["x1", text]);
    }
}

#[test]
fn an_edit_of_the_same_size_is_compiled_again_by_python() {
    if !usable_program("python3") {
        return;
    }
    let project = Project::new();
    project.file("app/__init__.py", "");
    let cmd = "python3 -c 'from app import m; print(m.X)'; ls app/__pycache__ | grep -c m.cpython";
    for text in ["1", "2", "3", "2", "2", "1"] {
        put_old(&project, "app/m.py", &format!("X = {text}\n"));
        pipeline(&project, "ci", cmd, &json!({ "pyc": "/workspace/app/__pycache__" }));
        assert_eq!(printed(&ended(&project, &["ci"]).expect(0)), [text, "1"]);
    }
}

#[test]
fn an_edit_of_the_same_size_is_compiled_again_by_cargo() {
    // The toolchain itself: what is in PATH may choose one by files of the user, which steps do not see.
    let found = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = found.map(|found| String::from_utf8(found.stdout).unwrap().trim().to_owned()).unwrap_or_default();
    if !usable("cargo", Path::new(&sysroot).join("bin/cargo").is_file(), "no toolchain has it") || !usable_program("cc")
    {
        return;
    }
    let project = Project::new();
    put_old(&project, "Cargo.toml", "[package]\nname = \"app\"\nversion = \"0.0.0\"\nedition = \"2021\"\n");
    let cmd = format!(
        "export PATH={sysroot}/bin:$PATH CARGO_HOME=/var/tmp/home; unset RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER; \
         cargo build --offline 2>&1 | grep -c Compiling; target/debug/app"
    );
    pipeline(&project, "ci", &cmd, &json!({ "target": "/workspace/target" }));
    let run = || printed(&ended(&project, &["ci", "--host-dir", &sysroot]).expect(0));
    for text in ["one", "two", "one"] {
        put_old(&project, "src/main.rs", &format!("fn main() {{ println!(\"{text}\") }}\n"));
        assert_eq!(run(), ["1", text]);
    }
    assert_eq!(run(), ["0", "one"], "the build directory is used");
}

#[test]
fn results_and_keys_do_not_depend_on_cache_directories() {
    let project = Project::new();
    let step = |caches: &Value| {
        json!({
            "key": "step",
            "cmd": "date +%N > /var/tmp/kept/n; cp /var/tmp/kept/n /var/tmp/copy; cat /var/tmp/copy",
            "cache": { "policy": "forever", "key": "k" },
            "runner_args": { "caches": caches },
        })
    };
    let child = json!({ "key": "child", "cmd": "cat /var/tmp/copy; ls -A /var/tmp/kept" });
    let edges = json!([[0, 1, "builds_in"]]);
    steps(&project, "ci", &[step(&json!({ "kept": "/var/tmp/kept" })), child.clone()], &edges);
    let first = printed(&ended(&project, &["ci"]).expect(0));
    assert_eq!((first.len(), &first[0]), (2, &first[1]), "the child sees the step's files, and no cache");
    steps(&project, "ci", &[step(&json!({ "kept": { "path": "/var/tmp/kept", "scope": "user" } })), child], &edges);
    let second = ended(&project, &["--trust", "ci"]).expect(0);
    assert!(second.stdout.contains("cached"), "{}", second.stdout);
    assert_eq!(printed(&second).last(), first.last());
    assert!(!Path::new("/var/tmp/kept").exists());
}
