//! `hm shell`: a shell in the filesystem of a step.

use std::{
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    process::Stdio,
};

use rustix::{
    process::{Pid, Signal, kill_process},
    termios::{LocalModes, OutputModes, tcsetwinsize},
};
use uuid::Uuid;

use crate::support::{
    backends::usable,
    project::{Ended, Project, eventually, failed, shell},
    terminal::{Terminal, size},
};

/// Returns whether any process of this machine has `mark` in its environment.
fn is_running(mark: &str) -> bool {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())).any(|entry| {
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        environ.windows(mark.len()).any(|window| window == mark.as_bytes())
    })
}

#[test]
fn scripts_see_the_filesystem_and_the_environment_of_the_failed_step() {
    let project = Project::with_steps(&[
        ("build", "echo built > artifact", None),
        ("test", "mkdir sub; echo broken > sub/report; rm artifact; GREETING=x; exit 3", Some(0)),
        ("other", "echo other > other; exit 1", Some(0)),
    ]);
    let run = ["run", "-k", "--format", "human", "-e", "GREETING=hello you", "--secret", "TOKEN"];
    let ended = Ended::of(project.hm(&run).env("TOKEN", "hunter2-hunter2"));
    if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    ended.expect(1);
    let script = "pwd; echo \"$GREETING\"; ls; cat sub/report; ls /run/secrets 2>/dev/null; exit 9";
    let ended = shell(&project, &["test"], script).expect(9);
    assert_eq!(ended.stdout, "/workspace\nhello you\nsub\nbroken\n");
    for text in ["step `test` of run", "failed with exit code 3", "discarded", "secrets"] {
        assert!(ended.stderr.contains(text), "{}", ended.stderr);
    }
    // A command: stdout and stderr stay apart, and hm returns its exit code.
    let ended = shell(&project, &["test", "--", "sh", "-c", "cat >&2; echo out; kill -TERM $$"], "in").expect(143);
    assert_eq!(ended.stdout, "out\n");
    assert!(ended.stderr.ends_with("in"), "{}", ended.stderr);
    assert_eq!(shell(&project, &["other"], "cat other artifact").expect(0).stdout, "other\nbuilt\n");
    shell(&project, &["test", "--", "no-such-command"], "").expect(127);
    let ended = shell(&project, &["tests"], "").expect(2);
    assert!(ended.stderr.contains("did you mean `test`?"), "{}", ended.stderr);
    // More than a pipe holds, in both directions.
    let big = "0123456789abcde\n".repeat(1 << 16);
    assert_eq!(shell(&project, &["test", "--", "cat"], &big).expect(0).stdout, big);
}

#[test]
fn changes_in_a_shell_are_discarded() {
    let Some(project) = failed("echo broken > report; exit 1") else { return };
    // Only mounts of this store count: the daemons of other tests mount, too.
    let store = project.store.to_str().unwrap();
    let is_mounted = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(store);
    let mark = format!("MARK_{}=1", Uuid::new_v4().simple());
    let script = format!(
        "echo changed > report; rm source.txt; echo new > new; export {mark}; \
         (setsid sleep 4243 || sleep 4243) > /dev/null 2>&1 & exit 0"
    );
    shell(&project, &["test"], &script).expect(0);
    assert!(!is_running(&mark));
    assert_eq!(shell(&project, &["test"], "cat report source.txt; ls").expect(0).stdout.lines().count(), 5);
    assert!(!is_mounted());
    let tmp = std::fs::read_dir(project.store.join("tmp")).unwrap().count();
    assert_eq!(tmp, 0, "no directory of a process that ended");
}

