use std::{num::NonZeroUsize, sync::Arc};

use hm_exec::{
    ExecutorInput, RunnerSet, SnapshotRef, StepResult,
    runner::{
        ArgsSchema, CacheIdentity, DynStepRunner, Pool, Probe, RunnerCapabilities, RunnerDescriptor, RunnerError,
        RunnerIndex, RunnerRegistry, StepContext, StepRunner, TraceLookup,
    },
};

use super::Exits;
use crate::support::attempt::attempt;

/// A runner that overrides everything.
#[derive(Debug, Default)]
struct All {
    exits: Exits,
}

impl StepRunner for All {
    const NAME: &'static str = "all";
    const CACHE_VERSION: u32 = 3;

    async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        StepRunner::execute(&self.exits, ctx, input).await
    }

    async fn reap_snapshots(&self, snapshots: Vec<SnapshotRef>) {
        StepRunner::reap_snapshots(&self.exits, snapshots).await;
    }

    async fn probe(&self) -> Probe {
        Probe::unusable("of its own", "hint")
    }

    async fn probe_network(&self) -> Probe {
        Probe::unusable("no networks", "hint")
    }

    async fn cache_identity(&self, image: Option<&str>) -> Result<Option<CacheIdentity>, RunnerError> {
        Ok(Some(CacheIdentity { image: image.map(Into::into), mode: "own".into() }))
    }

    async fn look_up_trace(&self, _: &StepContext, input: ExecutorInput) -> Result<TraceLookup, RunnerError> {
        Ok(TraceLookup::Missed(Some(format!("{} has no trace", input.step.key))))
    }

    fn capabilities(&self) -> RunnerCapabilities {
        StepRunner::capabilities(&self.exits)
    }

    fn args_schema(&self) -> ArgsSchema {
        StepRunner::args_schema(&self.exits)
    }

    fn pool(&self) -> Pool {
        Pool::Own { limit: NonZeroUsize::MIN }
    }
}

#[derive(Debug, RunnerSet)]
struct Shared {
    #[runner(default)]
    all: Arc<All>,
}

#[derive(Debug, RunnerSet)]
struct Plain {
    #[runner(default)]
    all: All,
}

#[tokio::test]
async fn a_shared_runner_is_the_runner() {
    let runner = Arc::new(All::default());
    let shared = Shared { all: Arc::clone(&runner) };
    let said = |descriptors: Vec<RunnerDescriptor>| format!("{descriptors:?}");
    assert_eq!(said(shared.descriptors()), said(Plain { all: All::default() }.descriptors()));
    let only = RunnerIndex(0);
    assert_eq!(shared.probe(only).await, Probe::unusable("of its own", "hint"));
    assert_eq!(shared.probe_network(only).await, Probe::unusable("no networks", "hint"));
    let identity = shared.cache_identity(only, Some("image")).await.unwrap().unwrap();
    assert_eq!((identity.image.as_deref(), &*identity.mode), (Some("image"), "own"));
    let (ctx, input) = attempt();
    assert_eq!(shared.dispatch(only, &ctx, input.clone()).await.unwrap().exit_code, 0);
    let missed = TraceLookup::Missed(Some(format!("{} has no trace", input.step.key)));
    assert_eq!(shared.look_up_trace(only, &ctx, input).await.unwrap(), missed);
    shared.reap(only, vec!["all:1".into()]).await;
    assert_eq!(*runner.exits.reaped.lock().unwrap(), ["all:1".into()]);

    let mut registry = RunnerRegistry::new();
    let twice: Arc<dyn DynStepRunner> = Arc::new(Arc::clone(&runner));
    registry.register(twice, true);
    assert_eq!(said(registry.descriptors()), said(shared.descriptors()));
}

#[test]
fn a_shared_runner_forwards_every_item_of_the_trait() {
    let contract = include_str!("../../../src/runner/contract.rs");
    let items = |text: &str| -> Vec<String> {
        let item = |line: &str| {
            let rest = line.strip_prefix("    fn ").or_else(|| line.strip_prefix("    const "))?;
            Some(rest.split(['(', ':']).next()?.to_owned())
        };
        text.lines().filter_map(item).collect()
    };
    let (declared, forwarded) = contract.split_once("for Arc<R>").unwrap();
    assert_eq!(items(declared), items(forwarded));
    assert_eq!(items(declared).len(), 13);
}
