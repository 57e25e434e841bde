//! Sets of runners: what the derive makes of a struct, and that a registry of the same runners behaves the
//! same.

mod cfg_on_fields;
mod flattened;
mod generic_set;
mod hygiene;
mod mixed_with_ours;
mod only_runner_is_the_default;
mod registry;
mod shared;
mod tuple_struct;
mod two_instances_of_one_type;

#[path = "../../ui/runners.rs"]
mod runners;

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex},
};

use hm_exec::{
    ExecutorInput, RunnerSet, SnapshotRef, StepResult,
    runner::{
        ArgsSchema, Pool, Probe, RunnerCapabilities, RunnerDescriptor, RunnerError, RunnerErrorKind, RunnerIndex,
        StepContext, StepRunner,
    },
};

use crate::support::attempt::attempt;

/// A runner that exits with its code, and claims all capabilities that it can.
#[derive(Debug, Default, Clone)]
struct Exits {
    code: i32,
    reaped: Arc<Mutex<Vec<SnapshotRef>>>,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Args {
    #[expect(dead_code, reason = "checked, never read")]
    memory: u64,
}

impl StepRunner for Exits {
    const NAME: &'static str = "exits";
    const CACHE_VERSION: u32 = 7;

    async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        // An await point, so that a dispatch takes more than its first poll.
        tokio::task::yield_now().await;
        assert_eq!((ctx.attempt, &*input.step.key), (1, "build"));
        Ok(StepResult::exited(self.code))
    }

    async fn reap_snapshots(&self, snapshots: Vec<SnapshotRef>) {
        self.reaped.lock().unwrap().extend(snapshots);
    }

    async fn probe(&self) -> Probe {
        Probe::usable().with_note(self.code.to_string())
    }

    fn capabilities(&self) -> RunnerCapabilities {
        let mut capabilities = RunnerCapabilities::default();
        capabilities.layers = true;
        capabilities
    }

    fn args_schema(&self) -> ArgsSchema {
        ArgsSchema::of::<Args>()
    }

    fn pool(&self) -> Pool {
        Pool::Own { limit: NonZeroUsize::MIN }
    }
}

#[derive(Debug, RunnerSet)]
struct Mine {
    noop: runners::Noop,
    exits: Exits,
    #[runner(default, name = "other-exits")]
    other: Exits,
}

fn mine() -> Mine {
    Mine {
        noop: runners::Noop,
        exits: Exits { code: 1, ..Exits::default() },
        other: Exits { code: 2, ..Exits::default() },
    }
}

const ALL: [RunnerIndex; 3] = [RunnerIndex(0), RunnerIndex(1), RunnerIndex(2)];

/// Returns descriptors as text: a plan cannot distinguish two with the same text.
fn says(descriptors: &[RunnerDescriptor]) -> Vec<String> {
    descriptors.iter().map(|descriptor| format!("{descriptor:?}")).collect()
}

/// One test for both sides: whatever holds for a derived set holds for its registry.
async fn check_set(set: &impl RunnerSet) {
    assert_eq!(set.default_index(), Some(ALL[2]));
    assert_eq!(set.index_of("noop"), Some(ALL[0]));
    assert_eq!(set.index_of("other-exits"), Some(ALL[2]));
    assert_eq!(set.index_of("other"), None, "a renamed runner is not known by its field");
    assert_eq!(says(&set.descriptors()), says(&mine().descriptors()));

    let (ctx, input) = attempt();
    for (index, exit_code) in ALL.into_iter().zip(0..) {
        let result = set.dispatch(index, &ctx, input.clone()).await.unwrap();
        assert_eq!(result.exit_code, exit_code);
    }

    let note = |note: &str| Probe::usable().with_note(note);
    let probes = [Probe::usable(), note("1"), note("2")];
    assert_eq!(set.probe_all().await, probes);
    for (index, expected) in ALL.into_iter().zip(probes) {
        assert_eq!(set.probe(index).await, expected);
    }

    let beyond = RunnerIndex(3);
    let error = set.dispatch(beyond, &ctx, input).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (RunnerErrorKind::Infrastructure, false));
    assert!(matches!(set.probe(beyond).await, Probe::Unusable { .. }));
    set.reap(beyond, vec!["exits:lost".into()]).await;
}

#[tokio::test]
async fn a_derived_set_dispatches_by_the_order_of_its_fields() {
    check_set(&mine()).await;
}

#[tokio::test]
async fn the_registry_of_a_set_is_the_same_set() {
    check_set(&mine().into_registry()).await;
}

#[test]
fn descriptors_match_the_runners() {
    let descriptors = mine().descriptors();
    let other = &descriptors[2];
    assert_eq!((&*other.name, other.is_default, other.cache_version), ("other-exits", true, 7));
    assert!(other.capabilities.layers);
    assert_eq!(other.pool, Pool::Own { limit: NonZeroUsize::MIN });
    let error = other.args.check(&serde_json::json!({ "memory": "much" })).unwrap_err();
    assert_eq!(error.path, "runner_args.memory");
    assert_eq!((&*descriptors[0].name, descriptors[0].is_default, descriptors[0].cache_version), ("noop", false, 1));
}

#[tokio::test]
async fn snapshots_go_back_to_the_runner_that_made_them() {
    let set = mine();
    let reaped = [&set.exits, &set.other].map(|runner| Arc::clone(&runner.reaped));
    set.reap(ALL[0], vec!["noop:0".into()]).await;
    set.reap(ALL[2], vec!["exits:1".into(), "exits:2".into()]).await;
    set.into_registry().reap(ALL[1], vec!["exits:3".into()]).await;
    let [exits, other] = reaped.map(|reaped| std::mem::take(&mut *reaped.lock().unwrap()));
    assert_eq!(exits, ["exits:3".into()]);
    assert_eq!(other, ["exits:1".into(), "exits:2".into()]);
}
