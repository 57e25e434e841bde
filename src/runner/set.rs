//! A set of runners as one value, over which the engine is generic.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, join_all};

use super::{
    CacheIdentity, DynStepRunner, ExecutorInput, InputFiles, Probe, RunnerDescriptor, RunnerError, RunnerIndex,
    RunnerRegistry, SnapshotRef, StepContext, StepResult, TraceLookup, name::is_runner_name,
};
use crate::{awake, source::RunSource};

/// How long a runner may take to answer, unless an engine has another limit.
pub(crate) const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// A set of runners, composed at compile time (by `#[derive(RunnerSet)]` on a struct of runners) or at run
/// time (a [`RunnerRegistry`]).
///
/// Names are resolved once, when a plan is bound. From then on a step carries a [`RunnerIndex`], and a
/// derived set dispatches on it with one flat `match`: one concrete future type, no box, no allocation.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a set of runners",
    note = "put `#[derive(RunnerSet)]` on a struct whose fields are runners, or use a `RunnerRegistry`"
)]
pub trait RunnerSet: Send + Sync + fmt::Debug + 'static {
    /// Returns the runner at `index`, and its name in this set. Indices have no gaps and begin with 0.
    fn at(&self, index: RunnerIndex) -> Option<(&str, &dyn DynStepRunner)>;

    /// Returns the index of the runner for steps that name none.
    fn default_index(&self) -> Option<RunnerIndex>;

    /// Returns the number of runners.
    fn runner_count(&self) -> usize {
        members(self).count()
    }

    /// Runs one attempt on the runner at `index`. Contract and cancel safety are those of
    /// [`StepRunner::execute`](super::StepRunner::execute).
    ///
    /// # Errors
    /// Returns the runner's error, or an infrastructure error if `index` does not belong to this set.
    fn dispatch(
        &self,
        index: RunnerIndex,
        ctx: &StepContext,
        input: ExecutorInput,
    ) -> impl Future<Output = Result<StepResult, RunnerError>> + Send;

    /// Converts the set into a registry with the same runners under the same names, resolved at run time.
    fn into_registry(self) -> RunnerRegistry
    where
        Self: Sized;

    /// Returns the index of the runner that pipelines call `name`.
    fn index_of(&self, name: &str) -> Option<RunnerIndex> {
        members(self).find(|(_, known, _)| *known == name).map(|(index, ..)| index)
    }

    /// Returns the descriptors of all runners in the order of their indices.
    fn descriptors(&self) -> Vec<RunnerDescriptor> {
        let default = self.default_index();
        members(self).map(|(index, name, runner)| RunnerDescriptor::of(runner, name, default == Some(index))).collect()
    }

    /// Asks the runner at `index` whether it can work on this machine.
    fn probe(&self, index: RunnerIndex) -> impl Future<Output = Probe> + Send {
        async move {
            match self.at(index) {
                Some((_, runner)) => runner.probe().await,
                None => unusable_index(index),
            }
        }
    }

    /// Asks the runner at `index` whether steps can have a network of their own on this machine.
    fn probe_network(&self, index: RunnerIndex) -> impl Future<Output = Probe> + Send {
        async move {
            match self.at(index) {
                Some((_, runner)) => runner.probe_network().await,
                None => unusable_index(index),
            }
        }
    }

    /// Probes every runner at once, and returns the results in the order of the indices. A runner that does
    /// not answer within 30 seconds counts as unusable.
    fn probe_all(&self) -> impl Future<Output = Vec<Probe>> + Send {
        join_all(members(self).map(|(_, _, runner)| {
            let probe = Box::pin(async move {
                match runner.probe().await {
                    // Steps on the machine's network can run.
                    Probe::Usable { note } if runner.capabilities().private_network => {
                        with_network(note, runner.probe_network().await)
                    }
                    probe => probe,
                }
            });
            let answer = awake::timeout(PROBE_LIMIT, probe);
            async { answer.await.unwrap_or_else(|| silent(PROBE_LIMIT)) }
        }))
    }

    /// Asks the runner at `index` for its part of the cache keys; see
    /// [`StepRunner::cache_identity`](super::StepRunner::cache_identity).
    ///
    /// # Errors
    /// Returns the runner's error, or an infrastructure error if `index` does not belong to this set.
    fn cache_identity(
        &self,
        index: RunnerIndex,
        image: Option<&str>,
    ) -> impl Future<Output = Result<Option<CacheIdentity>, RunnerError>> + Send {
        async move {
            match self.at(index) {
                Some((_, runner)) => runner.cache_identity(image).await,
                None => Err(no_such_runner(index)),
            }
        }
    }

    /// Lets the runner at `index` copy the outputs of a cached result; see
    /// [`StepRunner::copy_outputs`](super::StepRunner::copy_outputs).
    fn copy_outputs(
        &self,
        index: RunnerIndex,
        ctx: &StepContext,
        snapshot: SnapshotRef,
    ) -> impl Future<Output = ()> + Send {
        async move {
            if let Some((_, runner)) = self.at(index) {
                runner.copy_outputs(ctx, snapshot).await;
            }
        }
    }

    /// Asks the runner at `index` for the digest of files of another step; see
    /// [`StepRunner::input_digest`](super::StepRunner::input_digest).
    ///
    /// # Errors
    /// Returns the runner's error, or an infrastructure error if `index` does not belong to this set.
    fn input_digest(
        &self,
        index: RunnerIndex,
        source: &RunSource,
        input: &InputFiles,
    ) -> impl Future<Output = Result<[u8; 32], RunnerError>> + Send {
        async move {
            match self.at(index) {
                Some((_, runner)) => runner.input_digest(source, input).await,
                None => Err(no_such_runner(index)),
            }
        }
    }

    /// Lets the runner at `index` look a step up by what it read; see
    /// [`StepRunner::look_up_trace`](super::StepRunner::look_up_trace).
    ///
    /// # Errors
    /// Returns the runner's error, or an infrastructure error if `index` does not belong to this set.
    fn look_up_trace(
        &self,
        index: RunnerIndex,
        ctx: &StepContext,
        input: ExecutorInput,
    ) -> impl Future<Output = Result<TraceLookup, RunnerError>> + Send {
        async move {
            match self.at(index) {
                Some((_, runner)) => runner.look_up_trace(ctx, input).await,
                None => Err(no_such_runner(index)),
            }
        }
    }

    /// Passes snapshots back to the runner at `index`, which made them, for removal.
    fn reap(&self, index: RunnerIndex, snapshots: Vec<SnapshotRef>) -> impl Future<Output = ()> + Send {
        async move {
            if let Some((_, runner)) = self.at(index) {
                runner.reap_snapshots(snapshots).await;
            }
        }
    }
}

