use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
struct Mine {
    #[runner(name = "big")]
    noop: runners::Noop,
    #[runner(name = "big")]
    vm: runners::Vm,
}

fn main() {
    runners::is_set::<Mine>();
}
