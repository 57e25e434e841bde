use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
struct Mine {
    #[runner(default)]
    noop: runners::Noop,
    vm: runners::Vm,
    other: runners::OtherVm,
}

fn main() {
    runners::is_set::<Mine>();
}
