//! A set of runners as one value: what the engine is generic over.

use std::{fmt, future::Future, sync::Arc};

use super::{
    CacheIdentity, ExecutorInput, Probe, RunnerDescriptor, RunnerError, RunnerIndex, RunnerRegistry, SnapshotRef,
    StepContext, StepResult, name::is_runner_name,
};

/// A set of runners, composed at compile time (by `#[derive(RunnerSet)]` on a struct of runners) or at run time (a
/// [`RunnerRegistry`]).
///
/// Names resolve once, when a plan is bound; from then on a step carries a [`RunnerIndex`], and a derived set dispatches
/// on it with one flat `match`: one concrete future type, no box, no allocation.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a set of runners",
    note = "put `#[derive(RunnerSet)]` on a struct whose fields are runners, or hand over a `RunnerRegistry`"
)]
pub trait RunnerSet: Send + Sync + fmt::Debug + 'static {
    /// Every runner in the order of the indices.
    fn descriptors(&self) -> Vec<RunnerDescriptor>;

    /// The index of the runner that pipelines call `name`.
    fn index_of(&self, name: &str) -> Option<RunnerIndex>;

    /// The index of the runner that steps get which name none.
    fn default_index(&self) -> Option<RunnerIndex>;

    /// Runs one attempt on the runner at `index`. Contract and cancel safety are those of
    /// [`StepRunner::execute`](super::StepRunner::execute).
    ///
    /// # Errors
    /// Those of the runner; an `index` that is not of this set is an infrastructure error.
    fn dispatch(
        &self,
        index: RunnerIndex,
        ctx: &StepContext,
        input: ExecutorInput,
    ) -> impl Future<Output = Result<StepResult, RunnerError>> + Send;

    /// Asks the runner at `index` whether it can work on this machine.
    fn probe(&self, index: RunnerIndex) -> impl Future<Output = Probe> + Send;

    /// Asks every runner at once, and answers in the order of the indices.
    fn probe_all(&self) -> impl Future<Output = Vec<Probe>> + Send;

    /// Asks the runner at `index` what goes into cache keys; see
    /// [`StepRunner::cache_identity`](super::StepRunner::cache_identity).
    ///
    /// # Errors
    /// Those of the runner; an `index` that is not of this set is an infrastructure error.
    fn cache_identity(
        &self,
        index: RunnerIndex,
        image: Option<&str>,
    ) -> impl Future<Output = Result<Option<CacheIdentity>, RunnerError>> + Send;

    /// Hands snapshots back to the runner at `index`, which made them.
    fn reap(&self, index: RunnerIndex, snapshots: Vec<SnapshotRef>) -> impl Future<Output = ()> + Send;

    /// The same runners under the same names, resolved at run time.
    fn into_registry(self) -> RunnerRegistry
    where
        Self: Sized;
}

/// Why runners do not go together. The derive finds what it can see when it compiles; the rest is found when an engine is
/// built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompositionError {
    /// A pipeline could run nowhere.
    #[error("there is no runner in the set; add one")]
    Empty,
    /// A step that names it would mean two runners.
    #[error(
        "runners {first} and {second} of the set are both named `{name}`; rename one with `#[runner(name = \"...\")]`"
    )]
    DuplicateName {
        /// The name.
        name: Arc<str>,
        /// The place of the one, from 0.
        first: usize,
        /// The place of the other.
        second: usize,
    },
    /// A name that pipelines, snapshots and cache keys can't carry.
    #[error("`{name}` can't name a runner; use lowercase letters, digits, `-` and `_`")]
    BadName {
        /// The name.
        name: Arc<str>,
    },
    /// A step that names no runner would mean two.
    #[error("runners `{first}` and `{second}` are both the default of the set; keep one")]
    TwoDefaults {
        /// The one.
        first: Arc<str>,
        /// The other.
        second: Arc<str>,
    },
}

/// Checks at run time what the derive can't see in a generic set, nor at all in one that is written by hand.
///
/// # Errors
/// The first mistake.
pub fn validate(descriptors: &[RunnerDescriptor]) -> Result<(), CompositionError> {
    let mut default: Option<&RunnerDescriptor> = None;
    if descriptors.is_empty() {
        return Err(CompositionError::Empty);
    }
    for (second, descriptor) in descriptors.iter().enumerate() {
        let name = &descriptor.name;
        if !is_runner_name(name) {
            return Err(CompositionError::BadName { name: Arc::clone(name) });
        }
        if let Some(first) = descriptors[..second].iter().position(|earlier| earlier.name == *name) {
            return Err(CompositionError::DuplicateName { name: Arc::clone(name), first, second });
        }
        if descriptor.is_default
            && let Some(first) = default.replace(descriptor)
        {
            return Err(CompositionError::TwoDefaults { first: Arc::clone(&first.name), second: Arc::clone(name) });
        }
    }
    Ok(())
}

/// What [`RunnerSet::dispatch`] answers to an index of another set: a bug of the caller, and not to be tried again.
#[must_use]
pub fn no_such_runner(index: RunnerIndex) -> RunnerError {
    RunnerError::unsupported(format!("there is no runner at index {} of this set", index.0))
}

/// What [`RunnerSet::probe`] answers to an index of another set.
pub(crate) fn unusable_index(index: RunnerIndex) -> Probe {
    Probe::Unusable { reason: no_such_runner(index).to_string(), hint: "resolve names with `index_of`".into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::{ArgsSchema, Pool, RunnerCapabilities};

    fn set(runners: &[(&str, bool)]) -> Vec<RunnerDescriptor> {
        let descriptor = |&(name, is_default): &(&str, bool)| RunnerDescriptor {
            name: name.into(),
            is_default,
            capabilities: RunnerCapabilities::default(),
            args: ArgsSchema::none(),
            pool: Pool::Local,
            cache_version: 1,
        };
        runners.iter().map(descriptor).collect()
    }

    #[test]
    fn a_set_needs_runners_of_different_names_and_at_most_one_default() {
        assert_eq!(validate(&set(&[("a", true), ("b", false)])), Ok(()));
        assert_eq!(validate(&set(&[("a", false), ("b", false)])), Ok(()), "steps may all name their runner");

        assert_eq!(validate(&[]), Err(CompositionError::Empty));
        let bad = CompositionError::BadName { name: "A".into() };
        assert_eq!(validate(&set(&[("a", true), ("A", false)])), Err(bad));
        let twice = CompositionError::DuplicateName { name: "b".into(), first: 1, second: 2 };
        assert_eq!(validate(&set(&[("a", true), ("b", false), ("b", false)])), Err(twice));
        let defaults = CompositionError::TwoDefaults { first: "a".into(), second: "c".into() };
        assert_eq!(validate(&set(&[("a", true), ("b", false), ("c", true)])), Err(defaults));
    }
}
