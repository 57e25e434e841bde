//! The cloud runner on BuildGrid and a worker of this build, with the sandbox on the same store as its peer.

use std::sync::Arc;

use hm_exec::{
    conformance::Suite,
    remote::EndpointOptions,
    runner::{cloud::CloudRunner, sandbox::SandboxRunner},
    store::Store,
};

use crate::support::{buildgrid::BuildGrid, images::Image, programs::hm, remote_engine::step_program};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cloud_runner_conforms() {
    let Some(program) = step_program() else { return };
    let Some(engine) = tokio::task::spawn_blocking(BuildGrid::start).await.unwrap() else { return };
    let worker = engine.worker("conforming");
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let layout = dir.path().join("image");
    Image::shell().write_oci(&layout, "it");
    let builder = CloudRunner::builder().endpoint(EndpointOptions::new(engine.url()));
    let builder = builder.log_service(EndpointOptions::new(engine.logstream_url())).step_program(program);
    let runner = builder.store(Arc::clone(&store)).helper(hm()).build();
    let peer = SandboxRunner::builder().store(Arc::clone(&store)).helper(hm()).build();
    let image = format!("oci:{}:it", layout.display());
    let report = Suite::new(&runner, image).peer(&peer).sample().run().await;
    println!("{report}");
    assert!(report.unchecked().all(|case| case == "lineage-xattrs"), "for want of a tool in a small image: {report}");
    assert!(report.failed().next().is_none(), "{report}\n{}", worker.log());
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
