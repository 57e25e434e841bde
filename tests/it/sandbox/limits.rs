//! How the sandbox enforces limits: control groups.

use hm_exec::runner::{RunnerError, RunnerErrorKind};
use serde_json::{Value, json};

use crate::support::{
    backends::skip,
    processes::eventually,
    sandbox::{Ask, Bench},
    users::is_root,
};

/// Returns the error of a step with limits.
async fn failure(cmd: &str, args: Value) -> RunnerError {
    let bench = Bench::new();
    let mut run = bench.run();
    match bench.step(&mut run, Ask::new(cmd).args(args)).await {
        Err(error) => error,
        Ok(result) => panic!("{cmd} ended with {}: {result:?}", result.exit_code),
    }
}

#[tokio::test]
async fn memory_of_files_in_tmpfs_counts() {
    let greedy = "head -c 209715200 /dev/zero > /dev/shm/a; head -c 209715200 /dev/zero > /dev/b; sleep 5; exit 1";
    let error = failure(greedy, json!({ "memory": "48m" })).await;
    assert_eq!(error.kind(), RunnerErrorKind::OutOfMemory, "{error}");
}

#[tokio::test]
async fn unmapped_memory_files_count() {
    let number = if cfg!(target_arch = "x86_64") { 319 } else { 279 };
    let greedy = format!(
        "exec perl -e 'my $name = q(x); my $fd = syscall({number}, $name, 0); $fd >= 0 or exit 3; \
         open(my $file, q(>&=), $fd) or exit 4; my $block = q(x) x (1 << 20); \
         for (1 .. 200) {{ syswrite($file, $block) }} sleep 5; exit 1'"
    );
    let error = failure(&greedy, json!({ "memory": "64m" })).await;
    assert_eq!(error.kind(), RunnerErrorKind::OutOfMemory, "{error}");
}

#[tokio::test]
async fn mapped_memory_is_counted_once() {
    // Four processes share 40 MB: within 100 MB, although each has it in its resident set.
    let cmd = "head -c 41943040 /dev/zero > /dev/shm/shared && for i in 1 2 3 4; do perl -e \
               'open(my $f, q(<:mmap), q(/dev/shm/shared)) or exit 1; my $n = 0; while (read($f, my $b, 65536)) { $n++ } \
               select undef, undef, undef, 0.5; exit($n == 640 ? 0 : 2)' || exit 9 & done; wait";
    let bench = Bench::new();
    let mut run = bench.run();
    let result = bench.step(&mut run, Ask::new(cmd).args(json!({ "memory": "100m" }))).await;
    assert_eq!(result.unwrap().exit_code, 0);
}

#[tokio::test]
async fn exceeding_the_limit_on_processes_is_reported() {
    let fork = "i=0; while [ $i -lt 60 ]; do sleep 5 & i=$((i+1)); done; wait; exit 0";
    let error = failure(fork, json!({ "pids": 16 })).await;
    assert_eq!(error.kind(), RunnerErrorKind::TooManyProcesses, "{error}");
    assert_eq!(error.to_line(), "the limit of 16 processes was reached");
    assert!(error.exit_code().is_some_and(|code| code != 0));
}

#[tokio::test]
async fn a_step_that_passes_at_its_limit_passes_also_after_a_blocked_connection() {
    if !is_root() {
        // Without control groups, the limit ends the step.
        return;
    }
    let bench = Bench::new();
    let mut run = bench.run();
    // The machine's ports are closed to steps. A blocked connection is a hint for a step that failed.
    let cmd = "timeout 20 bash -c ': < /dev/tcp/10.0.2.2/9' 2>/dev/null && exit 8; \
               perl -e 'for (1 .. 60) { my $child = fork; defined $child or exit 3; $child or do { sleep 1; exit } } exit 0'; \
               test $? = 3 || exit 9; exit 0";
    let ask = Ask::new(cmd).args(json!({ "pids": 16, "network": "private" }));
    assert_eq!(bench.step(&mut run, ask).await.unwrap().exit_code, 0, "{}", run.output().await);
}

#[tokio::test]
async fn a_step_sees_only_its_own_limits() {
    let bench = Bench::new();
    let mut run = bench.run();
    let cmd = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us 2>/dev/null || \
               cat memory.max pids.max cpu.max; ls -A | grep -c hm-; mkdir mine 2>/dev/null && echo made; \
               for f in cgroup.procs */cgroup.procs; do echo 1 2>/dev/null > $f && echo written; done; \
               find . -name 'hm-*' -o -name docker -o -name '*.slice'; true";
    let ask = Ask::new(cmd).args(json!({ "memory": "64m", "pids": 50, "cpus": 0.5 }));
    assert_eq!(bench.step(&mut run, ask).await.unwrap().exit_code, 0);
    let output = run.output().await;
    let seen: String =
        output.lines().filter(|line| !line.starts_with("err: ")).map(|it| it.to_owned() + "\n").collect();
    let shown = ["67108864\n50\n50000\n0\n", "67108864\n50\n50000 100000\n0\n"].contains(&seen.as_str());
    // Without a control group of its own, the step sees none.
    assert!(shown || (!is_root() && seen == "0\n"), "{output}");
    let (_, output) = bench.sh("ls -A /sys/fs/cgroup 2>/dev/null").await;
    assert_eq!(output, "", "a step without limits sees the machine's");
}

#[tokio::test]
async fn control_groups_are_removed_with_their_step() {
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
    eventually("the groups are gone", || groups() == 0).await;
}
