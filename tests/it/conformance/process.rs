//! The process runner keeps its promises, and promises no isolation.

use hm_exec::{conformance::Suite, runner::process::ProcessRunner, store::StoreHandle};

use crate::support::programs::hm;

#[tokio::test]
async fn the_process_runner_conforms() {
    conforms(|runner| runner).await;
}

#[tokio::test]
async fn the_process_runner_conforms_with_a_helper() {
    conforms(|runner| runner.helper(hm())).await;
}

async fn conforms(set_up: impl FnOnce(ProcessRunner) -> ProcessRunner) {
    // Children inherit that this process ignores a signal, but not that it handles one.
    let _interrupts = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let runner = set_up(ProcessRunner::new(StoreHandle::new(dir.path())));
    let report = Suite::new(&runner, "host").run().await;
    report.assert_passed();
    assert_eq!(
        report.not_promised().collect::<Vec<_>>(),
        [
            "lineage-ownership",
            "lineage-xattrs",
            "lineage-system",
            "exchange",
            "workdir",
            "host-files",
            "host-processes",
            "secrets",
            "secrets-stay-with-their-run",
            "memory",
            "processes",
            "arguments",
            "network-none",
            "network-private",
            "cache-directories",
            "services",
            "files-of-other-steps",
        ]
    );
}
