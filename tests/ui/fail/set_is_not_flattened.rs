use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

// More runners than the compiler lists, so that its list does not change with the runners that hm_exec has.
runners::runner!(A1 = "a1", A2 = "a2", A3 = "a3", A4 = "a4", A5 = "a5", A6 = "a6", A7 = "a7", A8 = "a8", A9 = "a9");

#[derive(Debug, RunnerSet)]
struct Mine {
    #[runner(default)]
    noop: runners::Noop,
    plugins: hm_exec::runner::RunnerRegistry,
}

fn main() {}
