use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
struct Mine {
    #[runner(defualt)]
    noop: runners::Noop,
    vm: runners::Vm,
}

fn main() {
    runners::is_set::<Mine>();
}
