use hm_exec::{RunnerSet, runner::RunnerIndex};

use super::runners::{Noop, Vm};

#[derive(Debug, RunnerSet)]
struct Mine(Noop, #[runner(default)] Vm);

#[test]
fn tuple_structs_are_sets() {
    let set = Mine(Noop, Vm);
    assert_eq!(set.default_index(), Some(RunnerIndex(1)));
    assert_eq!(set.into_registry().runner_names(), ["noop", "vm"]);
}
