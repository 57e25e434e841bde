//! `hm run --check-inputs` and `hm inputs`: what a step read.

use serde_json::{Value, json};

use crate::support::{
    backends::usable,
    project::{Ended, Project},
};

/// Creates a project with a cached step that declares `paths`, and one that builds in it.
fn project(command: &str, paths: &[&str]) -> Project {
    let project = Project::new();
    let cache = json!({ "policy": "on_change", "key": "0123", "paths": paths });
    let nodes = json!([
        { "step": { "key": "build", "cmd": command, "cache": cache, "runner_args": { "network": "none" } }, "env": { "MODE": "fast" } },
        { "step": { "key": "test", "cmd": "cat made; cat Makefile", "runner_args": { "network": "none" } }, "env": {} },
    ]);
    let graph =
        json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": [[0, 1, "builds_in"]] });
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
    for (file, content) in [("Makefile", "all:\n"), ("src/a.c", "a"), ("src/b.c", "b"), ("README", "text")] {
        project.file(file, content);
    }
    project
}

fn check(project: &Project, more: &[&str]) -> Option<Ended> {
    let args = [&["run", "--check-inputs", "--format", "human"][..], more].concat();
    let ended = Ended::of(&mut project.hm(&args));
    usable("runner sandbox", ended.code != Some(3), &ended.stderr).then(|| ended.expect(0))
}

fn inputs(project: &Project, step: &str) -> Value {
    let json = Ended::of(&mut project.hm(&["inputs", step, "--format", "json"])).expect(0).stdout;
    serde_json::from_str(&json).unwrap()
}

fn has(answer: &Value, list: &str, name: &str) -> bool {
    answer[list].as_array().unwrap().iter().any(|entry| entry == name)
}

#[test]
fn undeclared_files_and_paths_that_nothing_reads_are_named() {
    let project = project("cat src/a.c Makefile > made; test -e Makefile.local; ls src", &["src", "*.md", "docs/**"]);
    project.file("NEWS.md", "news");
    project.file("docs/index", "docs");
    let Some(ended) = check(&project, &[]) else { return };
    let lines: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("inputs of")).collect();
    assert_eq!(
        lines,
        [
            "inputs of build: read Makefile, which its `on_change` does not match",
            "inputs of build: read nothing that `*.md` of its `on_change` matches",
            "inputs of build: read nothing that `docs/**` of its `on_change` matches",
        ]
    );
    let build = inputs(&project, "build");
    assert!(has(&build, "files", "/workspace/src/a.c") && has(&build, "files", "/workspace/Makefile"), "{build}");
    assert!(has(&build, "absent", "/workspace/Makefile.local"), "{build}");
    assert!(has(&build, "listings", "/workspace/src") && has(&build, "variables", "MODE"), "{build}");
    assert!(!build.to_string().contains("README") && !build.to_string().contains("fast"), "{build}");
    assert_eq!(build["complete"], true, "{build}");
    let text = Ended::of(&mut project.hm(&["inputs", "test"])).expect(0).stdout;
    assert!(text.contains("\nfiles (") && text.contains("\n  /workspace/made\n"), "{text}");
}

#[test]
fn a_cached_step_has_the_inputs_of_the_run_that_made_its_result() {
    let project = project("cat src/a.c > made", &["src"]);
    let Some(first) = check(&project, &[]) else { return };
    assert!(
        first.stderr.contains("inputs of build: its `on_change` matches the files that it read"),
        "{}",
        first.stderr
    );
    let made = inputs(&project, "build");
    assert!(check(&project, &[]).unwrap().stdout.contains("build was cached"));
    assert_eq!(inputs(&project, "build"), made);
}

#[test]
fn a_run_that_was_not_asked_records_nothing() {
    let project = project("cat src/a.c > made", &["src"]);
    let ended = Ended::of(&mut project.hm(&["run", "--format", "human"]));
    if !usable("runner sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    let ended = Ended::of(&mut project.hm(&["inputs", "build"])).expect(2);
    assert!(ended.stderr.contains("was not recorded") && ended.stderr.contains("--check-inputs"), "{}", ended.stderr);
}

#[test]
fn steps_whose_runner_records_nothing_are_named_before_they_run() {
    let project = Project::with_steps(&[("build", "true", None), ("test", "true", None)]);
    let ended = project.run(&["--check-inputs", "--format", "human"]).expect(0);
    let warning = "warning: `--check-inputs` records nothing of `build`, `test`: only runner `sandbox` can do that";
    assert!(ended.stderr.contains(warning), "{}", ended.stderr);
}

#[test]
fn a_damaged_trace_is_reported() {
    let project = project("true", &["src"]);
    let Some(_) = check(&project, &[]) else { return };
    let mut traces = Vec::new();
    crate::support::project::walk(&project.store, &mut |path| {
        if path.parent().is_some_and(|dir| dir.ends_with("traces")) {
            traces.push(path.to_owned());
        }
    });
    assert_eq!(traces.len(), 2, "{traces:?}");
    for path in traces {
        std::fs::write(path, "hm-trace\x01damaged").unwrap();
    }
    let ended = Ended::of(&mut project.hm(&["inputs", "build"])).expect(3);
    assert!(ended.stderr.contains("it is damaged"), "{}", ended.stderr);
}
