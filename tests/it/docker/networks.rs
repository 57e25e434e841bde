//! Networks of containers: each step's own by default, the machine's if it asks for that.

use std::sync::Arc;

use hm_exec::{BackendError, store::Store};
use serde_json::{Value, json};

use crate::support::{
    docker::{Bench, chain, pipeline, project, run, step},
    docker_daemon::Daemon,
    project::Ended,
};

fn with_args(mut step: Value, args: Value) -> Value {
    step["step"]["runner_args"] = args;
    step
}

#[tokio::test]
async fn two_steps_listen_on_one_port_at_the_same_time() {
    let Some(bench) = Bench::new() else { return };
    // Until both are there, each has its own port, and what it connects to is its own server.
    let cmd = |name: &str| {
        format!(
            "(echo {name} | nc -l -p 5432) & sleep 2; until nc 127.0.0.1 5432 </dev/null 2>/dev/null; do sleep 0.1; done; wait"
        )
    };
    let steps = ["one", "two"].map(|name| step(name, &cmd(name)));
    let built = bench.build(&pipeline(&steps, &[])).await;
    assert!(built.outcome.status.is_success(), "{:#?}", built.events);
    assert_eq!((built.lines("one"), built.lines("two")), (vec!["one"], vec!["two"]));
}

#[test]
fn hm_says_that_connections_of_containers_are_not_recorded() {
    let Some(daemon) = Daemon::get() else { return };
    let project = project("echo ran");
    Ended::of(&mut run(&project, &daemon)).expect(0);
    let note = "connections of steps on `docker` are not recorded";
    let logs = Ended::of(&mut project.hm(&["logs", "step", "--network"])).expect(0);
    assert!(logs.stdout.is_empty() && logs.stderr.contains(note), "{logs:?}");
    let runners = Ended::of(&mut project.hm(&["runners", "--docker-host", &daemon.host])).expect(0).stdout;
    let row = runners.lines().find(|line| line.starts_with("docker")).unwrap();
    assert!(row.contains("connections of steps are not recorded"), "{runners}");
}

#[tokio::test]
async fn lists_that_a_bridge_does_not_have_are_refused_at_binding() {
    let Some(bench) = Bench::new() else { return };
    let engine = bench.engine().build().unwrap();
    for (name, args) in [("host_ports", json!({ "host_ports": [80] })), ("egress", json!({ "egress": [] }))] {
        let request = bench.request(&chain(&[with_args(step("a", "echo never"), args)]));
        let error = engine.bind(&request).map(drop).unwrap_err();
        assert!(error.to_string().contains(&format!("runner_args.{name}")), "{error}");
    }
}

#[tokio::test]
async fn a_daemon_without_a_bridge_refuses_networks_of_steps_own_before_anything_runs() {
    let Some(daemon) = tokio::task::spawn_blocking(Daemon::without_bridge).await.unwrap() else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("source")).unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let bench = Bench { daemon: Arc::new(daemon), dir, store };
    let engine = bench.engine().build().unwrap();
    let error = engine.start(bench.request(&chain(&[step("a", "echo never")]))).await.map(drop).unwrap_err();
    let BackendError::Unusable { reason, hint, .. } = &error else { panic!("{error}") };
    assert!(reason.contains("no bridge") && hint.contains("--network host"), "{reason}; {hint}");
    for network in ["host", "none"] {
        let only = with_args(step("a", "echo ran"), json!({ "network": network }));
        assert_eq!(bench.build(&chain(&[only])).await.lines("a"), ["ran"]);
    }
}
