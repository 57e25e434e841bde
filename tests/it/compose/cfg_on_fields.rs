//! `cfg` is evaluated before the derive sees the struct, so that it can remove a default or a name.

use hm_exec::RunnerSet;

use super::runners::{Noop, Vm};

#[derive(Debug, RunnerSet)]
struct Mine {
    #[cfg(not(unix))]
    #[runner(default)]
    nowhere: NoSuchType,
    #[cfg(unix)]
    #[runner(default)]
    noop: Noop,
    #[cfg_attr(unix, runner(name = "here"))]
    vm: Vm,
}

#[test]
fn fields_that_cfg_removes_are_not_runners() {
    let registry = Mine { noop: Noop, vm: Vm }.into_registry();
    assert_eq!(registry.runner_names(), ["here", "noop"]);
    assert_eq!(registry.default_runner_name(), Some("noop"));
}
