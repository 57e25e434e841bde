//! Files and processes that remain of machines, however a run ended: only the files of failed steps.

use std::{fs, path::Path};

use serde_json::json;

use crate::support::{
    output_order::{FAILS_LATE, out_of_order},
    project::{Ended, Project, eventually, shell},
    qemu::Bench,
};

/// Returns a project whose only step runs in a machine, with the templates of other tests.
pub(super) fn project(bench: &Bench, cmd: &str) -> Project {
    project_with(bench.templates(), cmd)
}

fn project_with(templates: &Path, cmd: &str) -> Project {
    let project = Project::new();
    let ir = json!({
        "version": "0",
        "graph": {
            "nodes": [{ "step": { "key": "step", "cmd": cmd, "image": "host", "runner": "vm" }, "env": {} }],
            "node_holes": [], "edge_property": "directed", "edges": [],
        },
    });
    project.file(".hm/ci.json", &ir.to_string());
    project.file(".hm/hm.toml", "[vm]\nmemory = '512m'\ncpus = 2\n");
    let templates = templates.display();
    project.file("config/hm/hm.toml", &format!("[vm]\ntemplates = '{templates}'\nmemory = '9g'\n"));
    project
}

pub(super) fn run(project: &Project) -> std::process::Command {
    let mut hm = project.hm(&["run", "--format", "human"]);
    hm.env("XDG_CONFIG_HOME", project.dir.join("config"));
    hm
}

#[test]
fn output_on_two_streams_keeps_its_order() {
    let Some(bench) = Bench::new() else { return };
    let runs = 5;
    let project = project(&bench, ":");
    let node = |number: usize| {
        let key = format!("s{number}");
        json!({ "step": { "key": key, "cmd": FAILS_LATE, "image": "host", "runner": "vm" }, "env": {} })
    };
    let nodes: Vec<_> = (0..runs).map(node).collect();
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": [] });
    project.file(".hm/ci.json", &json!({ "version": "0", "graph": graph }).to_string());
    let ended = Ended::of(run(&project).args(["-j", "2"])).expect(0);
    assert_eq!(out_of_order(&ended.stdout, runs), 0, "{}", ended.stdout);
}

/// Starts a run, and waits for its step to print `up`.
fn start(project: &Project) -> std::process::Child {
    let log = project.dir.with_file_name("log");
    let file = std::fs::File::create(&log).unwrap();
    let hm = run(project).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    eventually("the step to be up", || std::fs::read_to_string(&log).unwrap().contains("| up\n"));
    hm
}

/// Counts the machines that run over files of the project's store, which is QEMU's working directory.
fn machines(project: &Project) -> usize {
    let store = project.store.canonicalize().unwrap();
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let of = |pid: u32, what: &str| fs::read_link(format!("/proc/{pid}/{what}")).unwrap_or_default();
    pids.filter(|pid| of(*pid, "cwd").starts_with(&store) && of(*pid, "exe").to_string_lossy().contains("qemu-system"))
        .count()
}

#[test]
fn a_hanging_step_ends_with_its_machine_at_its_time_limit() {
    let Some(bench) = Bench::new() else { return };
    let project = project(&bench, "trap '' TERM; echo half > report; echo up; while :; do sleep 1; done");
    let ended = Ended::of(run(&project).args(["--timeout", "20s"])).expect(124);
    let said = ended.stdout + &ended.stderr;
    assert!(said.contains("| up") && said.contains("timed out"), "{said}");
    assert_eq!(machines(&project), 0);
    assert_eq!(shell(&project, &["step"], "cat report").expect(0).stdout, "half\n");
}

#[test]
fn a_failed_steps_files_are_kept() {
    let Some(bench) = Bench::new() else { return };
    let tools = tempfile::tempdir().unwrap();
    let tool = tools.path().join("tool");
    fs::write(&tool, "of the machine\n").unwrap();
    let cmd = format!("mkdir -m 700 sub; cat {} > sub/report; rm source.txt; exit 3", tool.display());
    let project = project(&bench, &cmd);
    project.file("source.txt", "source\n");
    Ended::of(run(&project).arg("--host-dir").arg(tools.path())).expect(1);
    assert_eq!(machines(&project), 0);
    let script = format!("pwd; ls; cat sub/report; stat -c %a sub; cat {}", tool.display());
    let expected = "/workspace\nconfig\nsub\nof the machine\n700\nof the machine\n";
    assert_eq!(shell(&project, &["step"], &script).expect(0).stdout, expected);
}

#[test]
fn machines_end_with_a_killed_run() {
    let Some(bench) = Bench::new() else { return };
    let project = project(&bench, "echo up; sleep 1000");
    let mut hm = start(&project);
    assert_eq!(machines(&project), 1);
    hm.kill().unwrap();
    hm.wait().unwrap();
    eventually("the machine to end", || machines(&project) == 0);
}

#[test]
fn an_interrupted_step_can_end_by_itself() {
    let Some(bench) = Bench::new() else { return };
    let project = project(&bench, "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.1; done");
    let mut hm = start(&project);
    let pid = rustix::process::Pid::from_child(&hm);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    hm.wait().unwrap();
    let log = std::fs::read_to_string(project.dir.with_file_name("log")).unwrap();
    assert!(log.contains("| asked"), "{log}");
    assert_eq!(machines(&project), 0);
}

#[test]
fn a_boot_that_is_interrupted_leaves_no_template() {
    let Some(_) = Bench::new() else { return };
    let templates = tempfile::tempdir().unwrap();
    let project = project_with(templates.path(), "true");
    let made =
        || fs::read_dir(templates.path()).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count();
    let mut hm = run(&project).spawn().unwrap();
    eventually("a machine to boot", || made() > 0);
    rustix::process::kill_process(rustix::process::Pid::from_child(&hm), rustix::process::Signal::INT).unwrap();
    hm.wait().unwrap();
    assert_eq!((made(), machines(&project)), (0, 0));
}
