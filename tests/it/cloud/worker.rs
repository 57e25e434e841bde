//! `hm worker` on BuildGrid: one engine for all tests, because it takes ten seconds to start.

use hm_exec::{remote::Digest, step::Exit, store::ImageDigest};
use rustix::process::geteuid;

use crate::support::{
    actions::{Actions, TestLayer, exited, names, read_log_until},
    buildgrid::{BuildGrid, until},
    images::has_busybox,
    processes::{is_asleep, is_running, marker},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_serves_buildgrid() {
    if !has_busybox() {
        return;
    }
    let Some(mut engine) = tokio::task::spawn_blocking(BuildGrid::start).await.unwrap() else { return };
    let actions = Actions::new(&engine.url()).await;
    let mut worker = engine.worker("first");

    commands_run_over_layers_and_the_source(&actions).await;
    what_is_no_step_is_refused(&actions).await;
    limits_in_time_are_kept(&actions).await;
    output_is_there_while_a_command_runs_and_cancelling_ends_it(&actions, &engine).await;
    assert!(worker.log().contains("passed in"), "{}", worker.log());

    // A worker killed in the middle of a step leaves no process, and another worker runs the step.
    let marker = marker();
    let running = actions.start(&format!("sleep {marker} & echo started; sleep 3; echo ended"), &[]).await;
    assert!(until(|| is_asleep(&marker)));
    worker.group.kill();
    assert!(until(|| !is_running(&marker)));
    let mut worker = engine.worker("second");
    let done = actions.end(running).await.unwrap();
    assert_eq!((done.code, &*done.stdout), (0, "started\nended\n"), "{}", worker.log());

    // An engine that restarts finds its worker still running the step.
    let running = actions.start("sleep 4; echo through", &[]).await;
    assert!(until(|| is_running("sleep 4; echo through")));
    engine.kill_server();
    engine.serve();
    let done = actions.end(running).await.unwrap();
    assert_eq!((done.code, &*done.stdout), (0, "through\n"), "{}", worker.log());

    // A worker that is asked to stop finishes the step that it has begun.
    let running = actions.start("sleep 2; echo to the end", &[]).await;
    assert!(until(|| is_running("sleep 2; echo to the end")));
    worker.group.terminate();
    let done = actions.end(running).await.unwrap();
    assert_eq!((done.code, &*done.stdout), (0, "to the end\n"), "{}", worker.log());
    assert_eq!(worker.group.wait(), Some(0), "{}", worker.log());
}

async fn commands_run_over_layers_and_the_source(actions: &Actions) {
    let command =
        "cat dir/file; echo $GREETING; echo changed > dir/file; rm -r /bin/ls; mkdir /new; echo more > /new/file";
    let first = actions.run(command, &[]).await;
    assert_eq!((first.code, &*first.stdout), (0, "from the source\nhello\n"));
    let layer = first.layer.unwrap();
    // A child sees its changes; the source in the worker's store is unchanged.
    let layers = [layer];
    let second = actions.run("cat dir/file /new/file; /bin/ls", &layers).await;
    assert_eq!((second.code, &*second.stdout), (127, "changed\nmore\n"));
    assert!(second.layer.is_none());
    let third = actions.run("cat dir/file", &[]).await;
    assert_eq!((third.code, &*third.stdout, third.layer.is_none()), (0, "from the source\n", true));
    // A second source shares the files that did not change.
    actions.source_file("added", b"#!/bin/sh\necho of the second source\n").await;
    let fourth = actions.run("./added; cat dir/file; exit 3", &layers).await;
    assert_eq!((fourth.code, &*fourth.stdout), (3, "of the second source\nchanged\n"));
    assert_eq!(exited(&fourth), Some(3));
    // As in the sandbox: root in its own user namespace.
    let who = actions.run("id -u; cat /proc/1/comm; echo on stderr >&2", &[]).await;
    assert!(who.stdout.starts_with("0\n"), "{} as {:?}", who.stdout, geteuid());
    // More output than the result holds inline.
    let long = actions.run("i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done", &[]).await;
    assert!(long.stdout.lines().eq((0..20_000).map(|it| it.to_string())), "{} bytes", long.stdout.len());
}

async fn what_is_no_step_is_refused(actions: &Actions) {
    let action = actions.action(&actions.input("echo", &[]), &[], &["/bin/echo", "no step"]).await;
    let refused = actions.end(actions.execute(action).await).await.unwrap_err();
    let status = refused.status.unwrap();
    assert_eq!(status.code, tonic::Code::FailedPrecondition as i32, "{status:?}");
    assert!(status.message.contains("./hm-step input.json"), "{status:?}");

    // A layer that the engine lost is named in the error, so that the client can upload it again.
    let lost = TestLayer { digest: Digest::of(b"nowhere"), diff_id: ImageDigest::of(b"nothing").to_string() };
    let layers = [lost.clone()];
    let refused = actions.end(actions.start("echo", &layers).await).await.unwrap_err();
    let status = refused.status.unwrap();
    assert_eq!(status.code, tonic::Code::FailedPrecondition as i32, "{status:?}");
    assert!(status.message.contains(&lost.digest.to_string()), "{status:?}");
    assert!(status.details.iter().any(|it| it.type_url.ends_with("PreconditionFailure")), "{status:?}");
}

async fn limits_in_time_are_kept(actions: &Actions) {
    let mut input = actions.input("trap '' TERM; echo begun; sleep 1000", &[]);
    (input.timeout_ms, input.grace_ms) = (Some(500), 200);
    let action = actions.action(&input, &[], &["./hm-step", "input.json"]).await;
    let done = actions.end(actions.execute(action).await).await.unwrap();
    assert_eq!((done.code, &done.output.exit, &*done.stdout), (124, &Exit::TimedOut, "begun\n"));
}

async fn output_is_there_while_a_command_runs_and_cancelling_ends_it(actions: &Actions, engine: &BuildGrid) {
    let marker = marker();
    let mut running = actions.start(&format!("echo first words; sleep {marker}"), &[]).await;
    let (name, stream) = names(&mut running).await;
    let seen = read_log_until(&engine.logstream_url(), &stream, "first words\n").await;
    assert_eq!(seen, "first words\n");
    // The step cannot have ended: it sleeps for longer than the test takes.
    assert!(until(|| is_asleep(&marker)));
    actions.cancel(&name).await;
    assert!(until(|| !is_running(&marker)));
}
