//! Files of other steps in containers.

use std::time::Duration;

use bollard::query_parameters::{ListContainersOptions, RemoveContainerOptions, RemoveVolumeOptions};
use hm_exec::StepStatus::{CacheHit, Flaky, Passed};
use serde_json::{Value, json};

use crate::support::{
    docker::{Bench, Built, cached, left, nothing, pipeline, start, step},
    docker_daemon::Daemon,
    project::{PATIENCE, Project, eventually},
};

fn with_args(mut step: Value, args: Value) -> Value {
    step["step"]["runner_args"] = args;
    step
}

#[tokio::test]
async fn a_join_gets_files_of_steps_on_either_runner_and_runs_again_only_for_other_bytes() {
    let Some(bench) = Bench::new() else { return };
    let mut elsewhere = cached("sandbox", "mkdir -p out; echo sandbox > out/data");
    elsewhere["step"]["runner"] = "sandbox".into();
    elsewhere["step"]["image"] = bench.shared_image().into();
    let make = "mkdir -p -m 700 out/sub; echo docker > out/data; chmod 640 out/data; ln out/data out/sub/same; \
                ln -s data out/link; chmod 750 out";
    let look = "cat in/*/data; cat one; cat in/docker/link in/docker/sub/same; stat -c %a.%u.%Y in/docker in/docker/sub \
                in/docker/data one; for f in in/docker/new one; do { echo x > $f; } 2> /dev/null || echo refused; done; echo own > own";
    let inputs = json!({ "outputs": ["in/**", "one", "own"], "inputs": {
        "docker:/workspace/out": "/workspace/in/docker",
        "sandbox:/workspace/out": "/workspace/in/sandbox",
        "docker:/workspace/out/link": "/workspace/one",
    } });
    let build = |make: &str| {
        let steps = [
            cached("docker", make),
            elsewhere.clone(),
            with_args(cached("join", look), inputs.clone()),
            step("child", "test ! -e in/docker/data && test ! -s one && echo none"),
        ];
        pipeline(&steps, &[json!([0, 2, "depends_on"]), json!([1, 2, "depends_on"]), json!([2, 3, "builds_in"])])
    };
    let status = |built: &Built| built.outcome.steps[2].status;
    // Files of others are no outputs, whether they are read from the container or from the store.
    let outputs = |built: &Built| -> Vec<_> {
        built.outcome.steps[2].artifacts.iter().map(|artifact| artifact.key.clone()).collect()
    };
    let own = [".hm/out/source/join/own"];
    let first = bench.build(&build(make)).await;
    assert!(first.outcome.status.is_success(), "{:#?}", first.events);
    let expected = [
        "docker",
        "sandbox",
        "docker",
        "docker",
        "docker",
        "750.0.946684800",
        "700.0.946684800",
        "640.0.946684800",
        "640.0.946684800",
        "refused",
        "refused",
    ];
    assert_eq!((status(&first), first.lines("join")), (Passed, expected.to_vec()));
    assert_eq!(outputs(&first), own);
    assert_eq!(first.lines("child"), ["none"]);
    assert_eq!(bench.left().await, nothing());
    // It runs again, and leaves the same bytes.
    let again = bench.build(&build(&format!("{make}; touch elsewhere"))).await;
    assert_eq!((status(&again), outputs(&again)), (CacheHit, own.map(str::to_owned).to_vec()));
    let other = bench.build(&build(&make.replace("echo docker", "echo other"))).await;
    assert_eq!((status(&other), other.lines("join")[0]), (Passed, "other"));
}

