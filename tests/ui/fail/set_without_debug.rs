use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(RunnerSet)]
struct Mine {
    noop: runners::Noop,
}

fn main() {}
