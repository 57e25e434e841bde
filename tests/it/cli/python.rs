//! Pipelines in Python, with the package `harmont`.

use std::{os::unix::fs::PermissionsExt, process::Command};

use crate::support::{
    backends::usable,
    project::{Ended, Project, ir},
    python::python_with_harmont,
};

const PIPELINE: &str = r#"
import os
import harmont as hm

print("printed by the file")
os.system("echo printed by a child of it")

@hm.pipeline("ci", name="Everything")
def ci():
    build = hm.sh("echo built | tee out.txt", label="Build", image="debian:bookworm")
    return (build.sh("grep built out.txt", label="Test"), build.sh("wc -c out.txt", label="Count"))

@hm.pipeline("other")
def other():
    return hm.sh("true", label="Nothing", image="debian:bookworm")
"#;

#[test]
fn a_harmont_pipeline_runs_unchanged_on_the_hosts_system() {
    let Some(python) = python_with_harmont() else { return };
    let project = Project::new();
    project.file(".hm/pipelines.py", PIPELINE);
    project.file(".hm/_helper.py", "raise RuntimeError('a helper is not a pipeline')");
    let before = project.listing();
    for runner in ["process", "sandbox"] {
        let args = ["run", "--runner", runner, "--image", "debian:bookworm=host", "--format", "json"];
        let ended = Ended::of(project.hm(&args).env("HM_PYTHON", &python));
        if !usable(&format!("runner {runner}"), ended.code != Some(3), &ended.stderr) {
            continue;
        }
        let ended = ended.expect(0);
        let events = ended.events();
        let passed = events.iter().filter(|event| event["kind"] == "step_end" && event["status"] == "passed").count();
        assert_eq!(passed, 3, "{}", ended.stdout);
        assert!(ended.stderr.contains("printed by the file"), "{}", ended.stderr);
        assert!(ended.stderr.contains("printed by a child of it"), "{}", ended.stderr);
        assert_eq!(project.listing(), before, "no __pycache__, nothing");
    }

    let ended = Ended::of(project.hm(&["ls"]).env("HM_PYTHON", &python)).expect(0);
    assert_eq!(ended.stdout, "ci     .hm/*.py  Everything\nother  .hm/*.py\n");
    let ended = Ended::of(project.hm(&["run", "otter"]).env("HM_PYTHON", &python)).expect(2);
    assert!(ended.stderr.contains("did you mean `other`?"), "{}", ended.stderr);
}

#[test]
fn without_a_substitution_the_refused_image_names_one() {
    let Some(python) = python_with_harmont() else { return };
    let project = Project::new();
    project.file(".hm/pipelines.py", PIPELINE);
    let ended = Ended::of(project.hm(&["run", "--runner", "process"]).env("HM_PYTHON", &python)).expect(2);
    assert!(ended.stderr.contains("--image debian:bookworm=host"), "{}", ended.stderr);
}