/// Asks the runner at `index` whether it can work on this machine, and with `has_networks` whether steps can
/// have networks of their own, and waits at most for `limit`.
pub(crate) async fn probe_within<R: RunnerSet>(
    runners: &R,
    index: RunnerIndex,
    has_networks: bool,
    limit: Duration,
) -> Probe {
    let probe: BoxFuture<'_, Probe> = Box::pin(async move {
        match runners.probe(index).await {
            Probe::Usable { .. } if has_networks => runners.probe_network(index).await,
            probe => probe,
        }
    });
    awake::timeout(limit, probe).await.unwrap_or_else(|| silent(limit))
}

/// Returns the result of a probe, with a note if steps cannot have networks of their own.
fn with_network(note: Option<String>, network: Probe) -> Probe {
    match network {
        Probe::Usable { .. } => Probe::Usable { note },
        Probe::Unusable { reason, hint } => {
            let lacks = format!("{reason}; {hint}");
            Probe::Usable { note: Some(note.map_or_else(|| lacks.clone(), |note| format!("{note}; {lacks}"))) }
        }
    }
}

/// Returns the result of a probe that did not end in time.
fn silent(limit: Duration) -> Probe {
    Probe::Unusable {
        reason: format!("its check did not end within {} s", limit.as_secs_f64()),
        hint: "something that the runner needs does not answer; try again, or use another runner".into(),
    }
}

/// Returns the runners of a set with their indices and names.
fn members<R: RunnerSet + ?Sized>(set: &R) -> impl Iterator<Item = (RunnerIndex, &str, &dyn DynStepRunner)> {
    (0..=u16::MAX).map(RunnerIndex).map_while(|index| set.at(index).map(|(name, runner)| (index, name, runner)))
}

/// The error of a set of runners that cannot be composed. The derive detects what it can at compile time; the
/// rest is detected when an engine is built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompositionError {
    /// The set is empty, so no pipeline could run.
    #[error("the set has no runners; add one")]
    Empty,
    /// Two runners have the same name, so a step that names it would be ambiguous.
    #[error(
        "runners {first} and {second} of the set are both named `{name}`; rename one with `#[runner(name = \"...\")]`"
    )]
    DuplicateName {
        /// The name.
        name: Arc<str>,
        /// The position of the first runner, from 0.
        first: usize,
        /// The position of the second runner.
        second: usize,
    },
    /// A name that pipelines, snapshots and cache keys cannot contain.
    #[error("invalid runner name `{name}`; use lowercase letters, digits, `-` and `_`")]
    BadName {
        /// The name.
        name: Arc<str>,
    },
    /// Two runners are the default, so a step that names no runner would be ambiguous.
    #[error("runners `{first}` and `{second}` are both the default of the set; keep one")]
    TwoDefaults {
        /// The first default.
        first: Arc<str>,
        /// The second default.
        second: Arc<str>,
    },
}

/// Checks at run time what the derive cannot check in a generic set, or in a set written by hand.
///
/// # Errors
/// Returns the first mistake.
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

/// Returns the error of [`RunnerSet::dispatch`] for an index of another set. This is a bug of the caller, and
/// not retryable.
#[must_use]
pub fn no_such_runner(index: RunnerIndex) -> RunnerError {
    RunnerError::unsupported(format!("there is no runner at index {} of this set", index.0))
}

/// Returns the result of [`RunnerSet::probe`] for an index of another set.
fn unusable_index(index: RunnerIndex) -> Probe {
    Probe::Unusable { reason: no_such_runner(index).to_string(), hint: "resolve names with `index_of`".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(runners: &[(&str, bool)]) -> Vec<RunnerDescriptor> {
        let descriptor =
            |&(name, is_default): &(&str, bool)| RunnerDescriptor { is_default, ..RunnerDescriptor::new(name) };
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
