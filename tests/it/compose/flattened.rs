//! Sets as fields of a set: derived ones, generic ones, and registries.

use std::sync::Arc;

use hm_exec::{
    BackendError, Engine, RunnerSet,
    runner::{CompositionError, Probe, RunnerErrorKind, RunnerIndex, RunnerRegistry, validate},
};

use super::{
    Exits,
    registry::plugin,
    runners::{Noop, OtherVm, Vm},
};
use crate::support::attempt::attempt;

#[derive(Debug, RunnerSet)]
struct Library {
    exits: Exits,
    #[runner(default, name = "other-exits")]
    other: Exits,
}

#[derive(Debug, RunnerSet)]
struct Program<S> {
    #[runner(flatten)]
    plugins: RunnerRegistry,
    noop: Noop,
    #[runner(flatten, default)]
    library: S,
    #[runner(name = "exits-5")]
    own: Exits,
    #[runner(flatten)]
    more: RunnerRegistry,
}

fn exits(code: i32) -> Exits {
    Exits { code, ..Exits::default() }
}

fn registry(plugins: &[(&str, i32)]) -> RunnerRegistry {
    let mut registry = RunnerRegistry::new();
    for &(name, code) in plugins {
        registry.register(plugin(name, code), true);
    }
    registry
}

fn program() -> Program<Library> {
    Program {
        plugins: registry(&[("plugin-1", 11), ("plugin-2", 12)]),
        noop: Noop,
        library: Library { exits: exits(1), other: exits(2) },
        own: exits(5),
        more: registry(&[("plugin-3", 13)]),
    }
}

/// The runners in the order of their indices, with the exit codes of their steps.
const ALL: [(&str, i32); 7] = [
    ("noop", 0),
    ("exits-5", 5),
    ("plugin-1", 11),
    ("plugin-2", 12),
    ("exits", 1),
    ("other-exits", 2),
    ("plugin-3", 13),
];

async fn check(set: &impl RunnerSet) {
    let names: Vec<_> = set.descriptors().iter().map(|descriptor| descriptor.name.to_string()).collect();
    assert_eq!(names, ALL.map(|(name, _)| name));
    assert_eq!((set.runner_count(), validate(&set.descriptors())), (ALL.len(), Ok(())));
    let defaults = set.descriptors().into_iter().filter(|descriptor| descriptor.is_default);
    assert_eq!(defaults.map(|descriptor| descriptor.name.to_string()).collect::<Vec<_>>(), ["other-exits"]);
    assert_eq!(set.default_index(), set.index_of("other-exits"));

    let (ctx, input) = attempt();
    for (index, (name, code)) in (0..).map(RunnerIndex).zip(ALL) {
        assert_eq!(set.index_of(name), Some(index));
        assert_eq!(set.dispatch(index, &ctx, input.clone()).await.unwrap().exit_code, code, "{name}");
        let note = |code: i32| Probe::usable().with_note(code.to_string());
        assert_eq!(set.probe(index).await, if name.contains("exits") { note(code) } else { Probe::usable() });
    }
    for beyond in [RunnerIndex(7), RunnerIndex(u16::MAX)] {
        let error = set.dispatch(beyond, &ctx, input.clone()).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (RunnerErrorKind::Infrastructure, false));
        assert!(set.at(beyond).is_none());
    }
}

#[tokio::test]
async fn the_runners_of_inner_sets_come_after_those_of_fields() {
    check(&program()).await;
    check(&program().into_registry()).await;
}

#[test]
fn snapshots_reach_the_runner_in_the_inner_set() {
    let program = program();
    let reaped = Arc::clone(&program.library.other.reaped);
    let index = program.default_index().unwrap();
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
        program.reap(index, vec!["exits:1".into()]).await;
        program.into_registry().reap(index, vec!["exits:2".into()]).await;
    });
    assert_eq!(*reaped.lock().unwrap(), ["exits:1".into(), "exits:2".into()]);
}

#[derive(Debug, RunnerSet)]
struct Wrapper(#[runner(flatten)] Program<Library>);

#[tokio::test]
async fn a_set_in_a_set_in_a_set_is_as_flat_and_the_only_one_is_the_default() {
    check(&Wrapper(program())).await;
    check(&Wrapper(program()).into_registry()).await;
}

#[derive(Debug, RunnerSet)]
struct NoDefault {
    #[runner(flatten)]
    library: Library,
    noop: Noop,
}

#[test]
fn a_default_is_named_in_the_outer_set() {
    let set = NoDefault { library: Library { exits: exits(1), other: exits(2) }, noop: Noop };
    assert_eq!(set.default_index(), None, "not inherited silently");
    assert_eq!(set.into_registry().default_runner_name(), None);
    let without = with(RunnerRegistry::new());
    assert_eq!((without.default_index(), without.runner_count()), (None, 2));
    assert_eq!(without.into_registry().default_runner_name(), None, "an inner set without a default");
}

fn with<S>(library: S) -> Program<S> {
    Program { plugins: RunnerRegistry::new(), noop: Noop, library, own: exits(5), more: RunnerRegistry::new() }
}

#[derive(Debug, RunnerSet)]
struct Pair<R>(Vm, R);

#[test]
fn names_that_are_known_at_run_time_are_checked_by_the_engine() {
    let refused = |set: Result<Engine<_>, BackendError>| match set.unwrap_err() {
        BackendError::Composition(why) => why,
        other => panic!("{other}"),
    };
    let twice = |name: &str, first, second| CompositionError::DuplicateName { name: name.into(), first, second };

    let set = || Program { more: registry(&[("noop", 1)]), ..with(RunnerRegistry::new()) };
    assert_eq!(refused(Engine::builder(set()).build()), twice("noop", 0, 2));
    let both = set().into_registry();
    assert_eq!(validate(&both.descriptors()), Err(twice("noop", 0, 2)), "neither replaces the other");

    let set =
        Program { plugins: registry(&[("same", 1)]), more: registry(&[("same", 2)]), ..with(RunnerRegistry::new()) };
    assert_eq!(refused(Engine::builder(set).build()), twice("same", 2, 3));

    assert_eq!(validate(&with(Pair(Vm, OtherVm)).descriptors()), Err(twice("vm", 2, 3)));
}
