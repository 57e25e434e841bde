//! Full disks, damaged and immutable files, too few file descriptors, and names that a shell would misread.

use std::{fs, process::Command};

use crate::support::{
    backends::skip_optional,
    filesystem::Filesystem,
    programs::hm,
    project::{Ended, Project, ir, walk},
};

/// Runs `hm ARGS` with the store on a filesystem of its own.
fn hm_on(project: &Project, filesystem: &Filesystem, args: &[&str]) -> Ended {
    Ended::of(project.hm(args).env("HM_CACHE_DIR", filesystem.dir().join("store")))
}

#[test]
fn a_log_that_fills_the_disk_is_reported_once_and_collected_at_once() {
    let Some(disk) = Filesystem::tmpfs(12) else { return };
    let project = Project::with_steps(&[("small", "true", None)]);
    project
        .file(".hm/noisy.json", &ir(&[("noisy", "yes 0123456789012345678901234567890123456789 | head -c 64M", None)]));
    hm_on(&project, &disk, &["run", "--runner", "process", "ci"]).expect(0);
    let ended = hm_on(&project, &disk, &["run", "--runner", "process", "noisy"]).expect(3);
    let dir = disk.dir().join("store");
    let said = format!("error: no space left on {} (", dir.display());
    assert_eq!(ended.stderr.matches(&said).count(), 1, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("free of 12.0 MiB)\nhint: run `hm cache gc`, or set HM_CACHE_DIR"),
        "{}",
        ended.stderr
    );
    assert_eq!(ended.stderr.matches("hint:").count(), 1, "{}", ended.stderr);

    let ended = hm_on(&project, &disk, &["cache", "gc"]).expect(0);
    assert!(ended.stdout.contains("compressed: logs") && ended.stdout.contains("freed"), "{}", ended.stdout);
    hm_on(&project, &disk, &["run", "--runner", "process", "ci"]).expect(0);
}

#[test]
fn a_store_that_cannot_be_made_is_not_blamed_on_the_runner() {
    let project = Project::with_steps(&[("a", "true", None)]);
    let mut hm = project.hm(&["run", "--runner", "sandbox"]);
    let said = Ended::of(hm.env("HM_CACHE_DIR", "/proc/nope")).expect(3).stderr;
    assert!(said.contains("the store cannot be used: failed to make the directory `/proc/nope`: "), "{said}");
    assert!(said.contains("hint: set HM_CACHE_DIR to a directory") && !said.contains("--runner process"), "{said}");
}

#[test]
fn an_immutable_file_keeps_no_other_garbage() {
    let Some(disk) = Filesystem::ext4(48) else { return };
    let project =
        Project::with_steps(&[("a", "mkdir -p d/e; echo x > d/e/f; head -c 2M /dev/zero > large; false", None)]);
    for _ in 0..2 {
        hm_on(&project, &disk, &["run", "--runner", "sandbox"]).expect(1);
    }
    let dir = disk.dir().join("store");
    let mut stuck = None;
    walk(&dir.join("layers"), &mut |path| {
        if path.ends_with("workspace/d/e") {
            stuck.get_or_insert(path.to_owned());
        }
    });
    let stuck = stuck.expect("a failed step's files are kept");
    let chattr = |flag: &str, path: &std::path::Path| Command::new("chattr").arg(flag).arg(path).status();
    if !chattr("+i", &stuck.join("f")).is_ok_and(|status| status.success()) {
        skip_optional("chattr", "it does not work here");
        return;
    }
    let ended = hm_on(&project, &disk, &["cache", "clean", "--all"]).expect(0);
    assert!(ended.stderr.contains("failed to remove"), "{}", ended.stderr);
    assert_eq!(fs::read_dir(dir.join("layers")).unwrap().count(), 0, "{}", ended.stdout);
    let mut left = Vec::new();
    walk(&dir.join("tmp"), &mut |path| {
        if path.is_file() {
            left.push(path.to_owned());
        }
    });
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].ends_with("d/e/f"), "{left:?}");
    // Each process moves the directory on, at the same depth, until it can be removed.
    let depth = left[0].components().count();
    for _ in 0..3 {
        hm_on(&project, &disk, &["cache", "gc"]).expect(0);
    }
    left.clear();
    walk(&dir.join("tmp"), &mut |path| {
        if path.is_file() {
            left.push(path.to_owned());
        }
    });
    assert!(left.len() == 1 && left[0].components().count() <= depth, "{left:?}");
    assert!(chattr("-i", &left[0]).unwrap().success());
    hm_on(&project, &disk, &["cache", "gc"]).expect(0);
    assert!(!left[0].exists());
}