#[test]
fn a_shell_ends_with_a_killed_hm() {
    let Some(project) = failed("exit 1") else { return };
    for signal in [Signal::KILL, Signal::TERM, Signal::HUP] {
        let mark = format!("MARK_{}=1", Uuid::new_v4().simple());
        let mut hm = project.hm(&["shell", "test"]);
        let mut child = hm.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "export {mark}; trap '' TERM HUP; sh -c 'echo up; while :; do sleep 1; done'").unwrap();
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        assert!(&up == b"up\n" && is_running(&mark));
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        match signal {
            Signal::KILL => assert_eq!(status.signal(), Some(9)),
            _ => assert_eq!(status.code(), Some(130)),
        }
        eventually("the shell is gone", || !is_running(&mark));
    }
    // The store still works.
    shell(&project, &["test", "--", "true"], "").expect(0);
}

#[test]
fn a_removed_work_directory_is_reported() {
    let Some(project) = failed("rm -r /workspace; exit 1") else { return };
    let ended = shell(&project, &["test"], "pwd").expect(0);
    assert_eq!(ended.stdout, "/\n");
    assert!(ended.stderr.contains("directory /workspace does not exist"), "{}", ended.stderr);
}

#[test]
fn a_shell_opens_in_a_step_that_timed_out() {
    let project = Project::with_steps(&[("slow", "echo half > f; sleep 4244", None)]);
    let ended = Ended::of(&mut project.hm(&["run", "--timeout", "2s", "--format", "human"]));
    if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    ended.expect(124);
    let ended = shell(&project, &["slow", "--", "cat", "f"], "").expect(0);
    assert_eq!(ended.stdout, "half\n");
    assert!(ended.stderr.contains("timed out"), "{}", ended.stderr);
}

#[test]
fn a_source_that_was_collected_is_replaced_by_the_current_one() {
    let Some(project) = failed("echo broken > report; exit 1") else { return };
    rusqlite::Connection::open(project.store.join("index.db")).unwrap().execute("DELETE FROM sources", []).unwrap();
    project.file("source.txt", "edited\n");
    let ended = shell(&project, &["test"], "cat report source.txt").expect(0);
    assert_eq!(ended.stdout, "broken\nedited\n");
    assert!(ended.stderr.contains("using the current content of"), "{}", ended.stderr);
}

#[test]
fn a_shell_opens_in_a_cached_step_of_every_run_that_hit_it() {
    let project = Project::new();
    let cached = r#"{"step":{"key":"a","cmd":"echo made > f","cache":{"policy":"forever","key":"1"}},"env":{"X":"y"}}"#;
    let ir = format!(
        r#"{{"version":"0","default_image":"host","graph":{{"nodes":[{cached}],"node_holes":[],"edge_property":"directed","edges":[]}}}}"#
    );
    project.file(".hm/ci.json", &ir);
    for status in ["passed", "passed, cached"] {
        let ended = Ended::of(&mut project.hm(&["run", "--format", "human"]));
        if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
            return;
        }
        ended.expect(0);
        let ended = shell(&project, &["a"], "cat f; echo $X").expect(0);
        assert_eq!(ended.stdout, "made\ny\n");
        assert!(ended.stderr.contains(&format!("({status})")), "{}", ended.stderr);
    }
}

#[test]
fn on_a_terminal_the_shell_gets_its_own_terminal() {
    let Some(project) = failed("echo broken > report; exit 1") else { return };
    let mut terminal = Terminal::open(&project, &["shell", "test"]);
    terminal.expect("discarded");
    eventually("hm gives its keys away", || !terminal.modes().0.contains(LocalModes::ICANON));
    terminal.keys("cat report; echo $((40+2)) $TERM; stty size; test -t 0 && echo a-terminal\r");
    for text in ["broken\r\n", "42 vt100\r\n", "24 80\r\n", "a-terminal\r\n"] {
        terminal.expect(text);
    }
    tcsetwinsize(&terminal.master, size(30, 100)).unwrap();
    kill_process(Pid::from_child(&terminal.hm), Signal::WINCH).unwrap();
    terminal.keys("until test \"$(stty size)\" = '30 100'; do sleep 0.1; done; echo re''sized\r");
    terminal.expect("resized\r\n");
    // Ctrl-C reaches the command in the shell, and job control works.
    terminal.keys("sh -c 'echo slee''ping; exec sleep 4245'\r");
    terminal.expect("sleeping\r\n");
    terminal.keys("\x03");
    terminal.keys("echo in''terrupted $?\r");
    terminal.expect("interrupted 130\r\n");
    terminal.keys("exit 5\r");
    assert_eq!(terminal.hm.wait().unwrap().code(), Some(5));
}

