//! Whole builds on a scripted runner and tokio's paused clock.

mod backends;
mod makespan;
mod outcomes;
mod random;
mod scale;
mod silent;
mod suspended;

use std::{fs, num::NonZeroUsize, time::Duration};

use hm_exec::{
    BackendError, BuildEvent, BuildOutcome, BuildStatus, Engine, ExecutionBackend, ExecutorInput, Plan, StepResult,
    StepStatus::{Canceled, Failed, Infrastructure, OutOfMemory, Passed, Skipped, TimedOut},
    runner::{ArtifactRef, Pool, Probe, RunnerError, RunnerRegistry, RunnerSet, StepContext, StepRunner},
};
use tokio::time::Instant;

use crate::support::{
    graphs::Graph,
    scripted::{Act, PASS, Runners, Scripted, json_lines, request, run, statuses},
};

/// A runner that leaves a file for the user, and passes, or fails if the key says so.
#[derive(Debug)]
struct Leaves;

impl StepRunner for Leaves {
    const NAME: &'static str = "leaves";

    async fn execute(&self, _: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        let key = format!("out/{}.xml", input.step.key);
        let artifacts = vec![ArtifactRef { key, mime: "text/xml".into(), size_bytes: 7 }];
        let mut result = StepResult::exited(i32::from(*input.step.key == *"s1"));
        result.artifacts = artifacts;
        Ok(result)
    }
}

#[tokio::test]
async fn artifacts_are_in_the_events_the_journal_and_the_outcome_of_passed_and_failed_steps() {
    let runs = tempfile::tempdir().unwrap();
    let mut registry = RunnerRegistry::new();
    registry.register(std::sync::Arc::new(Leaves), true);
    let engine = Engine::builder(registry).runs_dir(runs.path());
    let mut request = request(&Graph { len: 2, edges: vec![] });
    request.options.keep_going = true;
    let (events, outcome) = run(engine, request).await.unwrap();
    assert_eq!(statuses(&outcome), [Passed, Failed]);
    let of = |events: &[BuildEvent]| {
        let artifacts = events.iter().filter_map(|event| match event {
            BuildEvent::StepEnd { artifacts, .. } => Some(artifacts.clone()),
            _ => None,
        });
        let mut all: Vec<_> = artifacts.flatten().map(|it| (it.key, it.mime, it.size_bytes)).collect();
        all.sort_unstable();
        all
    };
    let leaves = |key: &str| (format!("out/{key}.xml"), "text/xml".to_owned(), 7);
    assert_eq!(of(&events), [leaves("s0"), leaves("s1")]);
    let dir = runs.path().join(outcome.build.run_id.to_string());
    let kept: Vec<BuildEvent> = hm_exec::event::open(dir).unwrap().map(Result::unwrap).collect();
    assert_eq!(of(&kept), of(&events));
    let json = serde_json::to_value(&outcome).unwrap();
    assert_eq!(json["steps"][1]["artifacts"][0]["key"], "out/s1.xml");
}

/// Returns `(key, exit code, attempt, message)` of each `step_end`, in the order of the events.
fn step_ends<'a>(events: &'a [BuildEvent], outcome: &'a BuildOutcome) -> Vec<(&'a str, i32, u32, &'a str)> {
    let key = |id| outcome.steps.iter().find(|step| step.step_id == id).map_or("?", |step| &*step.key);
    let ends = events.iter().filter_map(|event| match event {
        BuildEvent::StepEnd { step_id, exit_code, attempt, message, .. } => {
            Some((key(*step_id), *exit_code, *attempt, message.as_deref().unwrap_or("")))
        }
        _ => None,
    });
    ends.collect()
}

fn kinds(events: &[BuildEvent]) -> Vec<String> {
    events.iter().map(|event| serde_json::to_value(event).unwrap()["kind"].as_str().unwrap().to_owned()).collect()
}

fn graph(len: usize, edges: &[(usize, usize, bool)]) -> Graph {
    Graph { len, edges: edges.to_vec() }
}

