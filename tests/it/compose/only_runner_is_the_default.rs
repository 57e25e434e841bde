use hm_exec::{RunnerSet, runner::RunnerIndex};

use super::runners::{Noop, Vm};

#[derive(Debug, RunnerSet)]
struct One {
    noop: Noop,
}

#[derive(Debug, RunnerSet)]
struct Two {
    noop: Noop,
    vm: Vm,
}

#[test]
fn the_only_runner_is_the_default() {
    assert_eq!(One { noop: Noop }.default_index(), Some(RunnerIndex(0)));
    assert_eq!(Two { noop: Noop, vm: Vm }.default_index(), None);
}
