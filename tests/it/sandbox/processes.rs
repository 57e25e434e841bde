//! Steps that cannot start, or that lose their engine or helper, and that no process of theirs remains. The
//! conformance suite tests steps that end by themselves or are ended.

use std::process::{Command, Stdio};

use hm_exec::runner::{RunnerErrorKind, StepRunner};

use crate::support::{
    processes::{eventually, is_asleep, is_running, marker},
    sandbox::{Ask, Bench},
};

/// Returns a command that starts processes that resist being ended, in every way that a shell knows.
fn stubborn(marker: &str) -> String {
    format!(
        "trap '' TERM INT HUP; setsid sh -c \"trap '' TERM; sleep {marker} & sleep {marker}\" & \
         nohup sleep {marker} >/dev/null 2>&1 & (sleep {marker} &) ; "
    )
}

#[tokio::test]
async fn steps_end_with_a_killed_helper_and_the_next_step_starts_another() {
    let (bench, marker) = (Bench::new(), marker());
    let mut run = bench.run();
    // The helper's mounts for later steps disappear with it.
    let parent = bench.step(&mut run, Ask::new("echo text > /opt/hm-file")).await.unwrap();
    let child = Ask::new("cat /opt/hm-file").after(&parent);
    assert_eq!(bench.step(&mut run, child.clone()).await.unwrap().exit_code, 0);
    let input = run.input(Ask::new(format!("{} sleep {marker}", stubborn(&marker))));
    let kill = async {
        eventually("the command runs", || is_asleep(&marker)).await;
        kill_helpers_of(std::process::id(), &marker);
    };
    let (result, ()) = tokio::join!(bench.runner.execute(&run.ctx, input), kill);
    let error = result.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (RunnerErrorKind::Infrastructure, true), "{error}");
    eventually("the step is gone", || !is_running(&marker)).await;
    let again = bench.step(&mut run, child).await.unwrap();
    assert_eq!((again.exit_code, run.output().await), (0, "text\ntext\n".into()));
}

#[tokio::test]
async fn a_helper_that_stops_answering_keeps_its_steps_and_the_next_step_starts_another() {
    let (bench, marker) = (Bench::new(), marker());
    let mut run = bench.run();
    let running = run.input(Ask::new(format!("sleep {marker}")));
    let ends = run.input(Ask::new("true"));
    let stop = async {
        eventually("the command runs", || is_asleep(&marker)).await;
        signal_helper_of(std::process::id(), &marker, rustix::process::Signal::STOP);
        let error = bench.runner.execute(&run.ctx, ends).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (RunnerErrorKind::Infrastructure, true), "{error}");
        assert!(error.to_line().contains("did not answer within 10 s"), "{}", error.to_line());
        assert!(is_running(&marker), "a step that runs needs no helper");
    };
    tokio::select! {
        ended = bench.runner.execute(&run.ctx, running) => panic!("the step ended: {ended:?}"),
        () = stop => {}
    }
    assert_eq!(bench.step(&mut run, Ask::new("echo again")).await.unwrap().exit_code, 0);
    // Nothing uses it any more.
    eventually("the step is gone", || !is_running(&marker)).await;
}

/// Kills the zygote of the step that has `marker`: the grandparent, through the step's pid 1, of a process
/// with the marker.
fn kill_helpers_of(engine: u32, marker: &str) {
    signal_helper_of(engine, marker, rustix::process::Signal::KILL);
}

fn signal_helper_of(engine: u32, marker: &str, signal: rustix::process::Signal) {
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
                let _ = rustix::process::kill_process(zygote, signal);
                return;
            }
            pid = parent;
        }
    }
    panic!("no step of this process has {marker}");
}

/// Not a test: an engine in a separate process, for the test below to kill.
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
async fn a_step_that_cannot_start_is_reported_and_not_retried() {
    let bench = Bench::new();
    let mut run = bench.run();
    let error = bench.step(&mut run, Ask::new("a\0b")).await.unwrap_err();
    assert!(error.to_string().contains("NUL byte") && !error.is_retryable(), "{error}");
    let error = bench.step(&mut run, Ask::new(":").image("ubuntu:24.04")).await.unwrap_err();
    assert!(error.to_line().contains("ubuntu:24.04"), "{}", error.to_line());
}
