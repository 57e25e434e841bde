use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
struct Inner<R>(R, #[runner(name = "second")] runners::Noop);

#[derive(Debug, RunnerSet)]
struct Outer(#[runner(flatten)] Inner<runners::Vm>);

#[derive(Debug, RunnerSet)]
struct Mine {
    #[runner(flatten)]
    outer: Outer,
    #[runner(flatten)]
    again: Inner<runners::Shouting>,
}

fn main() {
    runners::is_set::<Mine>();
}
