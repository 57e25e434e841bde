use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
struct Mine {
    #[runner(flatten)]
    noop: runners::Noop,
    vm: runners::Vm,
}

fn main() {}
