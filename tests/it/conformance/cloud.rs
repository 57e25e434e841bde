//! The cloud runner with the sandbox on the same store as its peer: on BuildGrid with a worker of this build,
//! and on an engine that behaves as stock engines do.

use std::{path::PathBuf, sync::Arc};

use hm_exec::{
    conformance::{Report, Suite},
    remote::EndpointOptions,
    runner::{
        cloud::{CloudBuilder, CloudRunner},
        sandbox::SandboxRunner,
    },
    store::Store,
};

use crate::support::{
    buildgrid::BuildGrid,
    images::Image,
    programs::hm,
    remote_engine::step_program,
    stock_engine::{Function, Habits, StockEngine},
};

/// Runs the suite over a cloud runner.
#[expect(clippy::print_stdout, reason = "a failed test shows it")]
async fn report(program: PathBuf, builder: CloudBuilder) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let layout = dir.path().join("image");
    Image::shell().write_oci(&layout, "it");
    let runner = builder.step_program(program).store(Arc::clone(&store)).helper(hm()).build();
    let peer = SandboxRunner::builder().store(Arc::clone(&store)).helper(hm()).build();
    let image = format!("oci:{}:it", layout.display());
    let report = Suite::new(&runner, image).peer(&peer).sample().run().await;
    println!("{report}");
    report
}

/// Checks that a runner keeps what it promises, and promises what a cloud runner can.
#[track_caller]
fn assert_conforms(report: &Report, why: &str) {
    assert!(report.unchecked().all(|case| case == "lineage-xattrs"), "for want of a tool in a small image: {report}");
    assert!(report.failed().next().is_none(), "{report}\n{why}");
    let lacks = [
        "cancel-during",
        "grace-of-children",
        "timeout-with-term-ignored",
        "lineage-ownership",
        "secrets",
        "secrets-stay-with-their-run",
    ];
    assert!(report.not_promised().eq(lacks), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cloud_runner_conforms() {
    let Some(program) = step_program() else { return };
    let Some(engine) = tokio::task::spawn_blocking(BuildGrid::start).await.unwrap() else { return };
    let worker = engine.worker("conforming");
    let builder = CloudRunner::builder().endpoint(EndpointOptions::new(engine.url()));
    let builder = builder.log_service(EndpointOptions::new(engine.logstream_url()));
    assert_conforms(&report(program, builder).await, &worker.log());
}

/// Runs the suite on an engine with these habits. Some cases act when a step prints its first line, so output
/// can be read while steps run.
async fn conforms_on(habits: Habits) {
    let Some(program) = step_program() else { return };
    let engine = StockEngine::start(Habits { shows_output: true, ..habits.clone() });
    assert_conforms(&report(program, CloudRunner::builder().endpoint(engine.options())).await, &format!("{habits:?}"));
    engine.assert_inputs_are_intact();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cloud_runner_conforms_on_an_engine_without_peculiarities() {
    conforms_on(Habits::default()).await;
}

/// Waits for what no client waits for: a dropped attempt ends when the engine notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cloud_runner_conforms_on_an_engine_like_nativelink() {
    let abandons_after = Some(std::time::Duration::from_secs(1));
    conforms_on(Habits { abandons_after, ..Habits::nativelink() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cloud_runner_conforms_on_an_engine_like_buildbarn_with_one_slot() {
    let abandons_after = Some(std::time::Duration::from_secs(1));
    conforms_on(Habits { abandons_after, slots: 1, ..Habits::buildbarn() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cloud_runner_conforms_on_an_engine_with_blake3() {
    conforms_on(Habits { functions: vec![Function::Blake3, Function::Sha256], ..Habits::default() }).await;
}