#[test]
fn an_error_in_a_file_is_shown_at_its_place() {
    let Some(python) = python_with_harmont() else { return };
    for (text, said) in [
        (
            "def f():\n    return 1 / 0\nf()\n",
            ".hm/broken.py:2: ZeroDivisionError: division by zero\n  - return 1 / 0\n",
        ),
        ("import harmont\n\nx = (1,\n", ".hm/broken.py:3: SyntaxError: '(' was never closed\n  - x = (1,\n"),
        ("import json\njson.loads('{')\n", ".hm/broken.py:2: JSONDecodeError: Expecting property name"),
        ("import harmont as hm\n@hm.pipeline('x')\ndef x():\n    return 5\n", ".hm/broken.py: TypeError: pipeline 'x'"),
        (
            "import os\ntry:\n    os.environ['NONE']\nexcept KeyError as e:\n    raise ValueError('no \\udc80') from e\n",
            ".hm/broken.py:5: ValueError: no ?: 'NONE'\n",
        ),
        ("import nothing\n", ".hm/broken.py:1: ModuleNotFoundError: No module named 'nothing'\n"),
    ] {
        let project = Project::new();
        project.file(".hm/broken.py", text);
        let ended = Ended::of(project.hm(&["run"]).env("HM_PYTHON", &python)).expect(2);
        assert!(ended.stderr.starts_with(&format!("error: {said}")), "{}", ended.stderr);
        assert!(ended.stderr.contains("`hm plan`") && !ended.stderr.contains("frozen importlib"), "{}", ended.stderr);
        assert_eq!(ended.stderr.contains("it runs in a sandbox"), text.contains("nothing"), "{}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
}

#[test]
fn the_source_is_frozen_while_a_pipeline_is_rendered() {
    let Some(python) = python_with_harmont() else { return };
    let project = Project::new();
    project.file(".hm/ci.py", PIPELINE);
    project.file("out.txt", "of the source");
    let args = ["run", "ci", "--image", "debian:bookworm=host", "--format", "json"];
    let run = || Ended::of(project.hm(&args).env("HM_PYTHON", &python).env_remove("HM_TRUST"));
    let first = run();
    if !usable("runner sandbox", first.code != Some(3), &first.stderr) {
        return;
    }
    first.expect(0);
    // From the second run on, the directory is known. What changed is seen, and warnings are printed once.
    let _socket = std::os::unix::net::UnixListener::bind(project.dir.join("socket")).unwrap();
    project.file(".hm/ci.py", &PIPELINE.replace("echo built | tee", "cat added | grep new; echo built | tee"));
    project.file("added", "new");
    let warning = "ignoring a file of the source";
    let second = run().expect(0);
    assert_eq!(second.stderr.matches(warning).count(), 1, "{}", second.stderr);
    // If rendering fails, its error is all that is printed, and the run changes nothing.
    project.file(".hm/ci.py", "raise SystemExit(3)");
    project.file("added", "newer");
    let failed = run().expect(2);
    assert!(failed.stderr.contains("error: failed to render .hm/ci.py"), "{}", failed.stderr);
    assert!(!failed.stderr.contains(warning), "{}", failed.stderr);
    project.file(".hm/ci.py", &PIPELINE.replace("echo built | tee", "grep newer added; echo built | tee"));
    run().expect(0);
}

#[test]
fn two_pipelines_with_one_name_are_refused() {
    let Some(python) = python_with_harmont() else { return };
    let project = Project::with_steps(&[("a", "true", None)]);
    project.file(".hm/pipelines.py", PIPELINE);
    let ended = Ended::of(project.hm(&["pipelines"]).env("HM_PYTHON", &python)).expect(2);
    assert!(ended.stderr.contains("two pipelines are named `ci`"), "{}", ended.stderr);
}

#[test]
fn without_python_the_hint_says_what_to_install() {
    let project = Project::new();
    project.file(".hm/ci.py", PIPELINE);
    let ended = Ended::of(project.hm(&["run"]).env("HM_PYTHON", "/no/such/python")).expect(2);
    assert!(ended.stderr.contains("failed to start `/no/such/python`, which .hm/ci.py needs"), "{}", ended.stderr);
    assert!(ended.stderr.contains("pip install harmont"), "{}", ended.stderr);
}

#[test]
fn without_harmont_the_hint_says_how_to_install_it() {
    let project = Project::new();
    project.file(".hm/ci.py", PIPELINE);
    let top = tempfile::tempdir().unwrap();
    let made = Command::new("/usr/bin/python3").args(["-m", "venv", "--without-pip"]).arg(top.path()).output();
    let made = made.is_ok_and(|output| output.status.success());
    if !usable("python3 -m venv", made, "there is no /usr/bin/python3, or no package python3-venv") {
        return;
    }
    let python = top.path().join("bin/python3");
    let ended = Ended::of(project.hm(&["run"]).env("HM_PYTHON", &python)).expect(2);
    assert!(ended.stderr.contains("does not have the package `harmont`, which .hm/ci.py needs"), "{}", ended.stderr);
    assert!(ended.stderr.contains("-m pip install harmont"), "{}", ended.stderr);
}

#[test]
fn a_python_without_harmont_gets_its_wheel_once() {
    let Some(python) = python_with_harmont() else { return };
    let index = tempfile::tempdir().unwrap();
    let download = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest"];
    let got = Command::new(python).args(download).arg(index.path()).arg("harmont==0.0.9").output();
    if !usable("pip", got.is_ok_and(|output| output.status.success()), "no wheel of harmont can be downloaded") {
        return;
    }
    // A virtual environment with pip, and without harmont.
    let top = tempfile::tempdir().unwrap();
    let mut venv = Command::new("/usr/bin/python3");
    venv.args(["-m", "venv"]).arg(top.path());
    let made = venv.output().is_ok_and(|output| output.status.success());
    if !usable("python3 -m venv", made, "there is no /usr/bin/python3, or no package python3-venv") {
        return;
    }
    let project = Project::new();
    project.file(".hm/ci.py", PIPELINE);
    let at = |args: &[&str], index: &std::path::Path| {
        let mut hm = project.hm(args);
        hm.env("HM_PYTHON", top.path().join("bin/python3")).env_remove("HM_DSL");
        Ended::of(hm.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", index))
    };
    let plan = |index: &std::path::Path| at(&["ls"], index);
    let offline: [&[&str]; 5] = [
        &["ls", "--offline"],
        &["pipelines", "--offline"],
        &["plan", "--offline", "--image", "debian:bookworm=host"],
        &["render", "--offline"],
        &["run", "--offline", "--runner", "process", "--image", "debian:bookworm=host"],
    ];
    for args in offline {
        let ended = at(args, index.path()).expect(2);
        assert!(ended.stderr.contains("--offline forbids it"), "{args:?}: {}", ended.stderr);
    }
    // A file of that name which is not the package.
    let forged = tempfile::tempdir().unwrap();
    let name = "harmont-0.0.9-py3-none-any.whl";
    let mut bytes = std::fs::read(index.path().join(name)).unwrap();
    bytes.extend(*b"x");
    std::fs::write(forged.path().join(name), bytes).unwrap();
    let ended = plan(forged.path()).expect(2);
    assert!(ended.stderr.contains("does not have the package `harmont`"), "{}", ended.stderr);
    assert!(ended.stderr.contains("failed to download"), "{}", ended.stderr);
    let ended = plan(index.path()).expect(0);
    assert!(ended.stdout.starts_with("ci "), "{}", ended.stdout);
    assert!(ended.stderr.starts_with("note: downloaded harmont 0.0.9"), "{}", ended.stderr);
    // The wheel is the first that the store has.
    let open_to_others = |store: &std::path::Path| std::fs::metadata(store).unwrap().permissions().mode() & 0o077;
    assert_eq!(open_to_others(&project.store), 0);
    let mut hm = project.hm(&["run", "ci", "--runner", "process", "--image", "debian:bookworm=host"]);
    hm.env("HM_PYTHON", top.path().join("bin/python3")).env_remove("HM_DSL");
    let ended = Ended::of(hm.env("PIP_NO_INDEX", "1")).expect(0);
    assert!(!ended.stderr.contains("other users"), "{}", ended.stderr);
    let nothing = tempfile::tempdir().unwrap();
    assert!(!plan(nothing.path()).expect(0).stderr.contains("downloaded"), "the store has it");
    let mut hm = project.hm(&["ls"]);
    hm.env("HM_PYTHON", top.path().join("bin/python3")).env_remove("HM_DSL").env("HM_CACHE_DIR", "../relative");
    Ended::of(hm.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", index.path())).expect(0);
    for args in offline {
        at(args, nothing.path()).expect(0);
    }
    let usage = Ended::of(&mut project.hm(&["cache", "du", "--format", "json"])).expect(0);
    let usage: serde_json::Value = serde_json::from_str(&usage.stdout).unwrap();
    let size = std::fs::metadata(project.store.join("dsl").join(name)).unwrap().len();
    assert!(usage["kinds"]["packages"].as_u64().unwrap() >= size, "{usage}");
    // A damaged file is downloaded again.
    std::fs::write(project.store.join("dsl").join(name), "damaged").unwrap();
    assert!(plan(index.path()).expect(0).stderr.contains("downloaded"));
    Ended::of(&mut project.hm(&["cache", "clean"])).expect(0);
    assert!(project.store.join("dsl").join(name).exists());
    Ended::of(&mut project.hm(&["cache", "clean", "--all"])).expect(0);
    assert!(!project.store.join("dsl").exists());
}

#[test]
fn a_json_pipeline_needs_no_python() {
    let project = Project::new();
    project.file(".hm/fast.json", &ir(&[("a", "true", None)]));
    project.file(".hm/ci.py", PIPELINE);
    let mut hm = project.hm(&["run", "--runner", "process", "fast"]);
    Ended::of(hm.env("HM_PYTHON", "/no/such/python")).expect(0);
}
