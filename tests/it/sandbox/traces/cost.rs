//! What tracing costs those who do not ask for it: nothing. And where it is impossible, that is said at once.

use std::{fs, process::Command};

use serde_json::json;

use super::built;
use crate::support::{
    backends::usable,
    programs::hm,
    project::{Ended, Project},
};

const STEPS: usize = 3;

/// Returns a project with a chain of steps.
fn project() -> Project {
    let project = Project::new();
    let step = |at: usize| json!({ "step": { "key": format!("s{at}"), "cmd": format!("cat F # {at}"), "runner_args": { "network": "none" } }, "env": {} });
    let nodes: Vec<_> = (0..STEPS).map(step).collect();
    let edges: Vec<_> = (1..STEPS).map(|at| json!([at - 1, at, "builds_in"])).collect();
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": edges });
    project.file(".hm/ci.json", &json!({ "version": "0", "default_image": "host", "graph": graph }).to_string());
    project.file("F", "content");
    project
}

/// Returns the system calls of a run that matter here, one a line, or `None` if they cannot be seen. `shadow`
/// is the value of HM_CACHE_SHADOW.
pub(super) fn calls(project: &Project, args: &[&str], shadow: &str) -> Option<Vec<String>> {
    let log = project.store.with_extension("calls");
    let run = project.hm(&[&["run", "--format", "human"][..], args].concat());
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "trace=seccomp,process_vm_readv,memfd_create,clone,clone3", "-o"]);
    strace.arg(&log).arg(run.get_program()).args(run.get_args());
    strace.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("HM_CACHE_SHADOW", shadow);
    if let Some(dir) = run.get_current_dir() {
        strace.current_dir(dir);
    }
    let probe = Command::new("strace").args(["-f", "-qq", "-o", "/dev/null", "true"]).output();
    if !usable("strace", probe.is_ok_and(|probe| probe.status.success()), "install it, and allow ptrace") {
        return None;
    }
    let output = strace.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(fs::read_to_string(&log).unwrap().lines().map(str::to_owned).collect())
}

pub(super) fn count(calls: &[String], part: &str) -> usize {
    calls.iter().filter(|call| call.contains(part)).count()
}

#[test]
fn an_untraced_step_makes_none_of_the_tracers_calls() {
    let project = project();
    let Some(plain) = calls(&project, &[], "") else { return };
    let Some(traced) = calls(&project, &["--check-inputs"], "") else { return };
    let Some(shadow) = calls(&project, &[], "1") else { return };
    assert_eq!(count(&plain, "hm-answers") + count(&traced, "hm-answers"), 0, "that is for shadow mode");
    assert!(count(&shadow, "hm-answers") >= STEPS, "{shadow:#?}");
    let Some(off) = calls(&project, &["--cache", "off"], "") else { return };
    let Some(auto) = calls(&project, &["--cache", "auto"], "") else { return };
    assert!(count(&auto, "hm-answers") >= STEPS && count(&auto, "NEW_LISTENER") >= STEPS, "{auto:#?}");
    for part in ["NEW_LISTENER", "process_vm_readv(", "hm-trace", "hm-answers"] {
        assert_eq!(count(&off, part), 0, "{part}: {off:#?}");
    }
    for part in ["NEW_LISTENER", "process_vm_readv(", "hm-trace"] {
        assert_eq!(count(&plain, part), 0, "{part}: {plain:#?}");
        assert!(count(&traced, part) >= STEPS, "{part}: {traced:#?}");
    }
    // One filter more for each step, and one for the check.
    let filters = |calls: &[String]| count(calls, "seccomp(SECCOMP_SET_MODE_FILTER");
    assert_eq!(filters(&traced), filters(&plain) + STEPS + 1, "{traced:#?}");
    // The command starts without a copy of pid 1.
    let copies = |calls: &[String]| count(calls, "CLONE_VFORK");
    assert_eq!(copies(&plain), copies(&traced) + STEPS, "{plain:#?}");
}

#[test]
fn where_steps_cannot_be_traced_a_run_that_asks_for_it_says_so_and_runs_nothing() {
    let Some(holes) = built("holes") else { return };
    let project = project();
    let under_listener = |args: &[&str]| {
        let plain = project.hm(args);
        let mut run = Command::new(holes);
        run.arg("under_listener").arg(hm()).args(plain.get_args());
        run.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(dir) = plain.get_current_dir() {
            run.current_dir(dir);
        }
        Ended::of(&mut run)
    };
    let ended = under_listener(&["run", "--format", "human"]);
    if !usable("runner sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    let asked = under_listener(&["run", "--check-inputs", "--format", "human"]).expect(3);
    assert!(asked.stderr.contains("another seccomp listener"), "{}", asked.stderr);
    assert!(asked.stderr.contains("run without `--check-inputs`"), "{}", asked.stderr);
    assert!(!asked.stdout.contains("s0"), "{}", asked.stdout);
}
