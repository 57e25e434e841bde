//! The docker runner on an image of the daemon, with the sandbox on the same store as its peer.

use std::sync::Arc;

use hm_exec::{
    conformance::Suite,
    runner::{docker::Docker, sandbox::SandboxRunner},
    store::Store,
};

use crate::support::{
    docker_daemon::{Daemon, IMAGE},
    programs::hm,
    users::is_root,
};

#[tokio::test]
async fn the_docker_runner_conforms() {
    let Some(daemon) = Daemon::get() else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let sandbox = || SandboxRunner::builder().store(Arc::clone(&store)).helper(hm());
    let runner = Docker::builder().host(&daemon.host).local(sandbox()).build(Arc::clone(&store));
    let peer = sandbox().build();
    let report = Suite::new(&runner, IMAGE).peer(&peer).run().await;
    println!("{report}");
    report.assert_passed();
    assert!(report.unchecked().next().is_none(), "{report}");
    let mut lacks = vec!["lineage-xattrs", "secrets", "secrets-stay-with-their-run", "cache-directories"];
    if !is_root() {
        lacks.insert(0, "lineage-ownership");
    }
    assert!(report.not_promised().eq(lacks), "{report}");
    // The runs have ended, and the runner has cleaned up the attempts that were dropped.
    drop(runner);
    assert_eq!(daemon.ours(store.dir()).await, (vec![], vec![]));
}
