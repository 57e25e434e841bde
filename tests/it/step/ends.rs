//! How steps end, and which files and processes remain.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use hm_exec::step::Exit;
use rustix::process::Signal;

use crate::support::step::{Action, everybody, runs, write_script};

#[test]
fn hm_step_has_the_exit_code_and_the_output_of_the_command() {
    for who in everybody() {
        let ended = Action::new(who, r"printf 'a\0b\377'; echo wrong >&2; exit 7").run();
        assert_eq!((ended.code, ended.exit()), (Some(7), &Exit::exited(7)), "{ended:?}");
        assert_eq!(ended.stdout, b"a\0b\xff");
        assert_eq!(ended.stderr(), "wrong\n");
        assert_eq!(ended.output.unwrap().layer, None, "what failed leaves no layer");
    }
}

#[test]
fn death_by_a_signal_is_a_code_above_128() {
    for who in everybody() {
        for (signal, code) in [("KILL", 137), ("TERM", 143), ("SEGV", 139)] {
            let ended = Action::new(who, &format!("kill -{signal} $$")).run();
            assert_eq!((ended.code, ended.exit()), (Some(code), &Exit::exited(code)), "{ended:?}");
        }
    }
}

#[test]
fn the_command_is_root_in_its_own_system() {
    for who in everybody() {
        let mut action = Action::new(who, "id -u; pwd; echo $NAME $HOME; cat /proc/1/comm; ls /; cat /etc/hosts");
        action.input.env.insert("NAME".into(), "value".into());
        let ended = action.run();
        let stdout = ended.stdout();
        let lines: Vec<&str> = stdout.lines().collect();
        assert_eq!(lines[..4], ["0", "/workspace", "value /root", "hm-step"], "{ended:?}");
        for name in ["bin", "data", "dev", "proc", "sys", "tmp", "tools", "workspace"] {
            assert!(lines.contains(&name), "{name} is missing: {ended:?}");
        }
        assert!(!lines.contains(&"source") && stdout.contains("localhost"), "{ended:?}");
    }
}

#[test]
fn the_workspace_is_visible_and_never_changed() {
    for who in everybody() {
        let action = Action::new(who, "cat file; echo more >> file; rm gone; ./script; mv dir/inner dir/other");
        let workspace = action.workspace();
        fs::write(workspace.join("file"), "from the source\n").unwrap();
        fs::write(workspace.join("gone"), "").unwrap();
        fs::create_dir(workspace.join("dir")).unwrap();
        fs::write(workspace.join("dir/inner"), "").unwrap();
        write_script(&workspace.join("script"), "#!/bin/sh\necho ran > made\n");
        let before = fs::metadata(workspace.join("file")).unwrap();
        let ended = action.run();
        assert_eq!((ended.code, ended.stdout().as_str()), (Some(0), "from the source\n"), "{ended:?}");
        let after = fs::metadata(workspace.join("file")).unwrap();
        assert_eq!((before.ino(), before.mtime_nsec(), before.len()), (after.ino(), after.mtime_nsec(), after.len()));
        assert!(workspace.join("gone").exists() && !workspace.join("made").exists());
        assert!(workspace.join("dir/inner").exists() && !workspace.join("dir/other").exists());
        assert_eq!(action.names(), ["hm-step", "input.json", "layer.tar.zst", "layers", "result.json", "source"]);
    }
}

#[test]
fn a_command_that_ignores_term_is_killed_at_its_time_limit() {
    for who in everybody() {
        let word = format!("86400.{}1", std::process::id());
        let mut action = Action::new(who, &format!("trap '' TERM; sleep {word} & echo began; sleep {word}"));
        action.input.timeout_ms = Some(300);
        action.input.grace_ms = 100;
        let ended = action.run();
        assert_eq!((ended.code, ended.exit()), (Some(124), &Exit::TimedOut), "{ended:?}");
        assert_eq!(ended.stdout(), "began\n");
        assert!(!runs(&word), "a process of the step is left");
    }
}

