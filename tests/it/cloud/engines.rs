//! Engines that behave in their own ways: limits, queues, lost workers, and no cancellation.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    process::Stdio,
    time::Duration,
};

use hm_exec::{
    runner::{CancelReason, RunnerErrorKind, StepRunner, cloud::CloudRunner},
    tree::mtime,
};
use rustix::{
    fs::{AtFlags, CWD, utimensat},
    process::{Pid, Signal, kill_process},
};
use serde_json::json;
use tonic::Code;

use crate::support::{
    images::Image,
    processes::{is_asleep, is_running, marker},
    programs::hm,
    project::{Ended, eventually},
    remote_engine::step_program,
    sandbox::{Ask, Bench},
    stock_engine::{Habits, StockEngine},
    stock_project::{Stock, ends, lines},
};

#[test]
fn a_step_with_a_limit_runs_on_an_engine_with_a_shorter_maximum() {
    let habits = Habits { max_timeout: Some(Duration::from_secs(1_200)), ..Habits::default() };
    let steps = [
        ("first", "echo first", json!({ "timeout_seconds": 20 })),
        ("second", "echo second", json!({ "timeout_seconds": 4_000_000 })),
    ];
    let Some(stock) = Stock::new(habits, &steps) else { return };
    let ended = stock.run(&["--remote-jobs", "1"]).expect(0);
    assert_eq!(lines(&ended), ["first", "second"]);
    assert_eq!(stock.engine.refused(), 1, "a longer limit is not tried again");
}

#[test]
fn a_limit_that_the_engine_accepts_is_sent() {
    let Some(stock) = Stock::new(Habits::buildbuddy(), &[("a", "true", json!({ "timeout_seconds": 20 }))]) else {
        return;
    };
    stock.run(&[]).expect(0);
    assert_eq!((stock.engine.refused(), stock.engine.timeouts()), (0, vec![Some(20 + 5 + 1_200)]));
}

#[test]
fn the_reason_of_a_failure_is_shown_even_if_its_output_does_not_exist() {
    let fails = Some((Code::Internal, "the disk quota of the worker is exceeded", u32::MAX));
    let habits = Habits { fails, ..Habits::nativelink() };
    let Some(stock) = Stock::new(habits, &[("a", "echo seen", json!({}))]) else { return };
    let ended = stock.run(&[]).expect(3);
    let (status, message) = &ends(&ended)[0];
    assert!(status == "infrastructure" && message.contains("the disk quota of the worker"), "{status}: {message}");
    assert_eq!(stock.engine.executed(), 1, "a verdict is not asked for again");
}

#[test]
fn a_failure_without_output_that_may_pass_is_tried_again() {
    let fails = Some((Code::Unavailable, "the worker was lost", 1));
    let habits = Habits { fails, ..Habits::nativelink() };
    let Some(stock) = Stock::new(habits, &[("a", "echo seen", json!({}))]) else { return };
    let ended = stock.run(&[]).expect(0);
    assert_eq!((lines(&ended), stock.engine.executed()), (vec!["seen".to_owned()], 2));
}

#[test]
fn the_output_of_a_step_that_the_engine_failed_is_shown() {
    let fails = Some((Code::Internal, "why", u32::MAX));
    let Some(stock) = Stock::new(Habits { fails, ..Habits::default() }, &[("a", "echo seen", json!({}))]) else {
        return;
    };
    assert_eq!(lines(&stock.run(&[]).expect(3)), ["seen"]);
}

#[test]
fn more_steps_are_in_flight_than_a_connection_may_have_calls() {
    /// No step is answered before so many wait. The first one is run, and the others get its result.
    const STEPS: usize = 150;
    let habits = Habits { replays: STEPS, max_calls: Some(100), ..Habits::default() };
    let Some(stock) = Stock::new(habits, &[("first", "true", json!({}))]) else { return };
    stock.run(&[]).expect(0);
    let commands: Vec<_> = (0..STEPS).map(|step| (format!("s{step}"), format!(": {step}"))).collect();
    let steps: Vec<_> = commands.iter().map(|(key, command)| (&**key, &**command, json!({}))).collect();
    stock.write(&steps);
    let count = || {
        let ((received, sent), calls) = (stock.engine.traffic().bytes(), stock.engine.traffic().calls());
        (calls, received + sent)
    };
    let (calls, bytes) = count();
    stock.run(&["--remote-jobs", &STEPS.to_string()]).expect(0);
    assert_eq!(stock.engine.executed(), 1);
    let steps = STEPS as u64;
    let (calls, bytes) = ((count().0 - calls) / steps, (count().1 - bytes) / steps);
    assert!(calls <= 5 && bytes < 10_000, "{calls} calls and {bytes} bytes a step");
}

