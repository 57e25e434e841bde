//! Names that depend on a type parameter are checked when they are known: in `validate`, which the engine
//! calls.

use hm_exec::{
    BackendError, Engine, RunnerSet,
    runner::{CompositionError, RunnerIndex, StepRunner, validate},
};

use super::runners::{Noop, OtherVm, Vm};

#[derive(Debug, RunnerSet)]
struct Mine<Local, Remote: StepRunner = Vm>
where
    Local: StepRunner,
{
    #[runner(default)]
    local: Local,
    remote: Remote,
}

/// The derive adds the bounds that the fields need.
#[derive(Debug, RunnerSet)]
struct Unbounded<R> {
    runner: R,
}

#[test]
fn generic_sets_are_checked_at_run_time() {
    let set = Mine { local: Noop, remote: Vm };
    assert_eq!(set.index_of("vm"), Some(RunnerIndex(1)));
    assert_eq!(validate(&set.descriptors()), Ok(()));

    let twice = Mine { local: OtherVm, remote: Vm };
    let mistake = CompositionError::DuplicateName { name: "vm".into(), first: 0, second: 1 };
    assert_eq!(validate(&twice.descriptors()), Err(mistake.clone()));
    let refused = Engine::builder(twice).build().unwrap_err();
    assert!(matches!(refused, BackendError::Composition(why) if why == mistake));

    super::runners::is_set::<Unbounded<Noop>>();
}
