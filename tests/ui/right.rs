//! Compiles with the library that is built for tests: no other has the suite.

use hm_exec::{RunnerSet, conformance::Suite};

mod runners;

#[derive(Debug, RunnerSet)]
struct Mine {
    noop: runners::Noop,
    #[runner(default)]
    vm: runners::Vm,
}

fn main() {
    runners::is_set::<Mine>();
    let _ = |runner: &'static runners::Noop| Suite::new(runner, "host");
}
