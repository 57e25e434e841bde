//! The exit codes of `hm run`, and the files that a passed build does not touch.

use crate::support::project::{Ended, Project, ir};

#[test]
fn a_passed_build_exits_with_0_and_prints_a_summary() {
    let project = Project::with_steps(&[("build", "echo built | tee out.txt", None), ("test", "cat out.txt", Some(0))]);
    let ended = project.run(&[]).expect(0);
    let lines: Vec<String> = ended.stdout.lines().map(without_durations).collect();
    assert_eq!(
        lines,
        [
            "=> build started (process, image host)",
            "build | built",
            "=> build passed in DURATION",
            "=> test started (process)",
            "test | built",
            "=> test passed in DURATION",
            "passed · 2 steps · DURATION · critical path build → test DURATION",
        ]
    );
    assert_eq!(ended.stderr, "");
}

/// Returns `line` with every duration replaced.
fn without_durations(line: &str) -> String {
    let is_duration = |word: &str| {
        let number = word.trim_end_matches([',', ')']).strip_suffix('s');
        number.is_some_and(|number| number.parse::<f64>().is_ok())
    };
    let words = line.split(' ').map(|word| if is_duration(word) { "DURATION" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_failed_step_exits_with_1_and_skips_its_dependents() {
    let project = Project::with_steps(&[("build", "echo oops >&2; exit 7", None), ("test", "true", Some(0))]);
    let ended = project.run(&[]).expect(1);
    assert!(ended.stdout.contains("build | oops\n"), "{}", ended.stdout);
    assert!(ended.stdout.contains("build failed with exit code 7 after"), "{}", ended.stdout);
    assert!(ended.stdout.contains("=> test skipped"), "{}", ended.stdout);
    assert!(ended.stdout.contains("\n── 1 failed, 1 skipped (test) · "), "{}", ended.stdout);
}

#[test]
fn death_by_a_signal_is_reported() {
    let project = Project::with_steps(&[("crash", "kill -SEGV $$", None)]);
    let ended = project.run(&[]).expect(1);
    assert!(ended.stdout.contains("failed with exit code 139 (signal 11)"), "{}", ended.stdout);
}

#[test]
fn with_keep_going_independent_steps_still_run() {
    let project = Project::with_steps(&[("a", "exit 1", None), ("b", "echo still here", None)]);
    let ended = project.run(&["-k", "-j1"]).expect(1);
    assert!(ended.stdout.contains("b | still here\n"), "{}", ended.stdout);
}

#[test]
fn a_build_that_times_out_exits_with_124() {
    let project = Project::with_steps(&[("slow", "sleep 600", None)]);
    let ended = project.run(&["--timeout", "300ms"]).expect(124);
    assert!(ended.stdout.contains("timed out"), "{}", ended.stdout);
}

#[test]
fn a_step_that_times_out_fails_the_build() {
    let project = Project::new();
    let text = ir(&[("slow", "sleep 600", None)]).replace(r#""key":"slow""#, r#""key":"slow","timeout_seconds":1"#);
    assert!(text.contains("timeout_seconds"));
    project.file(".hm/ci.json", &text);
    let ended = project.run(&[]).expect(1);
    assert!(ended.stdout.contains("slow timed out after 1."), "{}", ended.stdout);
}

#[test]
fn a_store_that_cannot_be_opened_exits_with_3() {
    let project = Project::with_steps(&[("a", "true", None)]);
    std::fs::write(&project.store, "not a directory").unwrap();
    let ended = project.run(&[]).expect(3);
    let error = ended.stderr.lines().find(|line| line.starts_with("error: "));
    assert!(error.is_some_and(|line| line.contains(project.store.to_str().unwrap())), "{}", ended.stderr);
}

#[test]
fn the_source_directory_is_not_written_to() {
    let project = Project::with_steps(&[("build", "echo new > file; rm keep; mkdir dir; chmod 700 .", None)]);
    project.file("keep", "kept");
    let before = project.listing();
    project.run(&[]).expect(0);
    Ended::of(&mut project.hm(&["plan"])).expect(0);
    assert_eq!(project.listing(), before);
}

#[test]
fn variables_reach_the_steps_and_override_the_pipeline() {
    let project = Project::with_steps(&[("env", "echo $GIVEN $TAKEN", None)]);
    let mut command = project.hm(&["run", "--runner", "process", "-e", "GIVEN=a=b", "-e", "TAKEN"]);
    let ended = Ended::of(command.env("TAKEN", "taken")).expect(0);
    assert!(ended.stdout.contains("env | a=b taken\n"), "{}", ended.stdout);
}

#[test]
fn the_next_run_knows_how_long_steps_took() {
    let project = Project::with_steps(&[("short", "true", None), ("long", "sleep 1", None)]);
    let first_started = |stdout: &str| {
        let started = stdout.lines().find(|line| line.contains(" started")).expect("a step started");
        if started.contains("long") { "long" } else { "short" }
    };
    // Without known durations, steps start in the order of the pipeline; after that, the longer path goes
    // first.
    assert_eq!(first_started(&project.run(&["-j1", "--format", "human"]).expect(0).stdout), "short");
    assert_eq!(first_started(&project.run(&["-j1", "--format", "human"]).expect(0).stdout), "long");
}
