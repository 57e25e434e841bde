use hm_exec::RunnerSet;

#[path = "../runners.rs"]
mod runners;

#[derive(Debug, RunnerSet)]
#[runner]
struct Mine<R> {
    #[runner(default, name = "")]
    noop: runners::Noop,
    #[runner(default, name = "vm")]
    vm: runners::Vm,
    #[runner(nmae = "vm")]
    typo: runners::Vm,
    #[runner(name = "vm", default)]
    generic: R,
}

fn main() {
    runners::is_set::<Mine<runners::Noop>>();
}
