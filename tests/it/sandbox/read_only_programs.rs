//! Read-only programs: what they can reach, and how they end.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    time::Duration,
};

use hm_exec::runner::sandbox::{ConfinedCommand, ConfinedEnd, ConfinedError, ConfinedLimits, OutputStream};

use crate::support::{
    backends::skip,
    processes::{eventually, is_running, marker},
    programs::hm,
    users::is_root,
};

const LIMITS: ConfinedLimits = ConfinedLimits {
    time: Duration::from_secs(60),
    memory_bytes: 256 << 20,
    processes: 64,
    stdout_bytes: 1 << 20,
    stderr_bytes: 1 << 20,
};

fn sh(dir: &Path, script: &str) -> ConfinedCommand {
    ConfinedCommand {
        argv: ["/bin/sh", "-c", script].map(Into::into).into(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        dir: dir.into(),
        show: Vec::new(),
        hide: Vec::new(),
        limits: LIMITS,
        helper: Some(hm()),
    }
}

/// Runs the command. Returns how it ended, and both streams. Prints a note and returns `None` if this machine
/// has no sandbox.
fn run(command: &ConfinedCommand) -> Option<(ConfinedEnd, String, String)> {
    let mut stderr = Vec::new();
    match command.run(&mut |bytes| stderr.extend_from_slice(bytes)) {
        Ok(output) => {
            let text = |bytes| String::from_utf8(bytes).unwrap();
            Some((output.end, text(output.stdout), text(stderr)))
        }
        Err(ConfinedError::NoSandbox { reason, .. }) => {
            skip(&reason.to_string());
            None
        }
        Err(error) => panic!("{:#}", described(&error)),
    }
}

fn described(error: &ConfinedError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

fn project() -> (tempfile::TempDir, PathBuf) {
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().canonicalize().unwrap().join("project");
    fs::create_dir(&dir).unwrap();
    (top, dir)
}

#[test]
fn output_and_exit_code_are_those_of_the_program() {
    let (_top, dir) = project();
    fs::write(dir.join("file"), "content").unwrap();
    let Some(ended) = run(&sh(&dir, "cat file; echo ' and more'; echo oops >&2; exit 7")) else { return };
    assert_eq!(ended, (ConfinedEnd::Exited { code: 7 }, "content and more\n".into(), "oops\n".into()));
    let killed = run(&sh(&dir, "kill -9 $$")).unwrap();
    assert_eq!(killed.0, ConfinedEnd::Exited { code: 128 + 9 });
}

#[test]
fn the_error_names_a_program_that_cannot_be_run() {
    let (_top, dir) = project();
    let mut command = sh(&dir, "");
    command.argv[0] = "/no/such/program".into();
    match command.run(&mut |_| {}) {
        Err(ConfinedError::Program(error)) => assert!(error.to_string().contains("/no/such/program"), "{error}"),
        Err(ConfinedError::NoSandbox { reason, .. }) => skip(&reason.to_string()),
        other => panic!("{other:?}"),
    }
    command.dir = "/".into();
    assert!(matches!(command.run(&mut |_| {}), Err(ConfinedError::Path { .. })));
}

#[test]
fn it_reads_only_what_is_shown_and_writes_only_to_memory() {
    let (top, dir) = project();
    for (name, mode) in [("project/own", 0o600), ("project/hidden", 0o644), ("other", 0o644), ("shown", 0o644)] {
        fs::write(top.path().join(name), "secret").unwrap();
        fs::set_permissions(top.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let script = r#"
        cat own ../shown; cat hidden; echo
        for file in ../other /etc/shadow /etc/hostname /etc/ssh /home/* /root /var/* /opt/* /srv /proc/sys/kernel/core_pattern; do
            case $file in /opt/*|/home/linuxbrew) continue;; esac
            [ -d "$file" ] && ls -A "$file" 2>/dev/null
            [ -f "$file" ] && [ "$file" != /proc/sys/kernel/core_pattern ] && cat "$file"
        done
        for place in . .. /usr/bin /usr/lib /proc/sys/kernel/hostname /dev/null/x; do
            (: > "$place/new") 2>/dev/null && case $place in ..) ;; *) echo "wrote to $place";; esac
        done
        chmod 777 own 2>/dev/null && echo "changed a mode"
        touch own 2>/dev/null && echo "changed a time"
        rm -f own 2>/dev/null; [ -f own ] || echo "removed"
        (echo core > /proc/sys/kernel/core_pattern) 2>/dev/null && echo "changed the kernel"
        mknod /tmp/node b 8 0 2>/dev/null && head -c1 /tmp/node 2>/dev/null && echo "a device"
        mount -t tmpfs none /tmp 2>/dev/null && echo "mounted"
        unshare -U true 2>/dev/null && echo "unshared"
        echo kept > /tmp/file && cat /tmp/file
        head -c 100000000 /dev/zero > /tmp/large 2>/dev/null; [ $(stat -c %s /tmp/large) -le 67108864 ] && echo bounded
        ls /proc | grep -c '^[0-9]'
    "#;
    let mut command = sh(&dir, script);
    command.show = vec![top.path().join("shown"), top.path().join("not there")];
    command.hide = vec![dir.join("hidden")];
    let Some((end, stdout, stderr)) = run(&command) else { return };
    assert!(matches!(end, ConfinedEnd::Exited { .. }), "{end:?}");
    let mut lines = stdout.lines();
    assert_eq!(lines.next(), Some("secretsecret"), "{stdout}{stderr}");
    assert_eq!(lines.next(), Some("kept"), "{stdout}{stderr}");
    assert_eq!(lines.next(), Some("bounded"), "{stdout}{stderr}");
    let processes: u32 = lines.next().unwrap().parse().unwrap();
    assert!(processes <= 6, "it sees the processes of the machine: {processes}");
    assert_eq!(fs::read_to_string(dir.join("own")).unwrap(), "secret");
    assert_eq!(fs::metadata(dir.join("own")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
}

#[test]
fn sockets_among_the_files_cannot_be_connected_to() {
    let (_top, dir) = project();
    let listener = UnixListener::bind(dir.join("socket")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let script = "import socket, sys\nfor kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):\n    \
                  try:\n        socket.socket(socket.AF_UNIX, kind).connect('socket'); print('connected')\n    \
                  except OSError as error: print(type(error).__name__)\nsocket.socketpair()";
    let mut command = sh(&dir, "");
    command.argv = ["/usr/bin/python3", "-c", script].map(Into::into).into();
    if !Path::new("/usr/bin/python3").exists() {
        return skip("there is no /usr/bin/python3");
    }
    let Some((end, stdout, stderr)) = run(&command) else { return };
    assert_eq!(
        (end, stdout.as_str()),
        (ConfinedEnd::Exited { code: 0 }, "PermissionError\n".repeat(3).as_str()),
        "{stderr}"
    );
    assert!(listener.accept().is_err());
}

#[test]
fn every_limit_ends_it_and_is_named_in_the_error() {
    let (_top, dir) = project();
    let ended = |script: &str, change: fn(&mut ConfinedLimits)| {
        let mut command = sh(&dir, script);
        change(&mut command.limits);
        run(&command).map(|(end, ..)| end)
    };
    let marker = marker();
    let stubborn = format!(
        "trap '' TERM INT HUP; setsid sleep {marker} & (trap '' TERM; sleep {marker}) & while :; do sleep 1; done"
    );
    let Some(end) = ended(&stubborn, |limits| limits.time = Duration::from_millis(500)) else { return };
    assert_eq!(end, ConfinedEnd::TimedOut);
    assert!(!is_running(&marker));
    let fork = "f() { f | f & f; }; while :; do sleep 60 & done";
    let end = ended(fork, |limits| limits.processes = 16);
    // A control group refuses the fork, and the shell gives up; without a control group, the shell is killed.
    assert!(matches!(end, Some(ConfinedEnd::TooManyProcesses | ConfinedEnd::Exited { code: 1.. })), "{end:?}");
    let end = ended("x=$(head -c 300000000 /dev/zero | tr '\\0' x); sleep 60", |limits| limits.memory_bytes = 64 << 20);
    assert_eq!(end, Some(ConfinedEnd::OutOfMemory));
    let end = ended("yes", |_| {});
    assert_eq!(end, Some(ConfinedEnd::TooMuchOutput(OutputStream::Stdout)));
    let end = ended("yes >&2", |_| {});
    assert_eq!(end, Some(ConfinedEnd::TooMuchOutput(OutputStream::Stderr)));
}

#[tokio::test]
async fn background_processes_end_with_it() {
    let (_top, dir) = project();
    let marker = marker();
    let script = format!("(trap '' TERM HUP; setsid sleep {marker}) > /dev/null 2>&1 & echo done");
    let Some(ended) = run(&sh(&dir, &script)) else { return };
    assert_eq!((ended.0, ended.1.as_str()), (ConfinedEnd::Exited { code: 0 }, "done\n"));
    eventually("the death of what it left", || !is_running(&marker)).await;
}

#[test]
fn root_reads_files_of_other_users_as_the_owner_of_the_directory() {
    if !is_root() {
        return;
    }
    let (top, dir) = project();
    for (name, owner) in [("own", 4321), ("of-root", 0)] {
        fs::write(dir.join(name), name).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(dir.join(name), Some(owner), Some(owner)).unwrap();
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&dir, Some(4321), Some(4321)).unwrap();
    let Some((_, stdout, _)) = run(&sh(&dir, "id -u; cat own; cat of-root; grep Cap /proc/self/status")) else {
        return;
    };
    let mut lines = stdout.lines();
    assert_eq!((lines.next(), lines.next()), (Some("4321"), Some("ownCapInh:\t0000000000000000")), "{stdout}");
    assert!(
        lines
            .filter(|line| line.starts_with("Cap") && !line.starts_with("CapBnd"))
            .all(|line| line.ends_with("\t0000000000000000"))
    );
    drop(top);
}
