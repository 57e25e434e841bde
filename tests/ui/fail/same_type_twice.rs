use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
struct Mine(runners::Vm, runners::Vm);

fn main() {
    runners::is_set::<Mine>();
}
