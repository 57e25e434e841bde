//! Looks for results that are not made: what an earlier one found is found without a process, and nothing
//! else is.

use std::{
    fs::{self, File},
    time::Duration,
};

use super::{
    cost::{calls, count},
    reuse::{AUTO, chain, run, run_with},
};
use crate::support::project::{Ended, Project};

/// Runs the pipeline. Returns how often it looked at what a step read, or `None` if that cannot be seen.
fn looks(project: &Project) -> Option<usize> {
    Some(count(&calls(project, &["--cache", "auto"], "")?, "hm-answers"))
}

/// Returns what a step of the last run printed.
fn output(project: &Project, step: &str) -> String {
    Ended::of(&mut project.hm(&["logs", step])).expect(0).stdout
}

#[test]
fn an_unchanged_pipeline_is_found_without_a_look() {
    let project = chain(&["cat a > out", "cat out b", "cat out; ls nowhere || ls /usr/bin/nowhere || true"]);
    for name in ["a", "b", "README"] {
        project.file(name, name);
    }
    assert_eq!(run(&project), ["ran", "ran", "ran"]);
    let Some(made) = looks(&project) else { return };
    assert_eq!(made, 0, "the runs that made the results have looked");
    assert_eq!(run(&project), ["found", "found", "found"]);
    project.file("README", "edited");
    project.file("docs/new", "1");
    assert_eq!(looks(&project), Some(0), "no step has read what was edited");
    assert_eq!(run(&project), ["found", "found", "found"]);
    // With a range of ids, files of the store may be another user's, and are reached through the helper.
    if rustix::process::geteuid().is_root() {
        let mut without_helper = project.hm(&["run"]);
        let ended = Ended::of(without_helper.args(AUTO).env("HM_SANDBOX_HELPER", "/nonexistent/helper")).expect(0);
        assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
    }
    project.file("b", "edited");
    assert_eq!(run(&project)[..2], ["found", "/workspace/b changed"]);
    assert_eq!(run(&project), ["found", "found", "found"]);
    assert_eq!(output(&project, "s1"), "aedited");
    // Both states are known now.
    project.file("b", "b");
    assert_eq!(run(&project), ["found", "found", "found"]);
    assert_eq!(output(&project, "s1"), "ab");
}

#[test]
fn a_change_of_the_machines_files_is_seen_without_a_look() {
    let dir = tempfile::tempdir().unwrap();
    let tools = dir.path().canonicalize().unwrap().join("tools");
    fs::create_dir_all(tools.join("sub")).unwrap();
    fs::write(tools.join("a"), "1").unwrap();
    let shown = tools.to_str().unwrap();
    let cmd = format!("cat {shown}/a; cat {shown}/sub/absent 2> /dev/null || true");
    let project = chain(&[&cmd]);
    let args = [&AUTO[..], &["--host-dir", shown]].concat();
    let run = || run_with(&project, &args)[0].clone();
    // The time of a change counts only when later ones have another one.
    let settle = || std::thread::sleep(Duration::from_millis(2100));
    settle();
    assert_eq!((run(), run()), ("ran".into(), "found".into()));
    let looks = || Some(count(&calls(&project, &["--cache", "auto", "--host-dir", shown], "")?, "hm-answers"));
    let Some(made) = looks() else { return };
    assert_eq!(made, 0);

    let path = tools.join("a");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "2").unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    assert_eq!(run(), format!("{shown}/a changed"));
    settle();
    run();
    assert_eq!((run(), output(&project, "s0")), ("found".into(), "2".into()));

    fs::write(tools.join("sub/absent"), "3").unwrap();
    assert_eq!(run(), format!("{shown}/sub/absent appeared"));
    settle();
    run();
    assert_eq!((run(), output(&project, "s0")), ("found".into(), "23".into()));

    // Nothing that was read is another one: a look finds it.
    fs::write(tools.join("other"), "4").unwrap();
    fs::remove_file(tools.join("other")).unwrap();
    settle();
    assert_eq!(run(), "found");
    assert_eq!(looks(), Some(0));
    fs::rename(tools.join("sub"), tools.join("old")).unwrap();
    assert_eq!(run(), format!("{shown}/sub is gone"));
}

#[test]
fn a_result_that_was_made_again_is_the_one_that_is_found() {
    let project = chain(&["cat a; head -c 12 /dev/urandom | od -An -tx1"]);
    project.file("a", "a");
    let refreshed = [&AUTO[..], &["--refresh", "s0"]].concat();
    run(&project);
    let first = output(&project, "s0");
    assert_eq!(run(&project), ["found"]);
    assert_eq!(output(&project, "s0"), first);
    // In another view, which a look finds the same in.
    project.file("README", "1");
    assert_eq!(run(&project), ["found"]);
    run_with(&project, &refreshed);
    let second = output(&project, "s0");
    assert_ne!(second, first);
    fs::remove_file(project.dir.join("README")).unwrap();
    for _ in 0..2 {
        assert_eq!(run(&project), ["found"]);
        assert_eq!(output(&project, "s0"), second, "the older look would find the older result");
    }
}

#[test]
fn a_look_finds_nothing_that_was_removed() {
    let project = chain(&["cat a > out", "cat out"]);
    project.file("a", "a");
    run(&project);
    assert_eq!(run(&project), ["found", "found"]);
    Ended::of(&mut project.hm(&["cache", "clean", "s0"])).expect(0);
    assert_eq!(run(&project)[0], "its result was removed");
    assert_eq!(run(&project), ["found", "found"]);
    Ended::of(&mut project.hm(&["cache", "clean"])).expect(0);
    assert_eq!(run(&project), ["ran", "ran"]);
    assert_eq!(run(&project), ["found", "found"]);
}