#[tokio::test]
async fn a_missing_path_is_named_and_files_are_copied_once_for_all_attempts() {
    let Some(bench) = Bench::new() else { return };
    let of = |path: &str| json!({ format!("made:{path}"): "/in" });
    let steps = [
        step("made", "mkdir /out; echo made > /out/f"),
        with_args(
            step("again", "stat -c %z /in/f; exit 1"),
            json!({ "inputs": of("/out"), "retries": 1, "soft_fail": true }),
        ),
        with_args(step("none", "echo never"), json!({ "inputs": of("/none") })),
    ];
    let edges = [json!([0, 1, "depends_on"]), json!([0, 2, "depends_on"])];
    let mut request = bench.request(&pipeline(&steps, &edges));
    request.options.keep_going = true;
    let built = bench.run(bench.engine(), request).await;
    let lines = built.lines("again");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0], lines[1], "a new copy would have a later time of its last change");
    let message = built.message("none");
    assert!(message.contains("step `made` has no file or directory /none") && built.lines("none").is_empty());
    assert_eq!(bench.left().await, nothing());
}

/// A pipeline whose second step gets files of the first, and whose third follows the second.
fn three(cmds: [&str; 2], args: &Value) -> Value {
    let mut args = args.clone();
    args["inputs"] = json!({ "made:/out": "/in" });
    let steps = [
        step("made", "mkdir /out; echo made > /out/f"),
        with_args(step("join", cmds[0]), args),
        step("later", cmds[1]),
    ];
    pipeline(&steps, &[json!([0, 1, "depends_on"]), json!([1, 2, "depends_on"])])
}

#[test]
fn files_go_with_their_step_and_with_a_killed_run() {
    let Some(daemon) = Daemon::get() else { return };
    let project = Project::new();
    let ours = || left(&daemon, &project.store).0;
    let is_container = |name: &String| name.starts_with('/');
    let mut hm = start(&project, &daemon, &three(["cat /in/f", "echo up; sleep 1000"], &json!({})));
    // They are removed in the background.
    eventually("the files to go", || matches!(&ours()[..], [step] if is_container(step)));
    hm.kill().unwrap();
    hm.wait().unwrap();
    eventually("what it left to go", || left(&daemon, &project.store) == nothing());
    let mut hm = start(&project, &daemon, &three(["echo up; sleep 1000", "true"], &json!({})));
    eventually("the step, a volume, and the container that has it to be what is left", || {
        let (containers, volumes): (Vec<_>, Vec<_>) = ours().into_iter().partition(is_container);
        (containers.len(), volumes.len()) == (2, 1)
    });
    hm.kill().unwrap();
    hm.wait().unwrap();
    eventually("what it left to go", || left(&daemon, &project.store) == nothing());
}

#[tokio::test]
async fn files_that_were_removed_from_outside_are_copied_again() {
    let Some(bench) = Bench::new() else { return };
    let cmd = "cat /in/f; for n in $(seq 150); do test -e /in/f || exit 1; sleep 0.1; done";
    let ir = three([cmd, "true"], &json!({ "retries": 1 }));
    let client = bench.daemon.client();
    let removing = async {
        let pause = || tokio::time::sleep(Duration::from_millis(20));
        // The runner names the store by it, when it first talks to the daemon.
        while !bench.store.dir().join("secret").exists() {
            pause().await;
        }
        loop {
            let (names, _) = bench.left().await;
            let running = client.list_containers(None::<ListContainersOptions>).await.unwrap();
            let is_running =
                |name: &String| running.iter().any(|it| it.names.as_deref() == Some(std::slice::from_ref(name)));
            let (containers, volumes): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.starts_with('/'));
            let (running, created): (Vec<_>, Vec<_>) = containers.into_iter().partition(is_running);
            if let ([volume], [_], [filler]) = (&volumes[..], &running[..], &created[..]) {
                client.remove_container(&filler[1..], None::<RemoveContainerOptions>).await.unwrap();
                client.remove_volume(volume, None::<RemoveVolumeOptions>).await.unwrap();
                break;
            }
            pause().await;
        }
    };
    let (built, removed) = tokio::join!(bench.build(&ir), tokio::time::timeout(PATIENCE, removing));
    removed.expect("there was no moment to remove the files at");
    assert!(built.outcome.status.is_success(), "{:#?}", built.events);
    let join = built.outcome.steps.iter().find(|step| &*step.key == "join").unwrap();
    assert_eq!((join.status, join.attempts), (Flaky, 2));
    assert_eq!(bench.left().await, nothing());
}
