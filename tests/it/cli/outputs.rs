//! `outputs`: files of steps in `.hm/out` of the source directory, and the test results among them.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use serde_json::{Value, json};

use crate::support::{
    backends::usable,
    images::{Image, has_busybox},
    project::{Ended, Project},
};

const JUNIT: &str = r#"<testsuite><testcase name="good"/><testcase name="bad" classname="a"><failure message="expected 1&#10;found 2"/></testcase></testsuite>"#;

/// Writes the pipeline `ci` of one step on an image.
fn pipeline(project: &Project, image: &str, cmd: &str, more: &Value) {
    let mut step = json!({ "key": "test", "cmd": cmd });
    step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let graph = json!({
        "nodes": [{ "step": step, "env": {} }], "node_holes": [], "edge_property": "directed", "edges": [],
    });
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": image, "graph": graph }).to_string());
}

fn outputs(patterns: &[&str]) -> Value {
    json!({ "runner_args": { "outputs": patterns } })
}

/// Returns the runners that this machine has, of those that have outputs.
fn runners() -> Vec<&'static str> {
    let project = Project::with_steps(&[("a", "true", None)]);
    let ended = Ended::of(&mut project.hm(&["run", "--runner", "sandbox"]));
    if usable("runner sandbox", ended.code != Some(3), &ended.stderr) {
        vec!["process", "sandbox"]
    } else {
        vec!["process"]
    }
}

fn run(project: &Project, runner: &str, args: &[&str]) -> Ended {
    Ended::of(project.hm(&["run", "--runner", runner]).args(args))
}

/// Returns the end of the step, and what `.hm/out/ci/test` has: names and texts.
fn step_end(ended: &Ended) -> Value {
    ended.events().into_iter().find(|event| event["kind"] == "step_end").unwrap()
}

fn tree(dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    crate::support::project::walk(dir, &mut |path| {
        if path.symlink_metadata().unwrap().is_file() {
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(path).unwrap()));
        }
    });
    found.sort();
    found
}

#[test]
fn outputs_of_passed_and_failed_steps_are_copied_and_test_results_shown() {
    for runner in runners() {
        for code in [0, 7] {
            let project = Project::new();
            let cmd = format!(
                "mkdir -p r/deep && printf '%s' '{JUNIT}' > r/deep/junit.xml && echo log > r/a.txt && chmod +x r/a.txt; \
                 echo no > other; exit {code}"
            );
            pipeline(&project, "host", &cmd, &outputs(&["r/**/*.xml", "r/a.*", "none"]));
            let ended = run(&project, runner, &["--format", "json"]).expect(i32::from(code != 0));
            let out = project.dir.join(".hm/out/ci/test");
            let expected = [("r/a.txt", "log\n"), ("r/deep/junit.xml", JUNIT)];
            assert_eq!(tree(&out), expected.map(|(name, text)| (name.to_owned(), text.to_owned())), "{runner}");
            assert_eq!(fs::metadata(out.join("r/a.txt")).unwrap().permissions().mode() & 0o111, 0o111);
            let end = step_end(&ended);
            let keys: Vec<_> =
                end["artifacts"].as_array().unwrap().iter().map(|it| it["key"].as_str().unwrap()).collect();
            assert_eq!(keys, [".hm/out/ci/test/r/a.txt", ".hm/out/ci/test/r/deep/junit.xml"]);
            let failures = json!([{ "name": "a bad", "message": "expected 1" }]);
            assert_eq!(end["tests"], json!({ "tests": 2, "failed": 1, "skipped": 0, "failures": failures }));

            // Another run replaces them, and git ignores them.
            pipeline(&project, "host", "echo new > n.txt", &outputs(&["*.txt"]));
            let ended = run(&project, runner, &["--format", "human"]).expect(0);
            assert!(ended.stdout.contains("  test: 1 output in .hm/out/ci/test\n"), "{}", ended.stdout);
            assert_eq!(tree(&out), [("n.txt".to_owned(), "new\n".to_owned())]);
            assert_eq!(fs::read_to_string(project.dir.join(".hm/out/.gitignore")).unwrap(), "*\n");
            // The copies are not part of the source.
            pipeline(&project, "host", "test ! -e .hm/out", &json!({}));
            run(&project, runner, &[]).expect(0);
        }
    }
}

