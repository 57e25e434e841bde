use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
#[runner(default)]
struct Mine {
    noop: runners::Noop,
}

fn main() {
    runners::is_set::<Mine>();
}
