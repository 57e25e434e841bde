//! The registry as its users know it, with hand-written runners.

use std::{pin::Pin, sync::Arc};

use hm_exec::{
    ExecutorInput, RunnerSet, StepResult,
    runner::{
        CompositionError, DynStepRunner, Pool, Probe, RunnerError, RunnerIndex, RunnerRegistry, StepContext, validate,
    },
};

use super::runners::{Noop, Vm};
use crate::support::attempt::attempt;

/// A runner whose name is known only at run time.
#[derive(Debug)]
pub(super) struct Plugin {
    name: String,
    exit_code: i32,
}

impl DynStepRunner for Plugin {
    fn name(&self) -> &str {
        &self.name
    }

    fn execute<'a>(
        &'a self,
        _: &'a StepContext,
        _: ExecutorInput,
    ) -> Pin<Box<dyn Future<Output = Result<StepResult, RunnerError>> + Send + 'a>> {
        let exit_code = self.exit_code;
        Box::pin(async move { Ok(StepResult::exited(exit_code)) })
    }
}

pub(super) fn plugin(name: &str, exit_code: i32) -> Arc<Plugin> {
    Arc::new(Plugin { name: name.into(), exit_code })
}

fn resolved(registry: &RunnerRegistry, name: Option<&str>) -> Option<String> {
    registry.resolve(name).map(|runner| runner.name().to_owned())
}

#[test]
fn runners_resolve_by_name() {
    let mut registry = RunnerRegistry::new();
    registry.register(Arc::new(Vm), false);
    registry.register(plugin("local", 0), false);
    assert_eq!(resolved(&registry, Some("vm")).as_deref(), Some("vm"));
    assert_eq!(resolved(&registry, Some("local")).as_deref(), Some("local"));
    assert_eq!(resolved(&registry, Some("nope")), None);
}

#[test]
fn no_name_resolves_to_the_default_if_there_is_one() {
    let mut registry = RunnerRegistry::default();
    assert_eq!((resolved(&registry, None), registry.default_runner_name()), (None, None));
    registry.register(Arc::new(Vm), false);
    assert_eq!((resolved(&registry, None), registry.default_runner_name()), (None, None));
    registry.register(Arc::new(Noop), true);
    assert_eq!(resolved(&registry, None).as_deref(), Some("noop"));
    registry.register(plugin("local", 0), true);
    assert_eq!(registry.default_runner_name(), Some("local"), "the last one that asks is the default");
}

#[test]
fn names_are_sorted_and_indices_are_not() {
    let mut registry = RunnerRegistry::new();
    for name in ["zeta", "alpha", "mid"] {
        registry.register(plugin(name, 0), name == "mid");
    }
    assert_eq!(registry.runner_names(), ["alpha", "mid", "zeta"]);
    assert_eq!(registry.index_of("zeta"), Some(RunnerIndex(0)));
    assert_eq!(
        format!("{registry:?}"),
        r#"RunnerRegistry { runners: ["alpha", "mid", "zeta"], default: Some("mid") }"#
    );
}

#[tokio::test]
async fn registering_a_name_again_replaces_its_runner_in_place() {
    let mut registry = RunnerRegistry::new();
    registry.register(plugin("a", 1), true);
    registry.register(plugin("b", 2), false);
    registry.register(plugin("a", 3), false);
    assert_eq!(registry.runner_names(), ["a", "b"]);
    assert_eq!(registry.default_runner_name(), Some("a"));
    assert_eq!(registry.index_of("a"), Some(RunnerIndex(0)));

    let (ctx, input) = attempt();
    let result = registry.dispatch(RunnerIndex(0), &ctx, input.clone()).await.unwrap();
    assert_eq!(result.exit_code, 3);
    let result = registry.resolve(Some("b")).unwrap().execute(&ctx, input).await.unwrap();
    assert_eq!(result.exit_code, 2);
}

#[tokio::test]
async fn a_handwritten_runner_needs_only_a_name_and_execute() {
    let mut registry = RunnerRegistry::new();
    registry.register(plugin("local", 0), true);
    let [descriptor] = &registry.descriptors()[..] else { panic!("one runner") };
    assert_eq!((&*descriptor.name, descriptor.is_default, descriptor.cache_version), ("local", true, 1));
    assert_eq!((descriptor.capabilities, descriptor.pool), (Default::default(), Pool::Local));
    assert_eq!(registry.probe_all().await, [Probe::usable()]);
    registry.resolve(None).unwrap().reap_snapshots(vec!["local:1".into()]).await;
}

#[test]
fn an_empty_registry_and_a_bad_name_do_not_compose() {
    let mut registry = RunnerRegistry::new();
    assert_eq!(validate(&registry.descriptors()), Err(CompositionError::Empty));
    registry.register(plugin("hm1:x", 0), true);
    assert_eq!(validate(&registry.descriptors()), Err(CompositionError::BadName { name: "hm1:x".into() }));
}