#[test]
fn a_hostile_step_gets_nothing_else_copied_and_hangs_nothing() {
    let hostile = "mkdir o && cd o && ln -s /etc/passwd link && ln -s / root && mkfifo fifo && ln -s fifo f2 && \
                   truncate -s 1T huge && echo ok > \"$(printf 'new\\nline')\" && echo fine > fine && \
                   (i=0; while [ $i -lt 300 ]; do mkdir d && cd d && i=$((i+1)); done; echo deep > deep)";
    for runner in runners() {
        let project = Project::new();
        pipeline(&project, "host", hostile, &outputs(&["o/*", "o/root/etc/*", "../x"]));
        let refused = run(&project, runner, &[]).expect(2);
        assert!(refused.stderr.contains("must be a pattern without `..`"), "{}", refused.stderr);
        pipeline(&project, "host", hostile, &outputs(&["o", "o/root/etc/*"]));
        let ended = run(&project, runner, &["--format", "json"]).expect(0);
        let out = project.dir.join(".hm/out/ci/test");
        let found = tree(&out);
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["o/fine", "o/new\nline"], "{runner}: {}", ended.stderr);
        assert!(ended.stderr.contains("o/huge\" is left out"), "{}", ended.stderr);
        assert!(ended.stderr.contains("its name is too long"), "{}", ended.stderr);
    }
}

#[test]
fn a_checkout_that_leads_elsewhere_or_cannot_be_written_costs_only_the_outputs() {
    let project = Project::new();
    pipeline(&project, "host", "echo x > x", &outputs(&["x"]));
    let outside = project.store.with_file_name("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, project.dir.join(".hm/out")).unwrap();
    let ended = run(&project, "process", &["--format", "human"]).expect(0);
    assert!(ended.stderr.contains("failed to copy the step's outputs to"), "{}", ended.stderr);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_directory_with_nothing_but_outputs_is_no_project() {
    let project = Project::with_steps(&[("a", "true", None)]);
    fs::create_dir_all(project.dir.join(".git")).unwrap();
    let sub = project.dir.join("sub");
    fs::create_dir_all(sub.join(".hm/out/ci")).unwrap();
    let ended = Ended::of(project.hm(&["pipelines"]).current_dir(&sub)).expect(0);
    assert!(ended.stdout.contains("ci"), "{}", ended.stdout);
}

#[test]
fn a_cached_step_has_its_outputs_and_new_patterns_run_nothing_again() {
    if !has_busybox() {
        return;
    }
    let project = Project::new();
    let image_dir = project.dir.with_file_name("image");
    Image::shell().write_oci(&image_dir, "latest");
    let image = format!("oci:{}", image_dir.display());
    let cached = |patterns: &[&str]| {
        let mut more = outputs(patterns);
        more["cache"] = json!({ "policy": "forever", "key": "0123" });
        pipeline(&project, &image, "echo one > one; echo two > /two", &more);
        Ended::of(&mut project.hm(&["run", "--trust", "--format", "json"]))
    };
    let ended = cached(&["one"]);
    if !usable("runner sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    assert_eq!(step_end(&ended.expect(0))["status"], "passed");
    fs::remove_dir_all(project.dir.join(".hm/out")).unwrap();
    let out = project.dir.join(".hm/out/ci/test");
    for (patterns, names) in [(&["one"][..], &["one"][..]), (&["/two", "one"], &["one", "two"])] {
        let end = step_end(&cached(patterns).expect(0));
        assert_eq!((&end["status"], end["artifacts"].as_array().unwrap().len()), (&"cache_hit".into(), names.len()));
        assert_eq!(tree(&out).iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
    }
}
