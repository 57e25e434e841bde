use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
struct Mine {
    shouting: runners::Shouting,
}

fn main() {
    runners::is_set::<Mine>();
}