fn exit(code: i32, after_ms: u64) -> Vec<Act> {
    vec![Act::Exit { code, after_ms }]
}

#[tokio::test(start_paused = true)]
async fn each_child_boots_from_the_snapshot_of_its_builds_in_parent() {
    let runner = Scripted::new([]);
    let graph = graph(4, &[(0, 1, true), (1, 2, true), (0, 3, true), (2, 3, false)]);
    let (_, outcome) = run(runner.engine(), request(&graph)).await.unwrap();
    assert_eq!(outcome.status, BuildStatus::Passed);
    let mut seen: Vec<_> = runner.seen().into_iter().map(|seen| (seen.key, seen.parent, seen.commits)).collect();
    seen.sort();
    let expect = |key: &str, parent: Option<&str>, commits| (key.to_owned(), parent.map(str::to_owned), commits);
    assert_eq!(
        seen,
        [
            expect("s0", None, true),
            expect("s1", Some("scripted:s0"), true),
            expect("s2", Some("scripted:s1"), false),
            expect("s3", Some("scripted:s0"), false),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_run_without_a_runs_dir_removes_only_its_own_files() {
    let mine = tempfile::Builder::new().prefix("hm-run-").tempdir().unwrap();
    fs::write(mine.path().join("thesis.txt"), "years of work").unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    fs::File::open(mine.path()).unwrap().set_modified(long_ago).unwrap();
    let (_, outcome) = run(Scripted::new([]).engine(), request(&Graph::chain(1))).await.unwrap();
    assert_eq!(outcome.status, BuildStatus::Passed);
    assert!(mine.path().join("thesis.txt").is_file());
}

#[tokio::test(start_paused = true)]
async fn events_come_in_order_and_each_step_ends_once() {
    let runner = Scripted::new([("s0", vec![Act::Print(b"one\ntwo")]), ("s1", exit(3, 10))]);
    let (events, outcome) = run(runner.engine(), request(&Graph::chain(3))).await.unwrap();
    assert_eq!(
        kinds(&events),
        [
            "build_start",
            "build_accepted",
            "step_queued",
            "step_queued",
            "step_queued",
            "step_start",
            "step_log",
            "step_log",
            "step_end",
            "step_start",
            "step_end",
            "chain_failed",
            "step_end",
            "build_end",
        ]
    );
    assert_eq!(step_ends(&events, &outcome), [("s0", 0, 1, ""), ("s1", 3, 1, ""), ("s2", -1, 0, "")]);
    assert_eq!(outcome.steps[1].exit_code, Some(3));
    assert_eq!((outcome.steps[1].duration_ms, outcome.steps[2].duration_ms), (10, 0));
    assert_eq!(outcome.finished_at - outcome.started_at, chrono::TimeDelta::milliseconds(10));
}

#[tokio::test(start_paused = true)]
async fn a_failure_cancels_running_steps_and_skips_the_others() {
    let runner = Scripted::new([("s0", exit(1, 10)), ("s1", vec![Act::Linger { ms: 5 }]), ("s2", exit(0, 5))]);
    let (events, outcome) = run(runner.engine(), request(&graph(5, &[(0, 3, true), (2, 4, false)]))).await.unwrap();
    assert_eq!(outcome.status, BuildStatus::Failed);
    assert_eq!(statuses(&outcome), [Failed, Canceled, Passed, Skipped, Passed]);
    assert_eq!(step_ends(&events, &outcome).last(), Some(&("s1", 130, 1, "")));
}

#[tokio::test(start_paused = true)]
async fn keep_going_skips_only_dependents_of_the_failed_step() {
    let runner = Scripted::new([("s0", exit(1, 10)), ("s1", exit(0, 20))]);
    let mut request = request(&graph(6, &[(0, 2, true), (2, 3, false), (1, 4, true), (4, 5, false), (3, 5, false)]));
    request.options.keep_going = true;
    let (_, outcome) = run(runner.engine(), request).await.unwrap();
    assert_eq!(outcome.status, BuildStatus::Failed);
    assert_eq!(statuses(&outcome), [Failed, Passed, Skipped, Skipped, Passed, Skipped]);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_times_out_is_cancelled_and_reported_as_timed_out() {
    let runner = Scripted::new([("s0", exit(0, 3_600_000)), ("s1", vec![Act::Linger { ms: 100 }])]);
    let json = graph(2, &[]).to_ir_json_with(|_| r#","timeout_seconds":7"#.to_owned());
    let mut request = request(&Graph::default());
    request.plan = Plan::parse(json).unwrap();
    request.options.keep_going = true;
    let (events, outcome) = run(runner.engine(), request).await.unwrap();
    assert_eq!(outcome.status, BuildStatus::Failed);
    assert_eq!(statuses(&outcome), [TimedOut, TimedOut]);
    let message = "the step's time limit of 7s was reached";
    assert_eq!(step_ends(&events, &outcome), [("s0", 124, 1, message), ("s1", 124, 1, message)]);
    assert_eq!((outcome.steps[0].duration_ms, outcome.steps[1].duration_ms), (7_000, 7_100));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_times_out_is_not_retried_whatever_its_runner_returns() {
    let runner = Scripted::new([("s0", vec![Act::OnceTold(Box::new(Act::Break)), PASS])]);
    let json = graph(1, &[]).to_ir_json_with(|_| r#","timeout_seconds":7"#.to_owned());
    let mut request = request(&Graph::default());
    request.plan = Plan::parse(json).unwrap();
    let (events, outcome) = run(runner.engine(), request).await.unwrap();
    assert_eq!((outcome.status, statuses(&outcome)), (BuildStatus::Failed, vec![TimedOut]));
    let message = "the step's time limit of 7s was reached; failed to reach the worker: no route";
    assert_eq!(step_ends(&events, &outcome), [("s0", 124, 1, message)]);
}

#[tokio::test(start_paused = true)]
async fn when_a_build_times_out_running_steps_time_out_and_the_rest_is_skipped() {
    let runner = Scripted::new([("s0", exit(0, 100)), ("s1", exit(0, 60_000)), ("s3", vec![Act::Break])]);
    let mut request = request(&graph(5, &[(0, 1, true), (1, 2, true)]));
    request.options.timeout = Some(Duration::from_millis(150));
    let (events, outcome) = run(runner.engine(), request).await.unwrap();
    assert_eq!(outcome.status, BuildStatus::TimedOut);
    // s3 is waiting for its second retry at that moment.
    assert_eq!(statuses(&outcome), [Passed, TimedOut, Skipped, TimedOut, Passed]);
    let ends = step_ends(&events, &outcome);
    assert!(ends.contains(&("s1", 124, 1, "the build's time limit was reached")), "{ends:?}");
    assert_eq!(outcome.finished_at - outcome.started_at, chrono::TimeDelta::milliseconds(150));
}

#[tokio::test(start_paused = true)]
async fn the_shorter_of_two_time_limits_applies_and_none_is_too_long() {
    let json = graph(1, &[]).to_ir_json().replacen('{', r#"{"timeout_seconds":4294967295,"#, 1);
    for (asked, verdict) in [(Duration::MAX, BuildStatus::Passed), (Duration::from_secs(59), BuildStatus::TimedOut)] {
        let runner = Scripted::new([("s0", exit(0, 60_000))]);
        let mut request = request(&Graph::default());
        request.plan = Plan::parse(json.as_str()).unwrap();
        request.options.timeout = Some(asked);
        let (_, outcome) = run(runner.engine(), request).await.unwrap();
        assert_eq!(outcome.status, verdict);
    }
}

#[tokio::test(start_paused = true)]
async fn infrastructure_errors_are_retried_after_100_and_200_milliseconds() {
    let runner = Scripted::new([("s0", vec![Act::Break, Act::Break, PASS]), ("s2", vec![Act::Break])]);
    let mut request = request(&graph(4, &[(0, 1, true), (2, 3, true)]));
    request.options.keep_going = true;
    let (events, outcome) = run(runner.engine(), request).await.unwrap();
    assert_eq!(outcome.status, BuildStatus::Infrastructure);
    assert_eq!(statuses(&outcome), [Passed, Passed, Infrastructure, Skipped]);
    assert_eq!(outcome.steps[0].attempts, 3);
    let starts: Vec<_> =
        runner.seen().into_iter().filter(|seen| seen.key == "s0").map(|seen| seen.at.as_millis()).collect();
    assert_eq!(starts, [0, 100, 300]);
    let retries = events.iter().filter_map(|event| match event {
        BuildEvent::StepRetry { attempt, backoff_ms, message, .. } => Some((*attempt, *backoff_ms, &**message)),
        _ => None,
    });
    let message = "failed to reach the worker: no route";
    assert_eq!(
        retries.collect::<Vec<_>>(),
        [(1, 100, message), (1, 100, message), (2, 200, message), (2, 200, message)]
    );
    assert!(step_ends(&events, &outcome).contains(&("s2", 3, 3, message)));
}

#[tokio::test(start_paused = true)]
async fn a_failed_command_takes_precedence_over_an_infrastructure_error() {
    let runner = Scripted::new([("s0", vec![Act::BreakForGood]), ("s1", vec![Act::Swell])]);
    let mut request = request(&graph(2, &[]));
    request.options.keep_going = true;
    let (events, outcome) = run(runner.engine(), request).await.unwrap();
    assert_eq!(outcome.status, BuildStatus::Failed);
    assert_eq!(statuses(&outcome), [Infrastructure, OutOfMemory]);
    let swelled = "the memory limit of 1 MiB was reached";
    assert_eq!(step_ends(&events, &outcome), [("s0", 3, 1, "no such device"), ("s1", 137, 1, swelled)]);
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_breaks_its_contract_is_an_infrastructure_error() {
    let runner = Scripted::new([("s0", vec![Act::Desert]), ("s1", vec![Act::Panic]), ("s2", vec![Act::OwnLimit])]);
    let mut request = request(&graph(3, &[]));
    request.options.keep_going = true;
    let (events, outcome) = run(runner.engine(), request).await.unwrap();
    assert_eq!(statuses(&outcome), [Infrastructure, Infrastructure, TimedOut]);
    assert_eq!(
        step_ends(&events, &outcome),
        [
            ("s1", 3, 1, "the runner panicked, which is a bug in the runner: scripted"),
            ("s2", 124, 1, "the time limit was reached"),
            ("s0", 3, 3, "the runner cancelled the step without a request"),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_ignores_its_token_is_dropped() {
    let runner = Scripted::new([("s0", vec![Act::Ignore])]);
    let begin = Instant::now();
    let (_, control) = runner.engine().build().unwrap().start(request(&Graph::chain(2))).await.unwrap().into_parts();
    tokio::time::sleep(Duration::from_secs(1)).await;
    control.cancel();
    let outcome = control.wait().await.unwrap();
    assert_eq!(outcome.status, BuildStatus::Canceled);
    assert_eq!(statuses(&outcome), [Canceled, Canceled]);
    assert_eq!(begin.elapsed().as_secs(), 1 + 2 + 10, "a second, the grace, and ten more");
    assert_eq!(runner.memory.lock().unwrap().dropped, ["s0"]);
}

#[tokio::test(start_paused = true)]
async fn a_build_cancelled_before_it_starts_runs_nothing() {
    let runner = Scripted::new([]);
    let (mut events, control) =
        runner.engine().build().unwrap().start(request(&Graph::chain(3))).await.unwrap().into_parts();
    control.cancel();
    let outcome = control.wait().await.unwrap();
    assert_eq!(outcome.status, BuildStatus::Canceled);
    assert_eq!(statuses(&outcome), [Canceled; 3]);
    assert_eq!(runner.seen(), []);
    let mut last = None;
    while let Some(event) = events.next().await {
        last = Some(event);
    }
    assert!(
        matches!(last, Some(BuildEvent::BuildEnd { status: BuildStatus::Canceled, exit_code: 130, .. })),
        "{last:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_build_ends_running_steps_as_cancelled() {
    let runner = Scripted::new([("s0", exit(0, 10)), ("s1", exit(0, 60_000)), ("s3", vec![Act::Break])]);
    let engine = runner.engine().build().unwrap();
    let (events, control) = engine.start(request(&graph(4, &[(0, 1, true), (1, 2, true)]))).await.unwrap().into_parts();
    drop(events);
    let cancel = control.cancel_token();
    let (outcome, ()) = tokio::join!(control.wait(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cancel.cancel();
        cancel.cancel();
    });
    let outcome = outcome.unwrap();
    assert_eq!(outcome.status, BuildStatus::Canceled);
    assert_eq!(statuses(&outcome), [Passed, Canceled, Canceled, Canceled]);
    assert_eq!((outcome.steps[1].duration_ms, outcome.steps[3].duration_ms), (40, 50));
}

#[tokio::test(start_paused = true)]
async fn cancelling_after_the_end_changes_nothing() {
    let runner = Scripted::new([]);
    let engine = runner.engine().build().unwrap();
    let (mut events, control) = engine.start(request(&Graph::chain(2))).await.unwrap().into_parts();
    while events.next().await.is_some() {}
    control.cancel();
    assert_eq!(control.wait().await.unwrap().status, BuildStatus::Passed);
}

#[tokio::test(start_paused = true)]
async fn a_build_continues_after_its_handle_is_dropped() {
    let runner = Scripted::new([("s1", exit(0, 1_000))]);
    drop(runner.engine().build().unwrap().start(request(&Graph::chain(3))).await.unwrap());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(runner.seen().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn snapshots_are_reaped_after_any_verdict_even_if_a_runner_hangs() {
    for (last, verdict) in [(PASS, BuildStatus::Passed), (Act::Exit { code: 1, after_ms: 0 }, BuildStatus::Failed)] {
        let mut runner = Scripted::new([("s2", vec![last])]);
        runner.reaping_hangs = true;
        let (_, outcome) = run(runner.engine(), request(&Graph::chain(4))).await.unwrap();
        assert_eq!(outcome.status, verdict);
        let expected = ["s0", "s1", "s2"].map(|key| ("scripted", format!("scripted:{key}")));
        let made = if verdict == BuildStatus::Passed { 3 } else { 2 };
        assert_eq!(runner.memory.lock().unwrap().reaped, expected[..made]);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_if_the_plan_is_invalid_or_a_runner_is_unusable() {
    let mut runner = Scripted::new([]);
    let mut misspelt = request(&Graph::chain(2));
    misspelt.options.runner = Some("scriptd".to_owned());
    let error = run(runner.engine(), misspelt).await.unwrap_err();
    assert!(matches!(error, BackendError::Invalid(_)), "{error:?}");

    runner.probe = Probe::unusable("no namespaces", "enable them");
    let error = run(runner.engine(), request(&Graph::chain(2))).await.unwrap_err();
    assert_eq!(error.to_string(), "runner `scripted` is not available: no namespaces; enable them");

    let error = Engine::builder(RunnerRegistry::new()).build().unwrap_err();
    assert!(matches!(error, BackendError::Composition(_)), "{error:?}");
    assert_eq!(runner.seen(), []);
}

#[tokio::test(start_paused = true)]
async fn local_steps_share_the_parallelism_and_a_separate_pool_has_its_own_limit() {
    let local = Scripted::new([]);
    let mut remote = Scripted::new([]);
    remote.pool = Pool::Own { limit: NonZeroUsize::new(5).unwrap() };
    let keys: Vec<_> = (0..20).map(|step| format!("s{step}")).collect();
    let mut runners = Runners { scripted: local.clone(), other: remote.clone() };
    for runner in [&mut runners.scripted, &mut runners.other] {
        runner.script = keys.iter().map(|key| (key.clone(), exit(0, 10))).collect();
    }
    let mut request = request(&Graph::default());
    let json = graph(20, &[])
        .to_ir_json_with(|step| if step % 2 == 0 { String::new() } else { r#","runner":"other""#.to_owned() });
    request.plan = Plan::parse(json).unwrap();
    let builder = Engine::builder(runners).parallelism(NonZeroUsize::new(3).unwrap());
    let (_, outcome) = run(builder, request).await.unwrap();
    assert_eq!(outcome.status, BuildStatus::Passed);
    assert_eq!(local.memory.lock().unwrap().most_running, 3);
    assert_eq!(remote.memory.lock().unwrap().most_running, 5);
}

#[tokio::test(start_paused = true)]
async fn the_longest_remaining_path_of_the_last_run_starts_first() {
    let runner = Scripted::new([]);
    let mut request = request(&graph(4, &[(1, 2, false)]));
    request.durations = [("s0", 1), ("s1", 1), ("s2", 5), ("s3", 9)]
        .map(|(key, seconds)| (key.into(), Duration::from_secs(seconds)))
        .into();
    run(runner.engine().parallelism(NonZeroUsize::MIN), request).await.unwrap();
    let order: Vec<_> = runner.seen().into_iter().map(|seen| seen.key).collect();
    assert_eq!(order, ["s3", "s1", "s2", "s0"]);
}

#[tokio::test(start_paused = true)]
async fn a_build_that_cannot_be_recorded_ends_with_an_infrastructure_error() {
    let runs_dir = tempfile::tempdir().unwrap();
    let runner = Scripted::new([("s0", exit(0, 10)), ("s1", vec![Act::Print(b"lost\n")]), ("s2", exit(0, 10))]);
    let request = request(&Graph::chain(4));
    let run_dir = runs_dir.path().join(request.run_id.unwrap().to_string());
    let engine = runner.engine().runs_dir(runs_dir.path()).build().unwrap();
    let (_events, control) = engine.start(request).await.unwrap().into_parts();
    assert!(run_dir.is_dir());
    fs::remove_dir_all(&run_dir).unwrap();
    let outcome = control.wait().await.unwrap();
    assert_eq!(outcome.status, BuildStatus::Infrastructure);
    assert_eq!(statuses(&outcome), [Passed, Passed, Canceled, Skipped]);
    let message = outcome.message.unwrap();
    assert!(message.starts_with("failed to record the run: "), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_repeated_build_gives_the_same_bytes_also_with_a_registry() {
    let graph = graph(7, &[(0, 1, true), (0, 2, true), (1, 3, false), (2, 3, true), (4, 5, true)]);
    let mut runs = Vec::new();
    for registry in [false, false, true] {
        let runner = Scripted::new([
            ("s0", vec![Act::Print(b"hello\nworld")]),
            ("s1", exit(0, 25)),
            ("s2", vec![Act::Break, PASS]),
            ("s4", exit(7, 300)),
            ("s6", vec![Act::Linger { ms: 3 }]),
        ]);
        let request = request(&graph);
        let (events, outcome) = if registry {
            let registry = Runners { scripted: runner.clone(), other: runner.clone() }.into_registry();
            run(Engine::builder(registry).parallelism(NonZeroUsize::new(4).unwrap()), request).await.unwrap()
        } else {
            run(runner.engine(), request).await.unwrap()
        };
        runs.push((json_lines(&events), serde_json::to_string(&outcome).unwrap()));
    }
    assert_eq!(runs[0], runs[1]);
    assert_eq!(runs[0], runs[2]);
}

#[tokio::test(start_paused = true)]
async fn the_engine_is_a_backend() {
    async fn start(backend: &impl ExecutionBackend) -> BuildStatus {
        assert_eq!(backend.name(), "local");
        assert!(backend.capabilities().honors_parallelism);
        let (_, control) = backend.start(request(&Graph::chain(1))).await.unwrap().into_parts();
        control.wait().await.unwrap().status
    }
    let engine = Scripted::new([]).engine().build().unwrap();
    assert_eq!(start(&engine).await, BuildStatus::Passed);
}
