//! The runner of virtual machines on image `host`, with the sandbox on the same store as its peer.

use hm_exec::conformance::Suite;

use crate::support::{qemu::Bench, users::is_root};

#[tokio::test]
async fn the_runner_of_virtual_machines_conforms() {
    let Some(bench) = Bench::new() else { return };
    let (runner, peer) = (bench.vm(), bench.sandbox());
    let report = Suite::new(&runner, "host").peer(&peer).sample().run().await;
    println!("{report}");
    report.assert_passed();
    let mut lacks =
        vec!["secrets", "secrets-stay-with-their-run", "cache-directories", "services", "files-of-other-steps"];
    if !is_root() {
        lacks.insert(0, "lineage-ownership");
    }
    assert!(report.not_promised().eq(lacks), "{report}");
}
