//! How steps end, and that nothing of them outlives their end.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use hm_exec::runner::{CancelReason, RunnerErrorKind, StepRunner};

use super::harness::{Ask, Bench, eventually, is_asleep, is_running, marker};

/// Starts processes that do not want to end, in every way that a shell knows.
fn stubborn(marker: &str) -> String {
    format!(
        "trap '' TERM INT HUP; setsid sh -c \"trap '' TERM; sleep {marker} & sleep {marker}\" & \
         nohup sleep {marker} >/dev/null 2>&1 & (sleep {marker} &) ; "
    )
}

#[tokio::test]
async fn a_command_that_dies_of_a_signal_exits_128_and_the_signal() {
    let bench = Bench::new();
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("SEGV", 139), ("INT", 130)] {
        let mut run = bench.run();
        let result = bench.step(&mut run, Ask::new(format!("kill -{signal} $$"))).await.unwrap();
        assert_eq!((result.exit_code, result.committed_snapshot), (code, None), "{signal}");
    }
}

#[tokio::test]
async fn a_background_process_ends_with_the_command() {
    let (bench, marker) = (Bench::new(), marker());
    let started = Instant::now();
    let (code, output) = bench.sh(&format!("{} echo done", stubborn(&marker))).await;
    assert_eq!((code, output.as_str()), (0, "done\n"));
    assert!(!is_running(&marker));
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn cancelling_terminates_with_grace_then_kills() {
    let (bench, marker) = (Bench::new(), marker());
    // With grace: the command cleans up, and is waited for.
    let mut run = bench.run();
    let ctx = run.ctx.clone();
    let input = run.input(Ask::new(format!("trap 'echo cleaned up; exit 0' TERM; echo ready; sleep {marker} & wait")));
    let watch = async {
        eventually("the command runs", || is_asleep(&marker)).await;
        ctx.interrupt(CancelReason::Cancelled);
    };
    let (result, ()) = tokio::join!(bench.runner.execute(&run.ctx, input), watch);
    assert_eq!(result.unwrap_err().kind(), RunnerErrorKind::Cancelled);
    assert!(!is_running(&marker));
    assert_eq!(run.output().await, "ready\ncleaned up\n");

    // Without: every process that ignores TERM is killed.
    let mut run = bench.run();
    let ctx = run.ctx.clone();
    let input = run.input(Ask::new(format!("{} while :; do sleep {marker}; done", stubborn(&marker))));
    let watch = async {
        eventually("the command runs", || is_asleep(&marker)).await;
        ctx.interrupt(CancelReason::TimedOut);
    };
    let (result, ()) = tokio::join!(bench.runner.execute(&run.ctx, input), watch);
    assert_eq!(result.unwrap_err().kind(), RunnerErrorKind::TimedOut);
    assert!(!is_running(&marker));
}

#[tokio::test]
async fn a_dropped_attempt_leaves_no_process() {
    let (bench, marker) = (Bench::new(), marker());
    let mut run = bench.run();
    let input = run.input(Ask::new(format!("{} sleep {marker}", stubborn(&marker))));
    tokio::select! {
        result = bench.runner.execute(&run.ctx, input) => panic!("ended: {result:?}"),
        () = eventually("the command runs", || is_asleep(&marker)) => {}
    }
    eventually("the step is gone", || !is_running(&marker)).await;
}

#[tokio::test]
async fn a_killed_helper_takes_its_steps_along_and_the_next_step_gets_another() {
    let (bench, marker) = (Bench::new(), marker());
    let mut run = bench.run();
    let input = run.input(Ask::new(format!("{} sleep {marker}", stubborn(&marker))));
    let kill = async {
        eventually("the command runs", || is_asleep(&marker)).await;
        kill_helpers_of(std::process::id(), &marker);
    };
    let (result, ()) = tokio::join!(bench.runner.execute(&run.ctx, input), kill);
    let error = result.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (RunnerErrorKind::Infrastructure, true), "{error}");
    eventually("the step is gone", || !is_running(&marker)).await;
    assert_eq!(bench.sh("echo again").await, (0, "again\n".into()));
}

/// Kills the zygote whose step has `marker`: the grandparent, by way of the step's pid 1, of a process with it.
fn kill_helpers_of(engine: u32, marker: &str) {
    let field = |pid: u32, name: &str| -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for mut pid in pids {
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if !cmdline.windows(marker.len()).any(|window| window == marker.as_bytes()) {
            continue;
        }
        while let Some(parent) = field(pid, "PPid:").filter(|parent| *parent > 1) {
            if parent == engine {
                let zygote = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
                let _ = rustix::process::kill_process(zygote, rustix::process::Signal::KILL);
                return;
            }
            pid = parent;
        }
    }
    panic!("no step of this process has {marker}");
}

/// Not a test: an engine in a process of its own, for the test below to kill.
#[tokio::test]
#[ignore = "run by another test, in a process of its own"]
async fn engine_to_be_killed() {
    let marker = std::env::var("HM_TEST_MARKER").unwrap();
    let bench = Bench::new();
    bench.sh(&format!("{} sleep {marker}", stubborn(&marker))).await;
}

#[tokio::test]
async fn a_killed_engine_leaves_no_process() {
    let marker = marker();
    let mut engine = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "sandbox::processes::engine_to_be_killed"])
        .env("HM_TEST_MARKER", &marker)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the command runs", || is_asleep(&marker)).await;
    engine.kill().unwrap();
    engine.wait().unwrap();
    eventually("the step is gone", || !is_running(&marker)).await;
}

#[tokio::test]
async fn many_steps_run_at_once() {
    let bench = Bench::new();
    let mut run = bench.run();
    let inputs: Vec<_> = (0..32).map(|_| run.input(Ask::new("echo here; touch f"))).collect();
    let results = futures_util::future::join_all(inputs.into_iter().map(|it| bench.runner.execute(&run.ctx, it))).await;
    assert!(results.into_iter().all(|result| result.unwrap().committed_snapshot.is_some()));
    assert_eq!(run.output().await, "here\n".repeat(32));
}
