use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
#[runner(crate = "not a path")]
struct Mine {
    noop: runners::Noop,
}

#[derive(Debug, RunnerSet)]
#[runner(crate = "hm_exec", crate = "::hm_exec")]
#[runner(krate = "hm_exec")]
struct Other {
    noop: runners::Noop,
}

fn main() {
    runners::is_set::<Mine>();
    runners::is_set::<Other>();
}
