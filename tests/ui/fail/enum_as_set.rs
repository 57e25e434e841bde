use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
enum Mine {
    Noop(runners::Noop),
    Vm(runners::Vm),
}

fn main() {
    runners::is_set::<Mine>();
}
