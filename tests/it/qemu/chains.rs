//! A chain of steps through every runner that shares the store's layers.

use std::sync::Arc;

use hm_exec::{
    BuildStatus, Engine, RunnerSet,
    runner::{
        docker::{Docker, DockerRunner},
        qemu::{Qemu, QemuRunner},
        sandbox::SandboxRunner,
    },
};
use serde_json::Value;

use crate::support::{
    docker::{Bench as DockerBench, chain, step},
    programs::hm,
    qemu::Bench,
    users::is_root,
};

#[derive(Debug, RunnerSet)]
struct All {
    #[runner(default)]
    sandbox: SandboxRunner,
    vm: QemuRunner,
    docker: DockerRunner,
}

#[tokio::test]
async fn a_chain_moves_between_sandbox_machine_and_container() {
    let (Some(machines), Some(bench)) = (Bench::new(), DockerBench::new()) else { return };
    bench.file("source", "of the source\n");
    bench.file("gone", "soon\n");
    let cmds = [
        (
            "sandbox",
            "mkdir -p /data/d; echo one > /data/d/1; ln -s d/1 /data/link; chmod 2750 /data/d; echo a > log; rm gone",
        ),
        (
            "vm",
            "cat /data/link source; test ! -e gone; ls -A /data/d; stat -c %a /data/d; echo b >> log; rm /data/link; \
                rm -r /data/d; mkdir /data/d; echo two > /data/d/2; touch -d @1000000000 /data/d/2; [ -z \"$OWNERS\" ] || chown 7:8 /data/d/2",
        ),
        (
            "docker",
            "cat log source; ls /data /data/d; stat -c %Y /data/d/2; [ -z \"$OWNERS\" ] || stat -c %u:%g /data/d/2; \
                    echo c >> log; ln log hard; mkfifo pipe",
        ),
        ("sandbox", "cat log; stat -c %h log; test -p pipe; rm hard; echo d >> log; echo back > gone"),
        ("vm", "cat log gone; ls /data/d; uname -s"),
    ];
    let mut steps: Vec<Value> = cmds
        .iter()
        .enumerate()
        .map(|(at, (runner, cmd))| {
            let mut step = step(&format!("s{at}"), &format!("set -e; {cmd}"));
            step["step"]["runner"] = (*runner).into();
            step["env"]["OWNERS"] = if is_root() { "yes" } else { "" }.into();
            step
        })
        .collect();
    steps[0]["step"]["image"] = bench.shared_image().into();
    let local = || SandboxRunner::builder().store(Arc::clone(&bench.store)).helper(hm());
    let runners = All {
        sandbox: local().build(),
        vm: Qemu::builder()
            .local(local())
            .templates(machines.templates())
            .memory(512 << 20)
            .build(Arc::clone(&bench.store)),
        docker: Docker::builder().host(&bench.daemon.host).local(local()).build(Arc::clone(&bench.store)),
    };
    let built = bench.build_on(Engine::builder(runners).cache(Arc::clone(&bench.store)), &chain(&steps)).await;
    assert_eq!(built.outcome.status, BuildStatus::Passed, "{:#?}", built.events);
    assert_eq!(built.lines("s1"), ["one", "of the source", "1", "2750"]);
    let owner: &[&str] = if is_root() { &["7:8"] } else { &[] };
    assert_eq!(
        built.lines("s2"),
        [&["a", "b", "of the source", "/data:", "d", "new", "", "/data/d:", "2", "1000000000"][..], owner].concat()
    );
    assert_eq!(built.lines("s3"), ["a", "b", "c", "2"]);
    assert_eq!(built.lines("s4"), ["a", "b", "c", "d", "back", "2", "Linux"]);
    assert!(built.snapshots().iter().all(|name| name.starts_with("hm1:")), "{:?}", built.snapshots());
    assert_eq!(bench.left().await, (vec![], vec![]));
}
