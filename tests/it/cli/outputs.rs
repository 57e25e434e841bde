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
    users::is_root,
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

/// Returns the runners that this machine has, of those that have outputs and the machine's programs.
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
fn reports_for_ci_services_name_failed_tests_and_outputs() {
    let project = Project::new();
    let hostile =
        r###"<testsuite><testcase name="a&lt;b>"><failure message="##[group]x | `y`"/></testcase></testsuite>"###;
    pipeline(&project, "host", &format!("echo '{hostile}' > junit.xml; exit 1"), &outputs(&["*.xml"]));
    let summary = project.dir.with_file_name("summary.md");
    let mut hm = project.hm(&["run", "--runner", "process"]);
    let ended =
        Ended::of(hm.env("GITHUB_ACTIONS", "true").env("GITHUB_STEP_SUMMARY", &summary).env("NO_COLOR", "1")).expect(1);
    assert!(ended.stdout.contains("test: 1 test, 1 failed, 0 skipped"), "{}", ended.stdout);
    let summary = fs::read_to_string(summary).unwrap();
    let expected = "<pre>test: 1 test, 1 failed, 0 skipped\n  a&lt;b&gt;: ##&#91;group]x | &#96;y&#96;\n\
                    test: 1 output in .hm/out/ci/test</pre>";
    assert!(summary.contains(expected), "{summary}");
    Ended::of(&mut project.hm(&["report", "--junit", "report.xml"])).expect(0);
    let report = fs::read_to_string(project.dir.join("report.xml")).unwrap();
    assert!(
        report.contains("<system-out>[[ATTACHMENT|.hm/out/ci/test/junit.xml]]\n</system-out></testcase>"),
        "{report}"
    );
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
        assert!(ended.stderr.contains("o/huge\" is left out: it cannot be read"), "{}", ended.stderr);
        assert!(ended.stderr.contains("its name is too long"), "{}", ended.stderr);
    }
}

#[test]
fn files_of_git_stay_in_the_step() {
    for runner in runners() {
        let project = Project::new();
        let cmd = "mkdir -p d/.git b/objects b/refs && echo '[core] fsmonitor = x' > d/.git/config && echo x > d/HEAD && \
                   echo x > b/objects/x && echo kept > d/kept";
        pipeline(&project, "host", cmd, &outputs(&["d", "b"]));
        let ended = run(&project, runner, &["--format", "json"]).expect(0);
        let found = tree(&project.dir.join(".hm/out/ci/test"));
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["b/objects/x", "d/kept"], "{runner}");
        assert!(ended.stderr.contains("git would take it for"), "{}", ended.stderr);
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
fn a_source_that_cannot_be_written_costs_only_the_outputs() {
    if is_root() {
        // Nothing is read-only for root. `sandbox::rootless` runs this as an ordinary user.
        return;
    }
    let project = Project::new();
    pipeline(&project, "host", "echo x > x", &outputs(&["x"]));
    let hm_dir = project.dir.join(".hm");
    fs::set_permissions(&hm_dir, fs::Permissions::from_mode(0o555)).unwrap();
    let ended = run(&project, "process", &["--format", "human"]);
    fs::set_permissions(&hm_dir, fs::Permissions::from_mode(0o755)).unwrap();
    let ended = ended.expect(0);
    assert!(ended.stderr.contains("failed to copy the step's outputs to"), "{}", ended.stderr);
    assert!(!hm_dir.join("out").exists());
}

#[test]
fn outputs_of_the_last_run_are_gone_although_their_steps_do_not_run() {
    let project = Project::new();
    let out = project.dir.join(".hm/out/ci");
    let two = |first: &str| {
        let step = |key: &str, cmd: &str| json!({ "step": { "key": key, "cmd": cmd, "runner_args": { "outputs": ["x"] } }, "env": {} });
        let graph = json!({
            "nodes": [step("first", first), step("second", "echo x > x")], "node_holes": [],
            "edge_property": "directed", "edges": [[0, 1, "depends_on"]],
        });
        project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
        run(&project, "process", &["--format", "human"])
    };
    two("echo x > x").expect(0);
    assert_eq!(tree(&out).len(), 2);
    fs::create_dir(out.join("renamed")).unwrap();
    two("false").expect(1);
    assert_eq!(fs::read_dir(&out).unwrap().map(|it| it.unwrap().file_name()).collect::<Vec<_>>(), ["first"]);
    assert!(tree(&out).is_empty());
}

#[test]
fn outputs_in_cache_directories_are_copied_and_the_content_stays() {
    let runners = runners();
    if !runners.contains(&"sandbox") {
        return;
    }
    let project = Project::new();
    let args = json!({ "runner_args": { "outputs": ["target/*.xml"], "caches": { "t": "/workspace/target" } } });
    for (expected, more) in [("1", ""), ("12", " || true")] {
        let cmd = format!("last=$(cat target/a.xml); echo $last$(({} + 1)) > target/a.xml{more}", expected.len() - 1);
        pipeline(&project, "host", &cmd, &args);
        run(&project, "sandbox", &[]).expect(0);
        let found = tree(&project.dir.join(".hm/out/ci/test"));
        assert_eq!(found, [("target/a.xml".to_owned(), format!("{expected}\n"))]);
    }
}

#[test]
fn outputs_change_no_key_of_the_next_run() {
    if !runners().contains(&"sandbox") {
        return;
    }
    let project = Project::new();
    project.file("sub/source", "");
    for path in ["**", ".hm/**"] {
        let mut more = outputs(&["out-*"]);
        more["cache"] = json!({ "policy": "on_change", "key": "0123", "paths": [path] });
        pipeline(&project, "host", "date +%N > out-1", &more);
        run(&project, "sandbox", &[]).expect(0);
        let ended = run(&project, "sandbox", &["--format", "json"]).expect(0);
        assert_eq!(step_end(&ended)["status"], "cache_hit", "{path}: {}", ended.stdout);
        assert_eq!(tree(&project.dir.join(".hm/out/ci/test")).len(), 1);
        // Those of a run in a directory below are not part of the source, either.
        project.file("sub/.hm/out/ci/x/y", "");
        let ended = run(&project, "sandbox", &["--format", "json"]).expect(0);
        assert_eq!(step_end(&ended)["status"], "cache_hit", "{path}: {}", ended.stdout);
        fs::remove_dir_all(project.dir.join("sub/.hm")).unwrap();
    }
}

#[test]
fn what_a_runner_cannot_copy_is_refused_and_a_general_table_is_not() {
    let project = Project::new();
    pipeline(&project, "host", "true", &outputs(&["x"]));
    let refused = run(&project, "cloud", &["--image", "host=x", "--remote", "grpc://127.0.0.1:1"]).expect(2);
    assert!(refused.stderr.contains("cannot copy files of its steps"), "{}", refused.stderr);
    // One table for all steps gives outputs to those that can have them.
    pipeline(&project, "host", "echo x > x", &json!({}));
    project.file(".hm/hm.toml", "[step.\"t*\"]\noutputs = [\"x\"]\n");
    run(&project, "process", &[]).expect(0);
    assert_eq!(tree(&project.dir.join(".hm/out/ci/test")), [("x".to_owned(), "x\n".to_owned())]);
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
