//! `hm-step` in bubblewrap, as `buildbox-run` starts it: the input root is `/`, and nothing else is mounted.

use std::path::Path;

use hm_exec::step::{Exit, locate};

use crate::support::{
    backends::usable,
    step::{Action, Ended, everybody, program},
};

const BWRAP: &str = "/usr/bin/bwrap";

/// Runs an action as `buildbox-run-bubblewrap` does, with the arguments of BuildStream 2.8.1.
fn run(action: &Action, id: &str) -> Ended {
    let dir = action.dir().to_str().unwrap();
    let arguments = [
        &["--unshare-pid", "--die-with-parent", "--bind", dir, "/", "--unshare-net", "--unshare-uts"][..],
        &["--hostname", "buildbox", "--unshare-ipc", "--chdir", "/", "--unshare-user", "--uid", id, "--gid", id],
        &["--cap-drop", "ALL", "--proc", "/proc", "--tmpfs", "/tmp", "--dev", "/dev"],
    ];
    action.run_by(BWRAP, &arguments.concat())
}

/// Returns whether bubblewrap and a static `hm-step` are available.
fn is_possible() -> bool {
    let bwrap = Path::new(BWRAP).exists();
    let is_static = locate(Some(&program())).is_ok_and(|program| program.is_static());
    usable("bubblewrap", bwrap, "install bubblewrap")
        && usable("a static hm-step", is_static, "`just hm-step` builds one; HM_STEP names it")
}

#[test]
fn an_ordinary_user_runs_steps_in_buildbox() {
    if !is_possible() {
        return;
    }
    for who in everybody().into_iter().take(1) {
        let mut action = Action::new(who, "cat file; echo more >> file; id -u; mkdir /opt; rm /etc/issue");
        std::fs::write(action.workspace().join("file"), "source\n").unwrap();
        action.input.limits.memory_bytes = Some(1 << 30);
        let ended = run(&action, "1000");
        assert_eq!((ended.code, ended.stdout().as_str()), (Some(0), "source\n0\n"), "{ended:?}");
        let child = action.child(&ended, "ls -d /opt; ls /etc; cat file");
        let ended = run(&child, "1000");
        assert_eq!(ended.stdout(), "/opt\nhosts\nmtab\nowned\nresolv.conf\nsource\nmore\n", "{ended:?}");
    }
}

#[test]
fn limits_count_only_the_steps_processes() {
    if !is_possible() {
        return;
    }
    for who in everybody().into_iter().take(1) {
        let mut action = Action::new(who, "exec /bin/busybox dd if=/dev/zero of=/dev/null bs=300M");
        action.input.limits.memory_bytes = Some(64 << 20);
        let ended = run(&action, "1000");
        assert_eq!((ended.code, ended.exit()), (Some(137), &Exit::OutOfMemory), "{ended:?}");
        // A shell and its child; bubblewrap and hm-step are not counted.
        action.input.command = "sleep 0.2; echo alive".into();
        action.input.limits.memory_bytes = None;
        action.input.limits.pids = Some(2);
        let ended = run(&action, "1000");
        assert_eq!(ended.stdout(), "alive\n", "{ended:?}");
    }
}

#[test]
fn the_error_for_user_0_without_capabilities_names_what_the_worker_must_allow() {
    if !is_possible() {
        return;
    }
    for who in everybody().into_iter().take(1) {
        let action = Action::new(who, "true");
        let ended = run(&action, "0");
        let (message, retry) = ended.failure();
        assert!(message.contains("unixUID=1000") && !retry, "{message}");
    }
}
