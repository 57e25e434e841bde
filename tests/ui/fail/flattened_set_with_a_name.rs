use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
struct Library(runners::Noop);

#[derive(Debug, RunnerSet)]
struct Mine {
    #[runner(flatten, flatten, name = "library")]
    library: Library,
    #[runner(crate = "hm_exec")]
    vm: runners::Vm,
}

fn main() {
    runners::is_set::<Mine>();
}
