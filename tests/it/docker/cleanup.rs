//! What stays at the daemon: nothing, however a run ended.

use std::{process::Child, time::Duration};

use hm_exec::{BuildEvent, BuildStatus};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{
    docker::{Bench, chain, left, nothing, pipeline, project, run, step, write},
    docker_daemon::{Daemon, IMAGE},
    project::{Ended, Project, eventually},
};

#[tokio::test]
async fn a_failed_build_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let built = bench.build(&chain(&[step("a", "echo a > f"), step("b", "cat f; exit 3"), step("c", "true")])).await;
    assert_eq!(built.outcome.status, BuildStatus::Failed);
    assert_eq!(built.lines("b"), ["a"]);
    assert_eq!(bench.left().await, nothing());
}

#[tokio::test]
async fn a_cancelled_build_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let ir = pipeline(&[step("a", "trap '' TERM; echo up; while :; do sleep 1; done"), step("b", "sleep 1000")], &[]);
    let engine = bench.engine().grace(Duration::ZERO).build().unwrap();
    let (mut events, control) = engine.start(bench.request(&ir)).await.unwrap().into_parts();
    while let Some(event) = events.next().await {
        if matches!(&event, BuildEvent::StepLog { line, .. } if line == "up") {
            control.cancel();
        }
    }
    assert_eq!(control.wait().await.unwrap().status, BuildStatus::Canceled);
    assert_eq!(bench.left().await, nothing());
}

#[tokio::test]
async fn containers_end_with_a_dropped_engine() {
    let Some(bench) = Bench::new() else { return };
    let ir = pipeline(&[step("a", "echo up; sleep 1000")], &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let engine = bench.engine().build().unwrap();
    let request = bench.request(&ir);
    let running = std::thread::spawn(move || {
        runtime.block_on(async {
            let (mut events, _control) = engine.start(request).await.unwrap().into_parts();
            while let Some(event) = events.next().await {
                if matches!(&event, BuildEvent::StepLog { line, .. } if line == "up") {
                    break;
                }
            }
        });
        drop(runtime);
        drop(engine);
    });
    tokio::task::spawn_blocking(move || running.join().unwrap()).await.unwrap();
    let (containers, images) = bench.left().await;
    assert_eq!((containers, images.len()), (vec![], 1), "the image goes with the process");
}

/// Starts a run, and waits for its step to print `up`.
fn start(project: &Project, daemon: &Daemon) -> Child {
    let log = project.dir.with_file_name("log");
    let file = std::fs::File::create(&log).unwrap();
    let hm = run(project, daemon).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    eventually("the step to be up", || std::fs::read_to_string(&log).unwrap().contains("| up\n"));
    hm
}

#[test]
fn containers_end_with_a_killed_run_and_a_live_run_keeps_its_own() {
    let Some(daemon) = Daemon::get() else { return };
    let project = project("echo up; sleep 1000");
    let mut hm = start(&project, &daemon);
    let live = left(&daemon, &project.store);
    assert_eq!((live.0.len(), live.1.len()), (1, 1), "{live:?}");
    write(&project, "echo hello");
    Ended::of(&mut run(&project, &daemon)).expect(0);
    assert_eq!(left(&daemon, &project.store), live, "a run that goes on keeps its own");
    hm.kill().unwrap();
    hm.wait().unwrap();
    eventually("what it left to go", || left(&daemon, &project.store) == nothing());
}

/// Kills a process and its watchers, as the end of a session does.
fn kill_with_watchers(mut hm: Child) {
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", hm.id())).unwrap();
    let watchers: Vec<_> = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
    let watching = |pid: &&Pid| {
        let args = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_pid())).unwrap_or_default();
        args.starts_with("hm-docker")
    };
    let watchers: Vec<_> = watchers.iter().filter(watching).collect();
    assert_eq!(watchers.len(), 1, "{children}");
    kill_process(*watchers[0], Signal::KILL).unwrap();
    hm.kill().unwrap();
    hm.wait().unwrap();
}

#[test]
fn the_next_run_removes_containers_of_a_run_that_was_killed_with_its_watchers() {
    let Some(daemon) = Daemon::get() else { return };
    let project = project("echo up; sleep 1000");
    let hm = start(&project, &daemon);
    let live = left(&daemon, &project.store);
    kill_with_watchers(hm);
    assert_eq!(left(&daemon, &project.store), live);
    write(&project, "echo hello");
    Ended::of(&mut run(&project, &daemon)).expect(0);
    assert_eq!(left(&daemon, &project.store), nothing());
}

#[test]
fn garbage_collection_removes_containers_of_a_killed_run() {
    let Some(daemon) = Daemon::get() else { return };
    let project = project("echo up; sleep 1000");
    kill_with_watchers(start(&project, &daemon));
    let mut gc = project.hm(&["cache", "gc", "--format", "json"]);
    let report = Ended::of(gc.env("DOCKER_HOST", &daemon.host)).expect(0).stdout;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["reaped"]["containers"], 1);
    assert_eq!(left(&daemon, &project.store), nothing());
}

#[test]
fn the_error_names_an_image_that_does_not_exist() {
    let Some(daemon) = Daemon::get() else { return };
    let project = project("true");
    let missing = format!("{IMAGE}=localhost:1/no/such:image");
    let ended = Ended::of(run(&project, &daemon).args(["--image", &missing])).expect(3);
    let said = ended.stdout + &ended.stderr;
    assert!(said.contains("pulling localhost:1/no/such:image") && said.contains("docker import"), "{said}");
    let ended = Ended::of(run(&project, &daemon).args(["--image", &missing, "--offline"])).expect(3);
    assert!(!(ended.stdout.clone() + &ended.stderr).contains("pulling"), "{ended:?}");
    let ended = Ended::of(run(&project, &daemon).args(["--image", &format!("{IMAGE}=host")])).expect(2);
    assert!(ended.stderr.contains("`host`"), "{ended:?}");
    assert_eq!(left(&daemon, &project.store), nothing());
}

#[test]
fn a_missing_daemon_is_reported_before_anything_runs() {
    let project = project("true");
    let nowhere = format!("unix://{}", project.dir.join("no.sock").display());
    let mut hm = project.hm(&["run", "--runner", "docker", "--docker-host", &nowhere]);
    let ended = Ended::of(&mut hm).expect(3);
    assert!(ended.stderr.contains("no.sock") && ended.stderr.contains("--docker-host"), "{ended:?}");
    let json = Ended::of(&mut project.hm(&["runners", "--format", "json", "--docker-host", &nowhere])).expect(0).stdout;
    let runners: Value = serde_json::from_str(&json).unwrap();
    let docker = runners.as_array().unwrap().iter().find(|runner| runner["name"] == "docker").unwrap();
    assert_eq!((&docker["probe"]["kind"], &docker["capabilities"]["layers"]), (&json!("unusable"), &json!(true)));
}
