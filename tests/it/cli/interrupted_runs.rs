//! How steps of `hm run` end when `hm`, its terminal or the machine goes away, and the order of the output.

use std::{
    fs,
    io::Read,
    os::fd::OwnedFd,
    process::{Child, Stdio},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::json;

use crate::support::{
    backends::usable,
    output_order::{FAILS_LATE, out_of_order},
    project::{Ended, Project, eventually, ir},
};

const RUNNERS: [&str; 2] = ["sandbox", "process"];

/// Returns whether the runner works on this machine, judged by how a run ended.
fn is_usable(runner: &str, ended: &Ended) -> bool {
    usable(&format!("runner {runner}"), ended.code != Some(3), &ended.stderr)
}

fn log(project: &Project) -> String {
    fs::read_to_string(project.dir.with_file_name("log")).unwrap()
}

/// Starts `hm ARGS` with its output in a log file, and waits until a step is up. Returns `None` if `hm` ended
/// before that.
fn start(project: &Project, program: Option<&str>, args: &[&str]) -> Option<Child> {
    let hm = project.hm(args);
    let mut command = match program {
        None => hm,
        Some(script) => {
            let mut shell = std::process::Command::new("/bin/sh");
            shell.args(["-c", script, "sh"]).arg(hm.get_program()).args(hm.get_args()).current_dir(&project.dir);
            shell.envs(hm.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
            shell
        }
    };
    let file = fs::File::create(project.dir.with_file_name("log")).unwrap();
    let mut child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    let mut ended = false;
    eventually("the step to be up", || {
        ended = child.try_wait().unwrap().is_some();
        ended || log(project).contains("| up\n")
    });
    if ended {
        let code = child.wait().unwrap().code();
        let ended = Ended { code, stdout: String::new(), stderr: log(project) };
        assert!(!is_usable(args[2], &ended), "hm ended early: {ended:?}");
        return None;
    }
    Some(child)
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_step_that_ended_while_hm_was_stopped_ended_in_time() {
    std::thread::scope(|scope| {
        for runner in RUNNERS {
            scope.spawn(move || {
                let step = json!({ "key": "s", "cmd": "echo up; sleep 0.5; echo finished", "timeout_seconds": 3 });
                let ir = json!({
                    "version": "0",
                    "default_image": "host",
                    "graph": {
                        "nodes": [{ "step": step, "env": {} }],
                        "node_holes": [], "edge_property": "directed", "edges": [],
                    },
                });
                let project = Project::new();
                project.file(".hm/ci.json", &ir.to_string());
                let args = ["run", "--runner", runner, "--format", "human", "--timeout", "3s"];
                let Some(mut hm) = start(&project, None, &args) else { return };
                signal(&hm, Signal::STOP);
                std::thread::sleep(Duration::from_millis(4_500));
                signal(&hm, Signal::CONT);
                let code = hm.wait().unwrap().code();
                let log = log(&project);
                assert!(code == Some(0) && log.contains("s | finished\n"), "{runner}: {code:?}: {log}");
            });
        }
    });
}

/// A command that cleans up for a while after a request to end.
const CLEANS_UP: &str =
    "trap 'echo began; sleep 0.5; echo cleanup; exit 1' TERM HUP; echo up; while :; do sleep 0.1; done";

#[test]
fn a_hangup_terminates_steps_and_a_second_one_changes_nothing() {
    for runner in RUNNERS {
        let project = Project::with_steps(&[("s", CLEANS_UP, None)]);
        let Some(mut hm) = start(&project, None, &["run", "--runner", runner, "--format", "human"]) else { continue };
        signal(&hm, Signal::HUP);
        // The shell sends the first SIGHUP, the kernel the second.
        eventually("the step to be asked", || log(&project).contains("| began\n"));
        signal(&hm, Signal::HUP);
        let code = hm.wait().unwrap().code();
        let log = log(&project);
        assert_eq!(code, Some(130), "{runner}: {log}");
        assert!(log.contains("s | cleanup\n") && log.contains("\n── cancelled: 1 cancelled · "), "{runner}: {log}");
        assert_eq!(log.matches("| began\n").count(), 1, "{runner}: {log}");
        if runner == "sandbox" {
            Ended::of(&mut project.hm(&["shell", "s", "--", "true"])).expect(0);
        }
    }
}

#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    for runner in RUNNERS {
        let project = Project::new();
        let step = format!("echo up; while ! test -e {}/go; do sleep 0.05; done; echo done", project.dir.display());
        project.file(".hm/ci.json", &ir(&[("s", &step, None)]));
        let host_dir = project.dir.display().to_string();
        let mut args = vec!["run", "--runner", runner, "--format", "human"];
        if runner == "sandbox" {
            args.extend(["--host-dir", &host_dir]);
        }
        let ignoring = "trap '' HUP; exec \"$@\"";
        let Some(mut hm) = start(&project, Some(ignoring), &args) else { continue };
        signal(&hm, Signal::HUP);
        project.file("go", "");
        let code = hm.wait().unwrap().code();
        assert!(code == Some(0) && log(&project).contains("s | done\n"), "{runner}: {code:?}: {}", log(&project));
    }
}

/// Opens a new pseudo-terminal. Returns its master and its slave.
fn terminal() -> (fs::File, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(ptsname(&master, Vec::new()).unwrap(), flags, Mode::empty()).unwrap();
    (master.into(), slave)
}

#[test]
fn steps_get_their_grace_period_after_the_terminal_is_gone() {
    for format in ["human", "progress", "json"] {
        let project = Project::with_steps(&[("s", CLEANS_UP, None)]);
        let (mut master, slave) = terminal();
        let mut hm = project.hm(&["run", "--runner", "process", "--format", format, "--logs"]);
        hm.env("TERM", "vt100").stdin(slave.try_clone().unwrap());
        let mut hm = hm.stdout(slave.try_clone().unwrap()).stderr(slave).spawn().unwrap();
        let mut shown = String::new();
        while !shown.contains("| up") && !shown.contains(r#""line":"up""#) {
            let mut buffer = [0; 4096];
            let length = master.read(&mut buffer).unwrap();
            shown.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        drop(master);
        signal(&hm, Signal::HUP);
        assert_eq!(hm.wait().unwrap().code(), Some(130), "{format}: {shown}");
        let logs = Ended::of(&mut project.hm(&["logs", "s"])).expect(0);
        // Some shells also report the killed `sleep`.
        assert!(logs.stdout.contains("\nbegan\n") && logs.stdout.ends_with("\ncleanup\n"), "{format}: {logs:?}");
    }
}

#[test]
fn output_on_two_streams_keeps_its_order() {
    let runs = std::env::var("HM_ORDER_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(50);
    let keys: Vec<String> = (0..runs).map(|number| format!("s{number}")).collect();
    let steps: Vec<_> = keys.iter().map(|key| (key.as_str(), FAILS_LATE, None)).collect();
    for runner in RUNNERS {
        let project = Project::with_steps(&steps);
        let ended = Ended::of(&mut project.hm(&["run", "--runner", runner, "--format", "human", "-j", "16"]));
        if is_usable(runner, &ended) {
            let ended = ended.expect(0);
            let wrong = out_of_order(&ended.stdout, runs);
            println!("{runner}: {wrong} of {runs} runs were out of order");
            assert_eq!(wrong, 0, "of {runs} runs on {runner}");
        }
    }
}