#[test]
fn the_time_in_the_engines_queue_does_not_count() {
    let names = ["a", "b", "c", "d"];
    let steps = names.map(|name| (name, "sleep 2", json!({ "timeout_seconds": 6 })));
    let Some(stock) = Stock::new(Habits { slots: 1, ..Habits::default() }, &steps) else { return };
    let ended = stock.run(&[]).expect(0);
    assert!(ends(&ended).iter().all(|(status, _)| status == "passed"), "{ended:?}");
    assert_eq!(stock.engine.executed(), 4);
}

#[test]
fn a_step_whose_workers_are_lost_has_its_whole_limit_again() {
    let steps = [("a", "sleep 2; echo ended; sleep 1", json!({ "timeout_seconds": 7 }))];
    let Some(stock) = Stock::new(Habits { loses_workers: 3, ..Habits::default() }, &steps) else { return };
    let ended = stock.run(&[]).expect(0);
    assert_eq!((lines(&ended), stock.engine.executed()), (vec!["ended".to_owned()], 4));
}

#[test]
fn the_engines_own_limit_is_a_verdict() {
    for habits in [Habits::default(), Habits::nativelink()] {
        let shows = !habits.zero_digests;
        let habits = Habits { max_timeout: Some(Duration::from_secs(5)), ..habits };
        let Some(stock) = Stock::new(habits, &[("a", "echo begun; sleep 1000", json!({}))]) else { return };
        let ended = stock.run(&[]);
        let (status, message) = &ends(&ended)[0];
        assert_eq!((&**status, stock.engine.executed()), ("timed_out", 1), "{ended:?}");
        assert!(message.contains("the engine's time limit") && message.contains("Command timed out"), "{message}");
        let expected: &[&str] = if shows { &["begun"] } else { &[] };
        assert_eq!(lines(&ended), expected);
    }
}

#[test]
fn a_step_that_timed_out_shows_its_output_where_nothing_can_be_cancelled() {
    let command = "echo begun; trap 'echo ended; exit' TERM; while :; do sleep 0.1; done";
    let steps = [("a", command, json!({ "timeout_seconds": 3 }))];
    let Some(stock) = Stock::new(Habits { cancels: false, ..Habits::default() }, &steps) else { return };
    let ended = stock.run(&[]);
    let (status, message) = &ends(&ended)[0];
    assert_eq!(
        (&**status, &lines(&ended)[..2]),
        ("timed_out", &["begun".to_owned(), "ended".to_owned()][..]),
        "{message}"
    );
    assert!(message.contains("time limit of 3s"), "{message}");
}

#[tokio::test]
async fn a_time_limit_waits_for_the_output_where_nothing_can_be_cancelled() {
    let Some(program) = step_program() else { return };
    let engine = StockEngine::start(Habits { cancels: false, shows_output: true, ..Habits::default() });
    let bench = Bench::new();
    let layout = bench.path().join("image");
    Image::shell().write_oci(&layout, "it");
    let builder = CloudRunner::builder().endpoint(engine.options()).store(bench.store.clone()).helper(hm());
    let runner = builder.step_program(program).build();
    let mut run = bench.run();
    run.ctx.grace = Duration::from_secs(60);
    let ask = Ask::new("echo begun; sleep 0.5; echo ended").image(format!("oci:{}:it", layout.display()));
    let (input, ctx) = (run.input(ask), run.ctx.clone());
    let (ended, ()) = tokio::join!(runner.execute(&ctx, input), async {
        run.says("begun").await;
        ctx.interrupt(CancelReason::TimedOut);
    });
    assert_eq!(ended.unwrap().exit_code, 0);
    assert!(run.output().await.contains("begun\nended\n"));
}

