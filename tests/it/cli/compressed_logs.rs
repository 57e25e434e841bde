//! Logs that garbage collection compressed, as a user sees them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Duration,
};

use crate::support::{
    backends::usable,
    project::{Ended, Project},
};

/// Runs a pipeline of one step that prints a megabyte, and returns its log.
fn project() -> (Project, PathBuf) {
    let project = Project::with_steps(&[("long", "seq 1 180000", None)]);
    project.run(&[]).expect(0);
    let log = log_of(&project);
    (project, log)
}

fn log_of(project: &Project) -> PathBuf {
    let run = fs::read_dir(project.store.join("runs")).unwrap().next().unwrap().unwrap().path();
    run.join("logs/0-1.log")
}

fn zst(log: &Path) -> PathBuf {
    format!("{}.zst", log.display()).into()
}

fn logs(project: &Project) -> String {
    Ended::of(&mut project.hm(&["logs", "long"])).expect(0).stdout
}

#[test]
fn hm_logs_shows_a_compressed_log_with_secrets_masked() {
    let command = "for i in 1 2 3 4 5 6 7 8 9; do seq 1 20000; cat /run/secrets/TOKEN; echo; done";
    let project = Project::with_steps(&[("long", command, None)]);
    let mut hm = project.hm(&["run", "--secret", "TOKEN"]);
    let ended = Ended::of(hm.env("TOKEN", "hunter2-hunter2"));
    if !usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        return;
    }
    ended.expect(0);
    let (log, shown) = (log_of(&project), logs(&project));
    assert_eq!(shown.lines().filter(|line| *line == "***").count(), 9);
    assert!(!shown.contains("hunter2"));
    let ended = Ended::of(&mut project.hm(&["cache", "gc"])).expect(0);
    assert!(ended.stdout.contains("freed"), "{ended:?}");
    assert!(!log.exists());
    let compressed = fs::read(zst(&log)).unwrap();
    assert!(compressed.len() < shown.len() / 3, "{}", compressed.len());
    assert_eq!(String::from_utf8(zstd::decode_all(&*compressed).unwrap()).unwrap(), shown);
    assert_eq!(logs(&project), shown);
}

#[test]
fn hm_logs_says_that_a_compressed_log_is_damaged_after_what_is_whole() {
    let (project, log) = project();
    let shown = logs(&project);
    Ended::of(&mut project.hm(&["cache", "gc"])).expect(0);
    let mut compressed = fs::read(zst(&log)).unwrap();
    let at = compressed.len() * 3 / 4;
    compressed[at] ^= 1;
    fs::write(zst(&log), &compressed).unwrap();
    let ended = Ended::of(&mut project.hm(&["logs", "long"]));
    assert!(ended.code == Some(3) && ended.stderr.contains("failed to read the log of step `long`"), "{ended:?}");
    assert!(ended.stderr.contains("damaged"), "{}", ended.stderr);
    assert!(!ended.stdout.is_empty() && ended.stdout.len() < shown.len() && shown.starts_with(&ended.stdout));
}

#[test]
fn a_process_killed_while_it_compresses_leaves_a_whole_log() {
    let (project, log) = project();
    let shown = logs(&project);
    let gc = ["cache", "gc", "--only-logs"];
    for round in 0..20 {
        let mut compressing = project.hm(&gc).stdout(Stdio::null()).spawn().unwrap();
        // Kills at different times. The result is the same whether or not it had finished.
        thread::sleep(Duration::from_millis(5 * round));
        compressing.kill().unwrap();
        compressing.wait().unwrap();
        assert!(logs(&project) == shown, "round {round}");
        // Once more from the beginning.
        fs::write(&log, &shown).unwrap();
    }
    Ended::of(&mut project.hm(&gc)).expect(0);
    let names: Vec<_> = fs::read_dir(log.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["0-1.log.zst"]);
    assert_eq!(logs(&project), shown);
}
