//! Runners by name, composed at run time.

use std::{fmt, sync::Arc};

use super::{
    DynStepRunner, ExecutorInput, RunnerError, RunnerIndex, RunnerSet, StepContext, StepResult, set::no_such_runner,
};

/// Runners by name, composed at run time. An engine runs on it as on a derived set, at the cost of one
/// boxed future per step. With `#[runner(flatten)]` it can be a field of a derived set, beside runners that
/// are known when the program is compiled.
///
/// ```
/// # use hm_exec::{ExecutorInput, StepResult, runner::*};
/// # #[derive(Debug)] struct Noop;
/// # impl StepRunner for Noop {
/// #     const NAME: &'static str = "noop";
/// #     async fn execute(&self, _: &StepContext, _: ExecutorInput) -> Result<StepResult, RunnerError> {
/// #         Ok(StepResult::exited(0))
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
    entries: Vec<RegistryEntry>,
    default: Option<usize>,
}

struct RegistryEntry {
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
        let entry = RegistryEntry { name, runner };
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

    /// Adds the runners of another registry behind those of this one. `default` is the index among them of
    /// the new default. A name that both have stays in the registry twice, so that an engine refuses it.
    pub(super) fn append(&mut self, other: Self, default: Option<u16>) {
        self.default = default.map(|index| self.entries.len() + usize::from(index)).or(self.default);
        self.entries.extend(other.entries);
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|entry| &*entry.name == name)
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
    fn at(&self, index: RunnerIndex) -> Option<(&str, &dyn DynStepRunner)> {
        self.entries.get(usize::from(index.0)).map(|entry| (&*entry.name, &*entry.runner))
    }

    fn default_index(&self) -> Option<RunnerIndex> {
        self.default.and_then(|index| index.try_into().ok()).map(RunnerIndex)
    }

    fn runner_count(&self) -> usize {
        self.entries.len()
    }

    async fn dispatch(
        &self,
        index: RunnerIndex,
        ctx: &StepContext,
        input: ExecutorInput,
    ) -> Result<StepResult, RunnerError> {
        match self.at(index) {
            Some((_, runner)) => runner.execute(ctx, input).await,
            None => Err(no_such_runner(index)),
        }
    }

    fn into_registry(self) -> RunnerRegistry {
        self
    }
}
