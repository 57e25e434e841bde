//! Limits on memory and processes.

use hm_exec::runner::RunnerErrorKind;
use serde_json::json;

use super::harness::{Ask, Bench, skip};

/// Holds 200 MB in the shell itself.
const GREEDY: &str = "x=$(head -c 200m /dev/zero | tr '\\0' x); sleep 1; exit 1";

#[tokio::test]
async fn a_step_over_its_memory_limit_is_told_apart() {
    let bench = Bench::new();
    let mut run = bench.run();
    let result = bench.step(&mut run, Ask::new(GREEDY).args(json!({ "memory": "32m" }))).await;
    match result {
        Err(error) => assert_eq!(error.kind(), RunnerErrorKind::OutOfMemory, "{error}"),
        Ok(result) => panic!("exited {}", result.exit_code),
    }
    let within = bench.step(&mut run, Ask::new("true").args(json!({ "memory": "64m" }))).await.unwrap();
    assert_eq!(within.exit_code, 0);
}

#[tokio::test]
async fn a_step_can_not_have_more_processes_than_its_limit() {
    let bench = Bench::new();
    let mut run = bench.run();
    let fork = "i=0; while [ $i -lt 40 ]; do sleep 3 & i=$((i+1)); done; wait; exit 0";
    let result = bench.step(&mut run, Ask::new(fork).args(json!({ "pids": 16 }))).await.unwrap();
    assert_ne!(result.exit_code, 0, "{}", run.output().await);
}

#[tokio::test]
async fn control_groups_go_with_their_step() {
    let groups = || {
        let found = std::process::Command::new("find")
            .args(["/sys/fs/cgroup", "-type", "d", "-name", &format!("hm-{}-*", std::process::id())])
            .output();
        found.map(|found| String::from_utf8_lossy(&found.stdout).lines().count()).unwrap_or(0)
    };
    let bench = Bench::new();
    let mut run = bench.run();
    let ask = Ask::new("cat /proc/self/cgroup; nproc").args(json!({ "memory": "64m", "pids": 50, "cpus": 0.5 }));
    assert_eq!(bench.step(&mut run, ask).await.unwrap().exit_code, 0);
    let output = run.output().await;
    if !output.contains("memory:/\n") && !output.contains("0::/\n") {
        skip("no control groups can be made here");
        return;
    }
    assert!(!output.contains("hm-"), "the step sees the machine's groups: {output}");
    super::harness::eventually("the groups are gone", || groups() == 0).await;
}
