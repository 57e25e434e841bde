//! Failures that are allowed or repeated: what follows for other steps, the verdict, events and the cache.

use hm_exec::{
    BuildEvent, BuildOutcome, BuildStatus, Plan,
    StepStatus::{Canceled, Failed, FailedAllowed, Flaky, Infrastructure, OutOfMemory, Passed, Skipped, TimedOut},
};

use super::{exit, graph, kinds, step_ends};
use crate::support::{
    graphs::Graph,
    scripted::{Act, PASS, Scripted, request, run, statuses},
};

/// Runs a graph whose first step has these arguments.
async fn build(
    runner: &Scripted,
    graph: &Graph,
    args: &str,
    change: impl FnOnce(&mut hm_exec::RunRequest),
) -> (Vec<BuildEvent>, BuildOutcome) {
    let args = format!(r#","runner_args":{args},"timeout_seconds":9"#);
    let json = graph.to_ir_json_with(|step| if step == 0 { args.clone() } else { String::new() });
    let mut request = request(graph);
    request.plan = Plan::parse(json).unwrap();
    change(&mut request);
    run(runner.engine(), request).await.unwrap()
}

/// Returns attempt, delay, exit code and message of each retry.
fn retries(events: &[BuildEvent]) -> Vec<(u32, u64, Option<i32>, &str)> {
    let retry = |event: &BuildEvent| matches!(event, BuildEvent::StepRetry { .. });
    let retries = events.iter().filter(|event| retry(event)).map(|event| match event {
        BuildEvent::StepRetry { attempt, backoff_ms, exit_code, message, .. } => {
            (*attempt, *backoff_ms, *exit_code, &**message)
        }
        _ => unreachable!(),
    });
    retries.collect()
}

#[tokio::test(start_paused = true)]
async fn an_allowed_failure_lets_dependents_run_and_skips_what_builds_in_it() {
    let runner = Scripted::new([("s0", exit(7, 0))]);
    // s1 depends on s0, s2 builds in it, s3 depends on s2, s4 on both s1 and s3.
    let graph = graph(6, &[(0, 1, false), (0, 2, true), (2, 3, false), (1, 4, false), (3, 4, false), (1, 5, true)]);
    let (events, outcome) = build(&runner, &graph, r#"{"soft_fail":true}"#, |_| {}).await;
    assert_eq!(outcome.status, BuildStatus::Passed);
    assert_eq!(statuses(&outcome), [FailedAllowed, Passed, Skipped, Skipped, Skipped, Passed]);
    assert_eq!((outcome.steps[0].exit_code, outcome.steps[0].attempts), (Some(7), 1));
    assert!(step_ends(&events, &outcome).contains(&("s0", 7, 1, "")));
    assert!(!kinds(&events).contains(&"chain_failed".to_owned()));
    let json = serde_json::to_value(&outcome).unwrap();
    assert_eq!(json["steps"][0]["status"], "failed_allowed");
}

#[tokio::test(start_paused = true)]
async fn codes_that_are_not_listed_fail() {
    for (args, code, status, verdict) in [
        ("[7]", 7, FailedAllowed, BuildStatus::Passed),
        ("[1,7,255]", 255, FailedAllowed, BuildStatus::Passed),
        ("[8]", 7, Failed, BuildStatus::Failed),
        ("[]", 7, Failed, BuildStatus::Failed),
        ("false", 7, Failed, BuildStatus::Failed),
        ("[8]", 8 + 256, Failed, BuildStatus::Failed),
    ] {
        let runner = Scripted::new([("s0", exit(code, 0))]);
        let (_, outcome) = build(&runner, &graph(1, &[]), &format!(r#"{{"soft_fail":{args}}}"#), |_| {}).await;
        assert_eq!((statuses(&outcome), outcome.status), (vec![status], verdict), "{args}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_and_a_shortage_of_memory_are_allowed_by_their_codes() {
    for (act, args, status, code) in [
        (Act::Linger { ms: 5 }, "true", FailedAllowed, 124),
        (Act::Linger { ms: 5 }, "[124]", FailedAllowed, 124),
        (Act::Linger { ms: 5 }, "[137]", TimedOut, 124),
        (Act::Swell, "true", FailedAllowed, 137),
        (Act::Swell, "[137]", FailedAllowed, 137),
        (Act::Swell, "[124]", OutOfMemory, 137),
    ] {
        let runner = Scripted::new([("s0", vec![act])]);
        let (events, outcome) =
            build(&runner, &graph(1, &[]), &format!(r#"{{"soft_fail":{args},"retries":3}}"#), |_| {}).await;
        assert_eq!(statuses(&outcome), [status], "{args}");
        let ends = step_ends(&events, &outcome);
        assert_eq!((ends[0].1, ends[0].2), (code, 1), "retries are for exit codes");
        assert!(!ends[0].3.is_empty(), "the reason is reported");
    }
}

#[tokio::test(start_paused = true)]
async fn infrastructure_is_never_allowed() {
    for act in [Act::Break, Act::BreakForGood, Act::Panic] {
        let runner = Scripted::new([("s0", vec![act])]);
        let (_, outcome) = build(&runner, &graph(1, &[]), r#"{"soft_fail":true,"retries":2}"#, |_| {}).await;
        assert_eq!((statuses(&outcome), outcome.status), (vec![Infrastructure], BuildStatus::Infrastructure));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hard_failure_still_fails_a_build_with_an_allowed_one() {
    let runner = Scripted::new([("s0", exit(1, 0)), ("s2", exit(1, 5))]);
    let graph = graph(4, &[(0, 1, true), (2, 3, false)]);
    let (_, outcome) =
        build(&runner, &graph, r#"{"soft_fail":true}"#, |request| request.options.keep_going = true).await;
    assert_eq!(statuses(&outcome), [FailedAllowed, Skipped, Failed, Skipped]);
    assert_eq!(outcome.status, BuildStatus::Failed);
}

#[tokio::test(start_paused = true)]
async fn a_pass_after_a_failure_is_flaky_everywhere() {
    let runs = tempfile::tempdir().unwrap();
    let failing = |code| Act::Exit { code, after_ms: 10 };
    let runner = Scripted::new([("s0", vec![failing(7), failing(9), PASS])]);
    let graph = Graph::chain(2);
    let json =
        graph.to_ir_json_with(|step| if step == 0 { r#","runner_args":{"retries":2}"#.into() } else { String::new() });
    let mut request = request(&graph);
    request.plan = Plan::parse(json).unwrap();
    let (events, outcome) = run(runner.engine().runs_dir(runs.path()), request).await.unwrap();
    assert_eq!((outcome.status, statuses(&outcome)), (BuildStatus::Passed, vec![Flaky, Passed]));
    let first = &outcome.steps[0];
    assert_eq!((first.exit_code, first.attempts, first.duration_ms), (Some(0), 3, 20));
    let expected = [
        (1, 0, Some(7), "the command exited with 7; retry 1 of 2"),
        (2, 0, Some(9), "the command exited with 9; retry 2 of 2"),
    ];
    assert_eq!(retries(&events), expected);
    let dir = runs.path().join(outcome.build.run_id.to_string());
    let kept: Vec<BuildEvent> = hm_exec::event::open(&dir).unwrap().map(Result::unwrap).collect();
    assert_eq!(kept, events);
    let records = hm_exec::event::step_records(&dir).unwrap();
    assert_eq!((records[0].status, records[0].attempts), (Some(Flaky), 3));
    assert_eq!(records[0].failed_attempts, [(1, 7), (2, 9)]);
    let seen: Vec<_> = runner.seen().into_iter().map(|seen| (seen.key, seen.at.as_millis())).collect();
    assert_eq!(seen, [("s0".into(), 0), ("s0".into(), 10), ("s0".into(), 20), ("s1".to_owned(), 20)]);
}

#[tokio::test(start_paused = true)]
async fn retries_start_from_the_same_snapshot_and_the_last_failure_counts() {
    let runner = Scripted::new([("s1", exit(3, 1))]);
    let graph = Graph::chain(3);
    let json =
        graph.to_ir_json_with(|step| if step == 1 { r#","runner_args":{"retries":2}"#.into() } else { String::new() });
    let mut request = request(&graph);
    request.plan = Plan::parse(json).unwrap();
    let (events, outcome) = run(runner.engine(), request).await.unwrap();
    assert_eq!(statuses(&outcome), [Passed, Failed, Skipped]);
    assert_eq!((outcome.steps[1].attempts, outcome.steps[1].exit_code), (3, Some(3)));
    assert!(step_ends(&events, &outcome).contains(&("s1", 3, 3, "")));
    assert_eq!(retries(&events).len(), 2);
    let parents: Vec<_> =
        runner.seen().into_iter().filter(|seen| seen.key == "s1").map(|seen| seen.parent.unwrap()).collect();
    assert_eq!(parents, ["scripted:s0", "scripted:s0", "scripted:s0"]);
}

#[tokio::test(start_paused = true)]
async fn retries_of_the_command_and_of_the_infrastructure_are_counted_apart() {
    let failing = Act::Exit { code: 1, after_ms: 0 };
    let runner = Scripted::new([("s0", vec![Act::Break, failing.clone(), Act::Break, failing, PASS])]);
    let (events, outcome) = build(&runner, &graph(1, &[]), r#"{"retries":2}"#, |_| {}).await;
    assert_eq!((outcome.status, statuses(&outcome)), (BuildStatus::Passed, vec![Flaky]));
    let delays: Vec<_> = retries(&events).iter().map(|retry| (retry.1, retry.2)).collect();
    assert_eq!(delays, [(100, None), (0, Some(1)), (200, None), (0, Some(1))]);
    // A pass after trouble of the infrastructure alone is an ordinary one.
    let runner = Scripted::new([("s0", vec![Act::Break, PASS])]);
    let (_, outcome) = build(&runner, &graph(1, &[]), r#"{"retries":2}"#, |_| {}).await;
    assert_eq!(statuses(&outcome), [Passed]);
}

#[tokio::test(start_paused = true)]
async fn a_stopping_build_retries_and_allows_nothing() {
    // s0 is still running when s1 fails, and then exits by itself.
    let stubborn = vec![Act::OnceTold(Box::new(Act::Exit { code: 1, after_ms: 0 }))];
    let runner = Scripted::new([("s0", stubborn), ("s1", exit(1, 5))]);
    let (events, outcome) = build(&runner, &graph(2, &[]), r#"{"retries":5,"soft_fail":true}"#, |_| {}).await;
    assert_eq!((outcome.status, statuses(&outcome)), (BuildStatus::Failed, vec![Failed, Failed]));
    assert_eq!(retries(&events), []);
    // A step that waits for a slot to run again is cancelled by the stop: s3 has the longer path, and takes
    // the slot at 5 ms; s2 fails at 8 ms.
    let acts = [("s0", exit(1, 5)), ("s1", exit(0, 3)), ("s2", exit(1, 5)), ("s3", exit(0, 100))];
    let runner = Scripted::new(acts);
    let engine = runner.engine().parallelism(2.try_into().unwrap());
    let pipeline = graph(6, &[(1, 2, false), (1, 3, false), (2, 4, false), (3, 5, false)]);
    let json = pipeline
        .to_ir_json_with(|step| if step == 0 { r#","runner_args":{"retries":5}"#.into() } else { String::new() });
    let mut request = request(&pipeline);
    request.plan = Plan::parse(json).unwrap();
    let (events, outcome) = run(engine, request).await.unwrap();
    assert_eq!(outcome.status, BuildStatus::Failed);
    assert_eq!(statuses(&outcome), [Canceled, Passed, Failed, Canceled, Skipped, Skipped]);
    assert_eq!((retries(&events).len(), outcome.steps[0].attempts), (1, 1));
}
