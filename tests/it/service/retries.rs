//! Jobs that the service runs again.

use hm_exec::{BuildEvent, BuildOutcome, BuildStatus, StepStatus};

use super::{Here, output};
use crate::support::stand_in::{Job, Retry, Script};

/// A job that fails with 7 after a line, and then runs again with another one and ends in a state.
fn twice(ends: &'static str) -> Job {
    // Looks at the failed job, and then at the one that waits: the first attempt's log ends between them.
    let states = ["running", "failed", "failed", "failed", "scheduled", "scheduled", "running", ends];
    Job { exit_code: Some(7), ..Job::is("a", &states) }.out("first\n").retried().out("second\n")
}

/// Returns the events of the only step, in short.
fn course(events: &[BuildEvent]) -> Vec<String> {
    let short = |event: &BuildEvent| {
        Some(match event {
            BuildEvent::StepStart { attempt, .. } => format!("start {attempt}"),
            BuildEvent::StepLog { line, .. } => line.clone(),
            BuildEvent::StepRetry { attempt, message, exit_code, .. } => {
                format!("retry {attempt}: {message}, {exit_code:?}")
            }
            BuildEvent::StepEnd { attempt, status, exit_code, .. } => format!("end {attempt}: {status:?}, {exit_code}"),
            BuildEvent::ChainFailed { message, .. } => format!("chain: {message}"),
            _ => return None,
        })
    };
    events.iter().filter_map(short).collect()
}

/// Returns the status of a build, and the status, the exit code and the attempts of its only step.
fn result(outcome: &BuildOutcome) -> (BuildStatus, StepStatus, Option<i32>, u32) {
    let [step] = &outcome.steps[..] else { panic!("{:?}", outcome.steps) };
    (outcome.status, step.status, step.exit_code, step.attempts)
}

#[tokio::test]
async fn a_job_that_passes_at_the_second_attempt_is_flaky_however_the_service_runs_it_again() {
    let same_log = twice("passed");
    let retry = Retry { begins_anew: true, ..same_log.retry.unwrap() };
    let new_log = Job { retry: Some(retry), ..same_log.clone() };
    let first = Job { exit_code: Some(7), ..Job::is("a", &["running", "failed"]) }.out("first\n").retried();
    let second = Job { appears: 6, ..Job::passes("a").out("second\n") };
    let passes = |jobs: &[Job]| Script { state: Some("passed"), ..Script::new(jobs.to_vec()) };
    for script in
        [passes(&[same_log]), passes(&[new_log]), passes(&[first.clone(), second.clone()]), passes(&[second, first])]
    {
        let here = Here::new();
        let about = format!("{script:?}");
        here.stand_in.script(script);
        let (events, outcome) = here.run(&["a"]).await;
        let expected =
            ["start 1", "first", "retry 1: the command exited with 7, Some(7)", "start 2", "second", "end 2: Flaky, 0"];
        assert_eq!(course(&events), expected, "{about}");
        assert_eq!(result(&outcome.unwrap()), (BuildStatus::Passed, StepStatus::Flaky, Some(0), 2));
    }
}

#[tokio::test]
async fn a_job_whose_attempts_all_fail_has_failed_once() {
    let here = Here::new();
    here.stand_in.script(Script::new([twice("failed")]));
    let (events, outcome) = here.run(&["a"]).await;
    let course = course(&events);
    let end = ["end 2: Failed, 7", "chain: failed with exit code 7"];
    assert_eq!(&course[course.len() - 2..], end, "{course:?}");
    assert_eq!(course.iter().filter(|it| it.starts_with("retry")).count(), 1, "{course:?}");
    assert_eq!(result(&outcome.unwrap()), (BuildStatus::Failed, StepStatus::Failed, Some(7), 2));
}

#[tokio::test]
async fn a_failure_between_two_looks_is_noticed_and_no_line_is_lost() {
    let here = Here::new();
    let job =
        Job { states: vec!["running", "running", "scheduled", "running", "running", "passed"], ..twice("passed") };
    here.stand_in.script(Script::new([job]));
    let (events, outcome) = here.run(&["a"]).await;
    assert_eq!(output(&events, "a"), ["first", "second"]);
    assert!(course(&events).contains(&"retry 1: it failed, None".to_owned()), "{:?}", course(&events));
    assert_eq!(result(&outcome.unwrap()), (BuildStatus::Passed, StepStatus::Flaky, Some(0), 2));
}

#[tokio::test]
async fn a_failure_that_may_be_retried_ends_when_the_build_does() {
    let here = Here::new();
    // The service does not run it again.
    let failed = Job { exit_code: Some(7), ..Job::is("a", &["running", "failed"]) }.out("first\n").retried();
    let beside = Job::is("b", &["running", "running", "running", "running", "passed"]);
    here.stand_in.script(Script::new([failed, beside]));
    let (events, outcome) = here.run(&["a", "b"]).await;
    let ends = events.iter().filter_map(|event| match event {
        BuildEvent::StepEnd { status, attempt, .. } => Some((*status, *attempt)),
        _ => None,
    });
    let mut ends: Vec<_> = ends.collect();
    ends.sort();
    assert_eq!(ends, [(StepStatus::Passed, 1), (StepStatus::Failed, 1)]);
    assert_eq!(outcome.unwrap().status, BuildStatus::Failed);
}
