//! The sandbox, on this machine's system and on a small image, with root and without (see
//! `sandbox::rootless`).

use std::sync::Arc;

use hm_exec::{
    conformance::{CaseVerdict, Report, Suite},
    runner::sandbox::{MountApi, SandboxBuilder, SandboxRunner, UserNamespace},
    store::Store,
};
use tempfile::TempDir;

use crate::support::{backends::usable, programs::hm, rootfs::busybox_rootfs, users::is_root};

/// A store and sandboxes on it.
struct Place {
    dir: TempDir,
    store: Arc<Store>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    fn sandbox(&self, configure: impl FnOnce(SandboxBuilder) -> SandboxBuilder) -> SandboxRunner {
        configure(SandboxRunner::builder().store(Arc::clone(&self.store)).helper(hm())).build()
    }
}

/// Returns the cases of a report that did not pass.
fn others(report: &Report) -> Vec<&'static str> {
    report.cases.iter().filter(|case| case.verdict != CaseVerdict::Passed).map(|case| case.case).collect()
}

#[tokio::test]
async fn the_sandbox_conforms_on_this_machines_system() {
    let place = Place::new();
    let (runner, peer) = (place.sandbox(|it| it), place.sandbox(|it| it.mount_api(MountApi::Legacy)));
    let report = Suite::new(&runner, "host").peer(&peer).run().await;
    println!("{report}");
    report.assert_passed();
    let has_python = report.unchecked().next().is_none();
    usable("python3 in steps", has_python, "there is none on this machine to set extended attributes with");
    let single = !is_root() && report.not_promised().eq(["lineage-ownership"]);
    assert!(single || report.not_promised().next().is_none());
}

#[tokio::test]
async fn the_sandbox_conforms_on_a_small_image() {
    let place = Place::new();
    let Some(image) = busybox_rootfs(place.dir.path()) else { return };
    let runner = place.sandbox(|it| it);
    let report = Suite::new(&runner, image).run().await;
    println!("{report}");
    report.assert_passed();
    assert!(report.unchecked().eq(["lineage-xattrs"]), "busybox has no tool for extended attributes");
}

#[tokio::test]
async fn the_older_way_to_mount_keeps_files_as_they_are() {
    let place = Place::new();
    let runner = place.sandbox(|it| it.mount_api(MountApi::Legacy));
    let suite = Suite::new(&runner, "host");
    for case in ["lineage-files", "lineage-directories", "lineage-system", "siblings", "edited-source"] {
        assert_eq!(suite.run_case(case).await, Some(CaseVerdict::Passed), "{case}");
    }
}

#[tokio::test]
async fn a_sandbox_with_a_single_id_does_not_promise_owners() {
    let place = Place::new();
    let runner = place.sandbox(|it| it.user_namespace(UserNamespace::Single));
    let suite = Suite::new(&runner, "host");
    let verdict = suite.run_case("lineage-ownership").await;
    assert_eq!(verdict, Some(CaseVerdict::NotPromised { capability: "ownership" }));
    assert_eq!(suite.run_case("no-such-case").await, None);
    let runner = place.sandbox(|it| it);
    let report = Suite::new(&runner, "rootfs:/no/such/dir").run().await;
    assert!(others(&report).len() > 30, "a runner without an image passes: {report}");
}
