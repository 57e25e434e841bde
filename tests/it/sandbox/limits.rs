//! How limits are held here: control groups.

use serde_json::json;

use super::harness::{Ask, Bench, skip};

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
