//! Files of steps in containers that a run asks to keep: they are in the store, and nothing stays at the
//! daemon.

use crate::support::{
    docker::{left, nothing, project, run},
    docker_daemon::Daemon,
    project::{Ended, Project, shell},
};

/// Returns the output of a shell script in the step's files.
fn look(project: &Project, script: &str) -> String {
    shell(project, &["step"], script).expect(0).stdout
}

#[test]
fn a_failed_steps_files_are_kept_with_keep() {
    let Some(daemon) = Daemon::get() else { return };
    let project = project("mkdir -m 700 sub; echo broken > sub/report; rm source.txt; exit 3");
    project.file("source.txt", "source\n");
    Ended::of(&mut run(&project, &daemon)).expect(1);
    let ended = shell(&project, &["step"], "").expect(2);
    assert!(ended.stderr.contains("container") && ended.stderr.contains("hm run --keep"), "{ended:?}");
    Ended::of(run(&project, &daemon).arg("--keep")).expect(1);
    assert_eq!(left(&daemon, &project.store), nothing());
    assert_eq!(look(&project, "pwd; ls; cat sub/report; stat -c %a sub"), "/workspace\nsub\nbroken\n700\n");
}

#[test]
fn a_passed_steps_files_are_kept_with_keep() {
    let Some(daemon) = Daemon::get() else { return };
    let project = project("echo fine > report");
    Ended::of(run(&project, &daemon).arg("--keep")).expect(0);
    assert_eq!(left(&daemon, &project.store), nothing());
    assert_eq!(look(&project, "cat report"), "fine\n");
}

#[test]
fn an_interrupted_steps_files_are_kept_after_its_processes_ended() {
    let Some(daemon) = Daemon::get() else { return };
    let project = project("trap '' TERM; echo half > report; while :; do sleep 1; done");
    Ended::of(run(&project, &daemon).args(["--keep", "--timeout", "2s"])).expect(124);
    assert_eq!(left(&daemon, &project.store), nothing());
    assert_eq!(look(&project, "cat report"), "half\n");
}