#[test]
fn an_interrupted_step_that_continues_says_so() {
    let marker = marker();
    let steps = [("a", &*format!("sleep {marker}"), json!({}))];
    let habits = Habits { abandons_after: Some(Duration::from_millis(300)), ..Habits::nativelink() };
    let Some(stock) = Stock::new(habits, &steps) else { return };
    let child = stock.hm(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the step runs", || is_asleep(&marker));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = Ended::from(child.wait_with_output().unwrap()).expect(130);
    let said = lines(&ended);
    assert!(said.iter().any(|line| line.contains("cannot cancel steps: this one continues")), "{said:?}");
    // No client waits for it any longer.
    eventually("the engine ends it", || !is_running(&marker) && !stock.engine.is_busy());
}

#[test]
fn a_step_whose_client_was_killed_is_ended_by_the_engine() {
    let marker = marker();
    let steps = [("a", &*format!("sleep {marker}"), json!({}))];
    let habits = Habits { abandons_after: Some(Duration::from_millis(300)), ..Habits::nativelink() };
    let Some(stock) = Stock::new(habits, &steps) else { return };
    let mut child = stock.hm(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the step runs", || is_asleep(&marker));
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the engine ends it", || !is_running(&marker) && !stock.engine.is_busy());
}

#[tokio::test]
async fn a_step_that_waits_for_a_worker_says_so_with_what_it_asks_for() {
    let Some(program) = step_program() else { return };
    let engine = StockEngine::start(Habits { lists: vec!["pool".into()], ..Habits::default() });
    let bench = Bench::new();
    let layout = bench.path().join("image");
    Image::shell().write_oci(&layout, "it");
    let builder = CloudRunner::builder().endpoint(engine.options()).store(bench.store.clone()).helper(hm());
    let builder = builder.platform_property("pool", "large").queue_notice(Duration::from_millis(100));
    let runner = builder.step_program(program).build();
    let mut run = bench.run();
    let input = run.input(Ask::new("true").image(format!("oci:{}:it", layout.display())));
    let ctx = run.ctx.clone();
    let said = async {
        let line = run.says("for a worker").await;
        ctx.cancel.cancel();
        line
    };
    let (ended, line) = tokio::join!(runner.execute(&ctx, input), said);
    assert!(line.contains("pool=large") && line.contains(&engine.url()), "{line}");
    assert_eq!(ended.unwrap_err().kind(), RunnerErrorKind::Cancelled);
    assert_eq!(engine.executed(), 0);
}

#[test]
fn the_hint_for_an_engine_that_is_down_is_not_to_name_one() {
    let Some(stock) = Stock::new(Habits::default(), &[("a", "true", json!({}))]) else { return };
    let url = stock.engine.url();
    let Stock { engine, project } = stock;
    drop(engine);
    let ended =
        Ended::of(&mut project.hm(&["run", "--runner", "cloud", "--image", "host=x", "--remote", &url])).expect(3);
    assert!(ended.stderr.contains("start the engine") && !ended.stderr.contains("set --remote"), "{ended:?}");
    let ended = Ended::of(&mut project.hm(&["run", "--runner", "cloud", "--image", "host=x"])).expect(3);
    assert!(ended.stderr.contains("set --remote"), "{ended:?}");
}

#[test]
fn the_files_of_a_failed_step_are_kept_on_request() {
    for (command, more, code) in [
        ("echo left > report; exit 7", json!({}), 1),
        ("echo left > report; sleep 1000", json!({ "timeout_seconds": 4 }), 1),
    ] {
        let Some(stock) = Stock::new(Habits::nativelink(), &[("a", command, more)]) else { return };
        stock.run(&[]).expect(code);
        Ended::of(&mut stock.project.hm(&["cp", "a:report", "none"])).expect(2);
        stock.run(&["--keep"]).expect(code);
        Ended::of(&mut stock.project.hm(&["cp", "a:report", "copy"])).expect(0);
        assert_eq!(fs::read_to_string(stock.project.dir.join("copy")).unwrap(), "left\n");
    }
}

#[tokio::test]
async fn modes_and_times_of_the_source_do_not_depend_on_the_engine() {
    for habits in [Habits::nativelink(), Habits::buildbuddy(), Habits::default()] {
        let Some(program) = step_program() else { return };
        let engine = StockEngine::start(habits);
        let bench = Bench::new();
        let source = bench.source();
        fs::create_dir_all(source.join("private/shared")).unwrap();
        for (path, content, mode) in [
            ("plain", "content", 0o644),
            ("secret", "content", 0o600),
            ("script", "#!/bin/sh", 0o755),
            ("empty script", "", 0o755),
            ("private/shared/read only", "content", 0o444),
            ("private/group", "content", 0o664),
        ] {
            fs::write(source.join(path), content).unwrap();
            fs::set_permissions(source.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("plain", source.join("private/link")).unwrap();
        fs::set_permissions(source.join("private"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(source.join("private/shared"), fs::Permissions::from_mode(0o1777)).unwrap();
        let old = |path: &str, seconds: i64| {
            let times = mtime(seconds, 5);
            utimensat(CWD, source.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        };
        for (path, seconds) in [("plain", 1_000_000_000), ("private/link", 1_100_000_000), ("private", 1_200_000_000)] {
            old(path, seconds);
        }
        let layout = bench.path().join("image");
        Image::shell().write_oci(&layout, "it");
        let look = "find . | sort | while read f; do stat -c '%n %F %a %Y' \"$f\"; done; echo new > private/shared/new; cat plain";
        let ask = || Ask::new(look).image(format!("oci:{}:it", layout.display()));
        let mut run = bench.run();
        bench.step(&mut run, ask()).await.unwrap();
        let expected = run.output().await;
        let seen =
            |output: &str| output.lines().filter(|it| !it.contains("unpack")).map(str::to_owned).collect::<Vec<_>>();
        let builder = CloudRunner::builder().endpoint(engine.options()).store(bench.store.clone()).helper(hm());
        let runner = builder.step_program(program).build();
        let mut run = bench.run();
        let input = run.input(ask());
        runner.execute(&run.ctx, input).await.unwrap_or_else(|error| panic!("{}", error.to_line()));
        assert_eq!(seen(&run.output().await), seen(&expected));
        assert!(expected.contains("./private directory 700 ") && expected.contains("file 755 "));
        engine.assert_inputs_are_intact();
    }
}
