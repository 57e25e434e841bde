//! Cache mode `auto` where nothing can be traced: on this machine, or on the runners of the steps.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::{
    backends::{usable, usable_program},
    project::{Ended, Project, ir_of},
};

/// A second listener is refused below the one that this program makes before it becomes another program.
const LISTENER: &str = r#"
import ctypes, os, platform, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
allow = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7fff0000))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
if os.geteuid():
    libc.prctl(38, 1, 0, 0, 0)
number = 277 if platform.machine() == "aarch64" else 317
listener = libc.syscall(number, 1, 8, ctypes.byref(Program(1, ctypes.cast(allow, ctypes.c_void_p))))
if listener < 0:
    sys.exit("no listener: " + os.strerror(ctypes.get_errno()))
os.set_inheritable(listener, True)
os.execvp(sys.argv[1], sys.argv[1:])
"#;

/// Returns the same command in a process in which nothing can be traced.
fn untraced(hm: &Command) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", LISTENER]).arg(hm.get_program()).args(hm.get_args()).stdin(Stdio::null());
    if let Some(dir) = hm.get_current_dir() {
        command.current_dir(dir);
    }
    for (name, value) in hm.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Returns a project with a step that has a policy and one that has none, or `None` if nothing can be tried.
fn project() -> Option<Project> {
    let project = Project::new();
    let step = |key: &str, cache| json!({ "step": { "key": key, "cmd": "cat a", "cache": cache, "runner_args": { "network": "none" } }, "env": {} });
    let nodes =
        [step("declared", json!({ "policy": "forever", "key": "k" })), step("other", json!({ "policy": "none" }))];
    project.file(".hm/ci.json", &ir_of(&nodes, &[]));
    project.file("a", "a");
    if !usable_program("python3") {
        return None;
    }
    let refused = Ended::of(&mut untraced(&project.hm(&["run", "--cache", "auto"])));
    let tried = !refused.stderr.contains("no listener") && refused.stderr.contains("another seccomp listener");
    usable("a process that cannot trace", tried, &refused.stderr).then_some(project)
}

const ONLY_HERE: &str = "what steps read cannot be recorded here: this process runs under another seccomp listener";

#[test]
fn the_option_is_refused_where_nothing_can_be_traced() {
    let Some(project) = project() else { return };
    let ended = Ended::of(&mut untraced(&project.hm(&["run", "--cache", "auto"]))).expect(3);
    assert!(ended.stderr.contains(ONLY_HERE), "{}", ended.stderr);
    assert!(ended.stderr.contains("--cache declared"), "{}", ended.stderr);
    assert!(!ended.stdout.contains("step_start"), "{}", ended.stdout);
    // The option also wins over a file that would work.
    project.file(".hm/hm.toml", "[cache]\nmode = 'declared'\n");
    Ended::of(&mut untraced(&project.hm(&["run", "--cache", "auto"]))).expect(3);
    for mode in ["declared", "off"] {
        let ended = Ended::of(&mut untraced(&project.hm(&["run", "--cache", mode]))).expect(0);
        assert!(!ended.stderr.contains("recorded"), "{}", ended.stderr);
    }
}

#[test]
fn a_file_runs_as_declared_where_nothing_can_be_traced_and_says_so_once() {
    let Some(project) = project() else { return };
    let home = tempfile::tempdir().unwrap();
    let hm = |args: &[&str]| {
        let mut hm = project.hm(args);
        hm.env("XDG_CONFIG_HOME", home.path());
        Ended::of(&mut untraced(&hm))
    };
    let auto = "[cache]\nmode = 'auto'\n";
    let of_user = home.path().join("hm/hm.toml");
    for (set_by, place) in [("project", ".hm/hm.toml:2"), ("user", "hm/hm.toml:2")] {
        if set_by == "project" {
            project.file(".hm/hm.toml", auto);
        } else {
            project.file(".hm/hm.toml", "");
            std::fs::create_dir_all(of_user.parent().unwrap()).unwrap();
            std::fs::write(&of_user, auto).unwrap();
        }
        let ended = hm(&["run", "--format", "json-full"]).expect(0);
        assert_eq!(ended.stderr.matches(ONLY_HERE).count(), 1, "{set_by}: {}", ended.stderr);
        assert!(ended.stderr.contains(place) && !ended.stderr.contains("warning"), "{set_by}: {}", ended.stderr);
        // The step with a policy alone is looked up.
        let looked_up = ended
            .events()
            .iter()
            .filter(|it| it["kind"].as_str().is_some_and(|kind| ["step_cache_hit", "step_cache_miss"].contains(&kind)))
            .count();
        assert_eq!(looked_up, 1, "{set_by}: {}", ended.stdout);

        let doctor = hm(&["doctor"]);
        let line = doctor.stdout.lines().find(|line| line.contains("another seccomp listener"));
        let line = line.unwrap_or_else(|| panic!("{doctor:?}"));
        assert!(line.starts_with("warn") && line.contains("traces") && line.contains(place), "{line}");
        // Where it can be traced, nothing is said about it.
        let mut traced = project.hm(&["run", "--format", "json-full"]);
        let ended = Ended::of(traced.env("XDG_CONFIG_HOME", home.path())).expect(0);
        assert!(!ended.stderr.contains("recorded"), "{}", ended.stderr);
    }
}

#[test]
fn steps_of_runners_that_record_nothing_run_and_are_named_once() {
    let project = Project::with_steps(&[("a", "true", None), ("b", "true", None)]);
    let hm = |args: &[&str]| Ended::of(project.hm(&["run", "--runner", "process"]).args(args)).expect(0);
    let note = "with cache mode `auto`, these steps run every time: `a`, `b`; only runner `sandbox` finds";
    assert_eq!(hm(&["--cache", "auto"]).stderr.matches(note).count(), 1);
    assert!(!hm(&[]).stderr.contains(note));
    project.file(".hm/hm.toml", "[cache]\nmode = 'auto'\n");
    assert_eq!(hm(&[]).stderr.matches(note).count(), 1);
    assert!(!hm(&["--cache", "declared"]).stderr.contains(note));
}