#[test]
fn the_steps_command_is_shown_and_runs_again() {
    let Some(project) = failed("echo at $PWD; [ -e fixed ]") else { return };
    let mut terminal = Terminal::open(&project, &["shell", "test"]);
    terminal.expect("  $ echo at $PWD; [ -e fixed ]\r\n`hm rerun` runs it again");
    terminal.expect("hm:test /workspace ");
    terminal.keys("cd /; hm rerun; echo it ended $?\r");
    terminal.expect("at /workspace\r\nit ended 1\r\n");
    terminal.expect("hm:test / ");
    terminal.keys("touch /workspace/fixed; hm rerun; echo it ended $?\r");
    terminal.expect("at /workspace\r\nit ended 0\r\n");
    terminal.keys("hm run; echo code $?\r");
    terminal.expect("only `hm rerun` works in here; `exit` leaves the step\r\ncode 2\r\n");
    if std::path::Path::new("/bin/bash").exists() {
        // The command comes back to be edited, before those that were typed.
        terminal.keys("history | head -1 | tr a-z A-Z\r");
        terminal.expect("ECHO AT $PWD; [ -E FIXED ]\r\n");
    }
    terminal.keys("exit 0\r");
    assert_eq!(terminal.hm.wait().unwrap().code(), Some(0));
    // Changes of a shell are discarded, the file of its prompt included.
    let cmd = "for f in fixed /tmp/.hm-shell /run/.hm-shell /.hm-shell; do test ! -e $f || exit 1; done";
    shell(&project, &["test", "--", "sh", "-c", cmd], "").expect(0);
}

#[test]
fn a_hostile_key_does_nothing_in_the_prompt() {
    let key = "$(touch /tmp/pwned)`id`";
    let project = Project::with_steps(&[(key, "exit 1", None)]);
    let ended = Ended::of(&mut project.hm(&["run", "--format", "human"]));
    if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    let mut terminal = Terminal::open(&project, &["shell", key]);
    terminal.expect("hm:??touch??tmp?pwned??id? /workspace ");
    terminal.keys("ls /tmp/pwned || echo no''thing\r");
    terminal.expect("nothing\r\n");
    terminal.keys("exit 0\r");
    assert_eq!(terminal.hm.wait().unwrap().code(), Some(0));
}

#[test]
fn the_terminal_is_restored_however_the_shell_ends() {
    let Some(project) = failed("exit 1") else { return };
    for end in ["exit", "kill", "signal"] {
        let mut terminal = Terminal::open(&project, &["shell", "test", "--", "sh", "-c", "echo up; read x; exit 4"]);
        let before = (LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG, terminal.modes().1);
        terminal.expect("up\r\n");
        assert!(!terminal.modes().0.intersects(before.0), "raw while the shell runs");
        match end {
            "exit" => terminal.keys("\r"),
            "kill" => terminal.keys("\x1c"),
            _ => kill_process(Pid::from_child(&terminal.hm), Signal::TERM).unwrap(),
        }
        let code = terminal.hm.wait().unwrap().code();
        assert_eq!(
            code,
            Some(if end == "exit" {
                4
            } else if end == "kill" {
                131
            } else {
                130
            }),
            "{end}"
        );
        let after = terminal.modes();
        assert!(after.0.contains(before.0) && after.1.contains(OutputModes::OPOST), "{end}: {after:?}");
    }
}
