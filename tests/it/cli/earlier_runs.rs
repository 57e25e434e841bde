//! `hm logs`, `hm why` and `hm cache export`: the results of earlier runs.

use serde_json::{Value, json};

use crate::support::{
    backends::usable,
    images::{Image, has_busybox},
    project::{Ended, Project},
    terminal::Terminal,
};

/// Runs a pipeline of one cached step with this command and variable.
fn cached(project: &Project, command: &str, value: &str) {
    let cache = json!({ "policy": "forever", "key": "0123" });
    let step = json!({ "key": "build", "cmd": command, "cache": cache });
    let graph = json!({
        "nodes": [{ "step": step, "env": { "TOKEN_NAME": value } }],
        "node_holes": [], "edge_property": "directed", "edges": [],
    });
    let image = format!("oci:{}", project.dir.with_file_name("image").display());
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": image, "graph": graph }).to_string());
}

/// Creates a project whose steps boot from an image with a shell. Returns `None` if this machine has no
/// sandbox or no busybox.
fn project(command: &str) -> Option<Project> {
    if !has_busybox() {
        return None;
    }
    let project = Project::new();
    Image::shell().write_oci(&project.dir.with_file_name("image"), "latest");
    cached(&project, command, "one");
    let ended = run(&project);
    usable("runner sandbox", ended.code != Some(3), &ended.stderr).then_some(project)
}

fn run(project: &Project) -> Ended {
    // The image is outside the project, so that the run needs `--trust`.
    Ended::of(&mut project.hm(&["run", "--trust", "--format", "human"]))
}

fn why(project: &Project) -> (String, Value) {
    let text = Ended::of(&mut project.hm(&["why", "build"])).expect(0).stdout;
    let json = Ended::of(&mut project.hm(&["why", "build", "--format", "json"])).expect(0).stdout;
    (text, serde_json::from_str(&json).unwrap())
}

#[test]
fn the_log_of_a_cached_step_is_shown_byte_for_byte_and_escaped_on_a_terminal() {
    let Some(project) = project(r"printf '\033[31mred\033[0m \033[2Jend\n'") else { return };
    let log = "\x1b[31mred\x1b[0m \x1b[2Jend\n";
    let logs = || Ended::of(&mut project.hm(&["logs", "build"])).expect(0).stdout;
    let first = logs();
    // The messages about the image come before it.
    assert!(first.ends_with(log), "{first:?}");
    assert!(run(&project).expect(0).stdout.contains("cached"));
    assert_eq!(logs(), first);
    let times = Ended::of(&mut project.hm(&["logs", "-t", "build"])).expect(2).stderr;
    assert!(times.contains("the output of a cached step has no times") && times.contains("--no-cache"), "{times}");
    let mut terminal = Terminal::open(&project, &["logs", "build"]);
    terminal.expect("\x1b[31mred\x1b[0m end\x1b[0m\r\n");
    assert!(terminal.hm.wait().unwrap().success());
    let listed = Ended::of(&mut project.hm(&["logs"])).expect(0).stdout;
    assert!(listed.starts_with("run ") && listed.contains("build"), "{listed}");
    let unknown = Ended::of(&mut project.hm(&["logs", "biuld"])).expect(2).stderr;
    assert!(unknown.contains("build"), "{unknown}");
}

#[test]
fn why_says_what_a_step_lacks_to_be_cached() {
    let project = Project::new();
    cached(&project, "true", "one");
    let ir = std::fs::read_to_string(project.dir.join(".hm/ci.json")).unwrap();
    let mut ir: Value = serde_json::from_str(&ir).unwrap();
    ir["default_image"] = "host".into();
    project.file(".hm/ci.json", &ir.to_string());
    project.run(&[]).expect(0);
    assert_eq!(why(&project).0, "build: not cached: its runner, `process`, creates no snapshots that can be cached\n");
    ir["graph"]["nodes"][0]["step"]["cache"] = Value::Null;
    project.file(".hm/ci.json", &ir.to_string());
    let ended = Ended::of(&mut project.hm(&["run", "--runner", "sandbox"]));
    if usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        ended.expect(0);
        assert_eq!(why(&project).0, "build: not cached: it has no cache policy with a key\n");
    }
}

#[test]
fn why_names_what_changed_and_never_a_value() {
    let Some(project) = project("echo one > made") else { return };
    assert!(why(&project).0.contains("no earlier run"), "{}", why(&project).0);
    run(&project).expect(0);
    let (text, json) = why(&project);
    assert!(text.contains("cache hit: created by run") && json["verdict"]["hit"].is_object(), "{text} {json}");

    cached(&project, "echo two > made", "two-secret");
    run(&project).expect(0);
    let (text, json) = why(&project);
    assert!(
        text.contains("its command changed") && text.contains("the value of variable TOKEN_NAME changed"),
        "{text}"
    );
    for told in [text, json.to_string()] {
        assert!(!told.contains("two-secret") && !told.contains("echo two"), "{told}");
    }

    Ended::of(&mut project.hm(&["cache", "clean"])).expect(0);
    run(&project).expect(0);
    let (text, _) = why(&project);
    assert!(text.contains("removed by garbage collection") && text.contains("requested by the user"), "{text}");
}

#[test]
fn a_cached_step_is_exported_and_boots_again() {
    let Some(project) = project("echo exported > /made") else { return };
    let digest = Ended::of(&mut project.hm(&["cache", "export", "build", "oci:out"])).expect(0).stdout;
    assert!(digest.starts_with("sha256:"), "{digest}");
    let image = format!(
        "--image=oci:{}=oci:{}",
        project.dir.with_file_name("image").display(),
        project.dir.join("out").display()
    );
    cached(&project, "cat /made", "one");
    let ended = Ended::of(&mut project.hm(&["run", "--format", "human", &image])).expect(0);
    assert!(ended.stdout.contains("| exported\n"), "{}", ended.stdout);
    let wrong = Ended::of(&mut project.hm(&["cache", "export", "build", "out"])).expect(2).stderr;
    assert!(wrong.contains("oci:"), "{wrong}");
}