#[test]
fn term_reaches_the_command_which_can_clean_up() {
    for who in everybody() {
        let word = format!("86400.{}2", std::process::id());
        let command = format!("trap 'echo goodbye; exit 0' TERM; sh -c 'echo ready; exec sleep {word}' & wait");
        let action = Action::new(who, &command);
        let ended = action.start().signal(Signal::TERM);
        assert_eq!((ended.code, ended.exit()), (Some(143), &Exit::Terminated), "{ended:?}");
        assert_eq!(ended.stdout(), "goodbye\n");
        assert!(!runs(&word), "a process of the step is left");
    }
}

#[test]
fn after_term_every_process_gets_the_grace_period() {
    for who in everybody() {
        let child = "trap 'echo TERM; sleep 1; echo goodbye; exit 0' TERM; echo ready; while :; do sleep 1; done";
        let action = Action::new(who, &format!("sh -c \"{child}\"; echo after"));
        for signal in [Signal::TERM, Signal::HUP] {
            let ended = action.start().signal(signal);
            assert_eq!((ended.code, ended.exit()), (Some(143), &Exit::Terminated), "{ended:?}");
            assert_eq!(ended.stdout(), "TERM\ngoodbye\n");
        }
    }
}

#[test]
fn a_command_that_ended_while_hm_step_was_stopped_ended_in_time() {
    for who in everybody() {
        let mut action = Action::new(who, "echo ready; sleep 1; echo finished");
        action.input.timeout_ms = Some(3_000);
        let started = action.start();
        started.send(Signal::STOP);
        std::thread::sleep(Duration::from_millis(3_500));
        let ended = started.signal(Signal::CONT);
        assert_eq!((ended.code, ended.exit()), (Some(0), &Exit::exited(0)), "{ended:?}");
        assert_eq!(ended.stdout(), "finished\n");
    }
}

#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    for who in everybody() {
        let action = Action::new(who, "echo ready; sleep 1; echo finished");
        let ended = action.start_with("trap '' HUP; exec ./hm-step input.json").signal(Signal::HUP);
        assert_eq!((ended.code, ended.stdout().as_str()), (Some(0), "finished\n"), "{ended:?}");
    }
}

#[test]
fn no_step_can_change_the_hm_step_file_of_the_worker() {
    for who in everybody() {
        let action = Action::new(who, "echo ready; sleep 60");
        let started = action.start();
        let at = rustix::fs::statvfs(started.exe()).unwrap();
        assert!(at.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        assert_eq!(started.signal(Signal::TERM).code, Some(143));
    }
}

#[test]
fn killing_hm_step_leaves_no_processes_files_or_mounts() {
    for who in everybody() {
        let word = format!("86400.{}3", std::process::id());
        let command = format!("trap '' TERM HUP; (sleep {word} &) ; echo written > file; echo ready; sleep {word}");
        let action = Action::new(who, &command);
        let ended = action.start().signal(Signal::KILL);
        assert_eq!((ended.signal, &ended.output), (Some(9), &None), "{ended:?}");
        // The kernel kills the other processes asynchronously.
        let started = Instant::now();
        while runs(&word) {
            assert!(started.elapsed() < Duration::from_secs(60), "a process of the step is left");
            std::thread::yield_now();
        }
        assert_eq!(action.names(), ["hm-step", "input.json", "layers", "source"]);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(action.dir().to_str().unwrap()), "{mounts}");
        assert!(!action.workspace().join("file").exists());
    }
}

#[test]
fn exceeding_the_memory_limit_is_not_a_failure_of_the_command() {
    for who in everybody() {
        let mut action = Action::new(who, "exec /bin/busybox dd if=/dev/zero of=/dev/null bs=300M");
        action.input.limits.memory_bytes = Some(64 << 20);
        let ended = action.run();
        assert_eq!((ended.code, ended.exit()), (Some(137), &Exit::OutOfMemory), "{ended:?}");
    }
}

#[test]
fn exceeding_the_limit_on_processes_is_reported() {
    for who in everybody() {
        let mut action = Action::new(who, "for i in 1 2 3 4 5 6 7 8; do sleep 60 & done; wait");
        action.input.limits.pids = Some(4);
        let ended = action.run();
        let told = Exit::Exited { code: 137, too_many_processes: true };
        assert_eq!((ended.code, ended.exit()), (Some(137), &told), "{ended:?}");
    }
}
