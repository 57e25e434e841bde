//! The cloud runner with the sandbox on the same store as its peer: on BuildGrid with a worker of this build,
//! on buildbox-casd, and on an engine that behaves as stock engines do, with each of its switches.

use std::{path::PathBuf, sync::Arc, time::Duration};

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
    remote_engine::{TestEngine, step_program},
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
        "network-private",
        "cache-directories",
        "outputs",
        "services",
        "files-of-other-steps",
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cloud_runner_conforms_on_buildbox_casd() {
    let Some(program) = step_program() else { return };
    let Some(engine) = tokio::task::spawn_blocking(TestEngine::start).await.unwrap() else { return };
    let builder = CloudRunner::builder().endpoint(engine.options());
    let builder = engine.platform().into_iter().fold(builder, |it, (name, value)| it.platform_property(name, value));
    assert_conforms(&report(program, builder).await, "buildbox-casd");
}

/// Runs the suite on an engine with these habits.
async fn conforms_on(habits: Habits) {
    let Some(program) = step_program() else { return };
    let engine = StockEngine::start(habits.clone());
    assert_conforms(&report(program, CloudRunner::builder().endpoint(engine.options())).await, &format!("{habits:?}"));
    engine.assert_inputs_are_intact();
}

/// How long an engine lets an Action run for which no client waits: in the suite, that of a dropped attempt.
const SOON: Option<Duration> = Some(Duration::from_secs(1));

macro_rules! conforms_on_engines {
    ($($name:ident: $habits:expr;)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            conforms_on($habits).await;
        }
    )* };
}

conforms_on_engines! {
    the_cloud_runner_conforms_on_an_engine_without_peculiarities: Habits { shows_output: true, ..Habits::default() };
    the_cloud_runner_conforms_on_an_engine_without_live_output: Habits::default();
    the_cloud_runner_conforms_on_an_engine_like_nativelink:
        Habits { abandons_after: SOON, shows_output: true, ..Habits::nativelink() };
    the_cloud_runner_conforms_on_an_engine_like_nativelink_without_live_output:
        Habits { abandons_after: SOON, ..Habits::nativelink() };
    the_cloud_runner_conforms_on_an_engine_like_buildbarn_with_one_slot:
        Habits { abandons_after: SOON, slots: 1, ..Habits::buildbarn() };
    the_cloud_runner_conforms_on_an_engine_like_buildbuddy: Habits { abandons_after: SOON, ..Habits::buildbuddy() };
    the_cloud_runner_conforms_on_an_engine_with_a_maximum_timeout:
        Habits { max_timeout: Some(Duration::from_secs(600)), ..Habits::default() };
    the_cloud_runner_conforms_on_an_engine_that_names_no_output_by_zeros:
        Habits { zero_digests: true, ..Habits::default() };
    the_cloud_runner_conforms_on_an_engine_that_cannot_cancel:
        Habits { cancels: false, abandons_after: SOON, shows_output: true, ..Habits::default() };
    the_cloud_runner_conforms_on_an_engine_that_ends_what_no_client_waits_for:
        Habits { abandons_after: SOON, ..Habits::default() };
    the_cloud_runner_conforms_on_an_engine_with_blake3:
        Habits { functions: vec![Function::Blake3, Function::Sha256], ..Habits::default() };
    the_cloud_runner_conforms_on_an_engine_with_nothing_but_blake3:
        Habits { functions: vec![Function::Blake3], ..Habits::default() };
    the_cloud_runner_conforms_on_an_engine_that_hides_its_default_digest_function: Habits {
        functions: vec![Function::Blake3, Function::Sha256],
        announces_default: false,
        ..Habits::default()
    };
    the_cloud_runner_conforms_on_an_engine_without_node_properties:
        Habits { node_properties: false, ..Habits::default() };
    the_cloud_runner_conforms_on_an_engine_with_read_only_inputs:
        Habits { node_properties: false, read_only: true, ..Habits::default() };
    the_cloud_runner_conforms_on_an_engine_with_a_queue: Habits { slots: 1, ..Habits::default() };
}
