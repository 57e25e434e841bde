//! Another crate's runners beside those runners of this crate that the build enables.

use hm_exec::{
    RunnerSet,
    runner::{process::ProcessRunner, validate},
    store::StoreHandle,
};

use super::runners::Noop;

#[derive(Debug, RunnerSet)]
struct Mine {
    #[cfg(feature = "sandbox")]
    sandbox: hm_exec::runner::sandbox::SandboxRunner,
    #[runner(default)]
    process: ProcessRunner,
    noop: Noop,
}

#[test]
fn runners_of_another_crate_combine_with_ours() {
    let top = tempfile::tempdir().unwrap();
    let store = StoreHandle::new(top.path().join("store"));
    let set = Mine {
        #[cfg(feature = "sandbox")]
        sandbox: hm_exec::runner::sandbox::SandboxRunner::builder().store(store.clone()).build(),
        process: ProcessRunner::new(store),
        noop: Noop,
    };
    assert_eq!(validate(&set.descriptors()), Ok(()));
    let registry = set.into_registry();
    assert_eq!(registry.default_runner_name(), Some("process"));
    assert!(registry.resolve(Some("noop")).is_some());
    assert_eq!(registry.resolve(Some("sandbox")).is_some(), cfg!(feature = "sandbox"));
    assert!(!top.path().join("store").exists(), "composing runners opens nothing");
}
