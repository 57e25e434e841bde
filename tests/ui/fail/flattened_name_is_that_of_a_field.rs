use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
struct Library {
    #[runner(default)]
    noop: runners::Noop,
    vm: runners::Vm,
}

#[derive(Debug, RunnerSet)]
struct Mine {
    #[runner(flatten, default)]
    library: Library,
    other: runners::OtherVm,
}

fn main() {
    runners::is_set::<Mine>();
}
