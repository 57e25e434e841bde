//! Runners by name, composed at run time.

use std::{fmt, sync::Arc};

use futures_util::future::join_all;

use super::{
    CacheIdentity, DynStepRunner, ExecutorInput, Probe, RunnerDescriptor, RunnerError, RunnerIndex, RunnerSet,
    SnapshotRef, StepContext, StepResult,
    set::{no_such_runner, unusable_index},
};

/// Runners by name, composed at run time. An engine runs on it as on a derived set, at the cost of one boxed
/// future per step.
///
/// ```
/// # use hm_exec::{ExecutorInput, StepResult, runner::*};
/// # #[derive(Debug)] struct Noop;
/// # impl StepRunner for Noop {
/// #     const NAME: &'static str = "noop";
/// #     async fn execute(&self, _: &StepContext, _: ExecutorInput) -> Result<StepResult, RunnerError> {
/// #         Ok(StepResult { exit_code: 0, committed_snapshot: None, artifacts: vec![] })
/// #     }
/// # }
/// use std::sync::Arc;
///
/// let mut registry = RunnerRegistry::new();
/// registry.register(Arc::new(Noop), true);
/// assert_eq!(registry.runner_names(), ["noop"]);
/// assert_eq!(registry.resolve(None).map(|runner| runner.name().to_owned()).as_deref(), Some("noop"));
/// assert!(registry.resolve(Some("vm")).is_none());
/// ```
#[derive(Default)]
pub struct RunnerRegistry {
    /// The runners in the order of registration, so that indices are stable. There are so few that a scan is
    /// faster than a map.
    entries: Vec<Entry>,
    default: Option<usize>,
}

struct Entry {
    /// The name at registration, so that a runner that later returns another name is still found under this
    /// one.
    name: Arc<str>,
    runner: Arc<dyn DynStepRunner>,
}

impl RunnerRegistry {
    /// Creates a registry without runners and without a default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a runner under its name, or replaces the runner of the same name. A replacement keeps the index,
    /// and stays the default if its predecessor was. With `is_default`, this runner now runs the steps that
    /// name no runner.
    pub fn register(&mut self, runner: Arc<dyn DynStepRunner>, is_default: bool) {
        let name: Arc<str> = runner.name().into();
        let index = self.position(&name).unwrap_or(self.entries.len());
        let entry = Entry { name, runner };
        match self.entries.get_mut(index) {
            Some(replaced) => *replaced = entry,
            None => self.entries.push(entry),
        }
        if is_default {
            self.default = Some(index);
        }
    }

    /// Returns the runner with this name, or the default for `None`.
    #[must_use]
    pub fn resolve(&self, name: Option<&str>) -> Option<Arc<dyn DynStepRunner>> {
        let index = match name {
            Some(name) => self.position(name),
            None => self.default,
        }?;
        Some(Arc::clone(&self.entries[index].runner))
    }

    /// Returns the name of the runner for steps that name none.
    #[must_use]
    pub fn default_runner_name(&self) -> Option<&str> {
        self.default.map(|index| &*self.entries[index].name)
    }

    /// Returns all names, sorted.
    #[must_use]
    pub fn runner_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.entries.iter().map(|entry| &*entry.name).collect();
        names.sort_unstable();
        names
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| &*entry.name == name)
    }

    fn get(&self, index: RunnerIndex) -> Option<&dyn DynStepRunner> {
        self.entries.get(usize::from(index.0)).map(|entry| &*entry.runner)
    }
}

impl fmt::Debug for RunnerRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunnerRegistry")
            .field("runners", &self.runner_names())
            .field("default", &self.default_runner_name())
            .finish()
    }
}

impl RunnerSet for RunnerRegistry {
    fn descriptors(&self) -> Vec<RunnerDescriptor> {
        self.entries
            .iter()
            .enumerate()
            .map(|(index, Entry { name, runner })| RunnerDescriptor {
                name: Arc::clone(name),
                is_default: self.default == Some(index),
                capabilities: runner.capabilities(),
                args: runner.args_schema(),
                pool: runner.pool(),
                cache_version: runner.cache_version(),
            })
            .collect()
    }

    fn index_of(&self, name: &str) -> Option<RunnerIndex> {
        self.position(name).and_then(|index| index.try_into().ok()).map(RunnerIndex)
    }

    fn default_index(&self) -> Option<RunnerIndex> {
        self.default.and_then(|index| index.try_into().ok()).map(RunnerIndex)
    }

    async fn dispatch(
        &self,
        index: RunnerIndex,
        ctx: &StepContext,
        input: ExecutorInput,
    ) -> Result<StepResult, RunnerError> {
        match self.get(index) {
            Some(runner) => runner.execute(ctx, input).await,
            None => Err(no_such_runner(index)),
        }
    }

    async fn probe(&self, index: RunnerIndex) -> Probe {
        match self.get(index) {
            Some(runner) => runner.probe().await,
            None => unusable_index(index),
        }
    }

    async fn probe_all(&self) -> Vec<Probe> {
        join_all(self.entries.iter().map(|entry| entry.runner.probe())).await
    }

    async fn cache_identity(
        &self,
        index: RunnerIndex,
        image: Option<&str>,
    ) -> Result<Option<CacheIdentity>, RunnerError> {
        match self.get(index) {
            Some(runner) => runner.cache_identity(image).await,
            None => Err(no_such_runner(index)),
        }
    }

    async fn reap(&self, index: RunnerIndex, snapshots: Vec<SnapshotRef>) {
        if let Some(runner) = self.get(index) {
            runner.reap_snapshots(snapshots).await;
        }
    }

    fn into_registry(self) -> RunnerRegistry {
        self
    }
}