#[test]
fn a_damaged_format_file_is_set_aside_and_a_newer_format_is_refused() {
    let project = Project::with_steps(&[("a", "true", None)]);
    project.run(&[]).expect(0);
    let format = project.store.join("format");
    let good = fs::read(&format).unwrap();
    for damaged in [&b""[..], b"\xff\xfe\0", b"hm-exec store 2", b"hm-exec store x\n", b"something else\n"] {
        fs::write(&format, damaged).unwrap();
        let ended = project.run(&[]).expect(0);
        assert!(ended.stderr.contains("format-damaged-"), "{damaged:?}: {}", ended.stderr);
        assert_eq!(fs::read(&format).unwrap(), good);
        assert_eq!(project.run(&[]).expect(0).stderr, "");
    }
    // Nothing in the store was lost.
    let runs = fs::read_dir(project.store.join("runs")).unwrap().count();
    assert_eq!(runs, 11);
    fs::write(&format, "hm-exec store 12\n").unwrap();
    let ended = project.run(&[]).expect(3);
    assert!(ended.stderr.contains("version 12, written by a newer hm"), "{}", ended.stderr);
    assert_eq!(fs::read(&format).unwrap(), b"hm-exec store 12\n");
}

#[test]
fn more_jobs_than_open_files_wait_for_a_slot_and_steps_keep_the_limit_of_the_user() {
    let names: Vec<String> = (0..60).map(|n| format!("s{n}")).collect();
    let steps: Vec<_> = names.iter().map(|name| (&**name, "sleep 0.1; ulimit -Sn", None)).collect();
    let project = Project::with_steps(&steps);
    let run = |limit: &str, runner: &str, jobs: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{limit}; exec \"$HM\" run --runner {runner} -j {jobs}")]);
        command.current_dir(&project.dir).env("HM", hm()).env("HM_CACHE_DIR", &project.store);
        Ended::of(command.env("HM_CACHE_GC", "off")).expect(0)
    };
    for runner in ["process", "sandbox"] {
        let ended = run("ulimit -n 80", runner, "500");
        assert!(ended.stderr.contains("warning: running 4 steps at once instead of 500"), "{}", ended.stderr);
        // The soft limit does not restrict hm, and still applies to its steps.
        let ended = run("ulimit -Sn 71 && ulimit -Hn 4096", runner, "60");
        assert!(ended.stdout.contains("s59 | 71\n") && !ended.stderr.contains("at once"), "{}", ended.stdout);
    }
}

#[test]
fn commands_to_type_next_can_be_pasted() {
    let keys = ["-rf", "a b", "it's", "$(touch pwned)"];
    for key in keys {
        let project = Project::with_steps(&[(key, "echo said; echo left > file; false", None)]);
        let ended = Ended::of(&mut project.hm(&["run", "--runner", "sandbox"])).expect(1);
        let next = ended.stdout.lines().last().unwrap_or_default();
        let commands: Vec<&str> =
            next.split(" · ").filter_map(|part| part.trim().split_once(' ')).map(|it| it.1).collect();
        let [logs, shell, ..] = commands[..] else { panic!("{key}: {}", ended.stdout) };
        let paste = |command: &str| {
            let mut sh = Command::new("sh");
            sh.args(["-c", &format!("hm() {{ \"$HM\" \"$@\"; }}; {command}")]).current_dir(&project.dir);
            Ended::of(sh.env("HM", hm()).env("HM_CACHE_DIR", &project.store).env("HM_CACHE_GC", "off"))
        };
        assert_eq!(paste(logs).expect(0).stdout, "said\n", "{logs}");
        assert_eq!(paste(&format!("{shell} -- cat file")).expect(0).stdout, "left\n", "{shell}");
        assert!(!project.dir.join("pwned").exists());
        Ended::of(&mut project.hm(&["logs", "--", key])).expect(0);
    }
}
