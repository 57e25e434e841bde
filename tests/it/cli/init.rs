//! `hm init`, and small commands and options that users of the published `hm` type.

use std::{fs, os::unix::fs::symlink};

use serde_json::Value;

use crate::support::{
    project::{Ended, Project, ir},
    python::python_with_harmont,
};

/// Runs `hm init ARGS` in a directory without `.hm`.
fn fresh() -> Project {
    let project = Project::new();
    fs::remove_dir(project.dir.join(".hm")).unwrap();
    project
}

#[test]
fn every_python_template_is_a_plan() {
    let Some(python) = python_with_harmont() else { return };
    let kinds = [
        ("cmake", "CMakeLists.txt"),
        ("elixir", "mix.exs"),
        ("go", "go.mod"),
        ("python", "pyproject.toml"),
        ("rust", "Cargo.toml"),
        ("zig", "build.zig"),
    ];
    for (kind, mark) in kinds {
        let project = fresh();
        project.file(mark, "");
        let ended = Ended::of(&mut project.hm(&["init"])).expect(0);
        assert!(
            ended.stdout.contains("created ./.hm/ci.py\n") && ended.stdout.contains("`hm run`"),
            "{}",
            ended.stdout
        );
        assert_eq!(fs::read_to_string(project.dir.join(".hm/.gitignore")).unwrap(), "__pycache__/\nnode_modules/\n");
        let recognised = fs::read(project.dir.join(".hm/ci.py")).unwrap();
        let named = fresh();
        Ended::of(&mut named.hm(&["init", "-t", kind])).expect(0);
        assert!(fs::read(named.dir.join(".hm/ci.py")).unwrap() == recognised, "{kind}");
        let plan = Ended::of(project.hm(&["plan", "--format", "json"]).env("HM_PYTHON", &python)).expect(0).stdout;
        let plan: Value = serde_json::from_str(&plan).unwrap();
        assert!(plan["pipeline"] == "ci" && plan["steps"].as_array().unwrap().len() >= 5, "{kind}: {plan}");
    }
}

#[test]
fn what_is_there_is_not_overwritten_without_force() {
    let project = Project::with_steps(&[("a", "true", None)]);
    let ended = Ended::of(&mut project.hm(&["init", "-t", "rust"])).expect(2);
    assert!(ended.stderr.contains(".hm/ci.json") && ended.stderr.contains("--force"), "{}", ended.stderr);
    let ended = Ended::of(&mut project.hm(&["init", "-t", "rust", "--force"])).expect(2);
    assert!(ended.stderr.contains("rename or remove .hm/ci.json"), "{}", ended.stderr);
    fs::rename(project.dir.join(".hm/ci.json"), project.dir.join(".hm/old.json")).unwrap();
    project.file(".hm/ci.py", "mine");
    Ended::of(&mut project.hm(&["init", "-t", "rust"])).expect(2);
    assert_eq!(fs::read(project.dir.join(".hm/ci.py")).unwrap(), b"mine");
    Ended::of(&mut project.hm(&["init", "-t", "rust", "--force"])).expect(0);
    assert_ne!(fs::read(project.dir.join(".hm/ci.py")).unwrap(), b"mine");
    assert!(project.dir.join(".hm/old.json").exists());
}

#[test]
fn a_kind_that_is_not_clear_and_links_out_of_the_project_are_refused() {
    let project = fresh();
    let ended = Ended::of(&mut project.hm(&["init"])).expect(2);
    assert!(ended.stderr.contains("-t KIND"), "{}", ended.stderr);
    for mark in ["Cargo.toml", "package.json"] {
        project.file(mark, "");
    }
    let ended = Ended::of(&mut project.hm(&["init"])).expect(2);
    assert!(ended.stderr.contains("has package.json and Cargo.toml"), "{}", ended.stderr);
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), project.dir.join(".hm")).unwrap();
    Ended::of(&mut project.hm(&["init", "-t", "rust", "--force"])).expect(2);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // A link in the place of the file is replaced.
    fs::remove_file(project.dir.join(".hm")).unwrap();
    fs::create_dir(project.dir.join(".hm")).unwrap();
    let target = outside.path().join("target");
    fs::write(&target, "kept").unwrap();
    symlink(&target, project.dir.join(".hm/ci.py")).unwrap();
    Ended::of(&mut project.hm(&["init", "-t", "rust", "--force"])).expect(0);
    assert_eq!(fs::read(&target).unwrap(), b"kept");
}

#[test]
fn version_plugins_and_completions_are_printed() {
    let project = Project::new();
    let version = Ended::of(&mut project.hm(&["version"])).expect(0).stdout;
    assert_eq!(version, Ended::of(&mut project.hm(&["--version"])).expect(0).stdout);
    let plugins = Ended::of(&mut project.hm(&["plugin", "list"])).expect(0).stdout;
    assert!(plugins.lines().any(|line| line.starts_with("process ")), "{plugins}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = Ended::of(&mut project.hm(&["completions", shell])).expect(0).stdout;
        assert!(script.contains("HM_COMPLETE") && script.contains(shell), "{shell}");
    }
}

#[test]
fn published_options_of_run_are_accepted_or_answered() {
    let project = Project::with_steps(&[("a", "echo hello", None)]);
    let args =
        ["-b", "main", "-m", "why", "--org", "acme", "--parallelism", "0", "--backend", "local", "-e", "A=B", "-k"];
    let ended = project.run(&args).expect(0);
    assert!(ended.stdout.contains("a | hello"), "{}", ended.stdout);
    for (args, said) in [
        (&["--cloud"][..], "--backend local"),
        (&["--backend", "cloud"], "--backend local"),
        (&["--no-watch"], "ends with hm"),
        (&["--backend", "remote"], "possible values"),
    ] {
        let ended = project.run(args).expect(2);
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
    }
}

#[test]
fn global_options_apply_to_every_command() {
    let project = Project::new();
    project.file(".hm/ci.json", &ir(&[("a", "true", None)]));
    let trace = project.dir.with_file_name("trace.json");
    let mut hm = project.hm(&["--no-color", "run", "-v", "--runner", "process", "--debug-trace"]);
    let ended = Ended::of(hm.arg(&trace).env("CLICOLOR_FORCE", "1")).expect(0);
    assert!(!ended.stdout.contains('\x1b') && ended.stderr.contains("DEBUG"), "{} {}", ended.stdout, ended.stderr);
    let events: Value = serde_json::from_str(&fs::read_to_string(&trace).unwrap()).unwrap();
    assert!(!events.as_array().unwrap().is_empty());
    let ended = Ended::of(&mut project.hm(&["ls", "--debug-trace", "/no/such/dir/trace"])).expect(2);
    assert!(ended.stderr.contains("failed to create the trace /no/such/dir/trace"), "{}", ended.stderr);
}
