use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
struct Mine {
    #[runner(default)]
    noop: runners::Noop,
    #[runner(default)]
    vm: runners::Vm,
}

fn main() {
    runners::is_set::<Mine>();
}
