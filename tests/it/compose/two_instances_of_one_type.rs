use hm_exec::RunnerSet;

use super::runners::Vm;

#[derive(Debug, RunnerSet)]
struct Mine {
    #[runner(default)]
    small: Vm,
    #[runner(name = "vm-big")]
    big: Vm,
}

#[test]
fn two_instances_of_one_type_have_two_names() {
    let registry = Mine { small: Vm, big: Vm }.into_registry();
    assert_eq!(registry.runner_names(), ["vm", "vm-big"]);
    assert_eq!(registry.default_runner_name(), Some("vm"));
}
