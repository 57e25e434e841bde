//! Output: all of it, in order, however it is written.

use super::harness::{Ask, Bench, marker};

#[tokio::test]
async fn a_flood_arrives_whole_and_in_order() {
    let (code, output) = Bench::new().sh("seq 1 200000").await;
    assert_eq!(code, 0);
    assert!(output.lines().eq((1..=200_000).map(|number| number.to_string())));
}

#[tokio::test]
async fn a_command_may_close_its_output_early() {
    let bench = Bench::new();
    let (code, output) = bench.sh("echo first; exec >&- 2>&-; sleep 0.2; touch f; exit 7").await;
    assert_eq!((code, output.as_str()), (7, "first\n"));
}

#[tokio::test]
async fn a_background_process_that_holds_the_output_open_holds_up_nothing() {
    let bench = Bench::new();
    let started = std::time::Instant::now();
    let (code, output) = bench.sh(&format!("sleep {} & printf 'no newline'", marker())).await;
    assert_eq!((code, output.as_str()), (0, "no newline\n"));
    assert!(started.elapsed() < std::time::Duration::from_secs(20));
}

#[tokio::test]
async fn commands_and_environments_may_be_large() {
    let bench = Bench::new();
    let mut run = bench.run();
    let value = "v".repeat(100_000);
    let mut ask = Ask::new(format!(": {}; echo ${{#A}} ${{#B}} ${{#C}}", "x".repeat(100_000)));
    for name in ["A", "B", "C"] {
        ask = ask.env(name, value.clone());
    }
    assert_eq!(bench.step(&mut run, ask).await.unwrap().exit_code, 0);
    assert_eq!(run.output().await, "100000 100000 100000\n");
}

#[tokio::test]
async fn what_can_not_be_run_is_said_and_not_retried_in_vain() {
    let bench = Bench::new();
    let mut run = bench.run();
    let error = bench.step(&mut run, Ask::new("a\0b")).await.unwrap_err();
    assert!(error.to_string().contains("zero byte") && !error.is_retryable(), "{error}");
    let error = bench.step(&mut run, Ask::new(":").image("ubuntu:24.04")).await.unwrap_err();
    assert!(error.to_line().contains("ubuntu:24.04"), "{}", error.to_line());
}
