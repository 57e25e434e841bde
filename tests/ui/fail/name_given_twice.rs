use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
struct Mine {
    #[runner(name = "a")]
    #[runner(name = "b")]
    noop: runners::Noop,
}

fn main() {
    runners::is_set::<Mine>();
}
