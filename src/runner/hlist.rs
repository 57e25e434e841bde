//! The recursion over a derived set's runners, for operations on all of them, or on one off the hot path.
//!
//! The input is the list that the derive makes of a struct's fields: of references to visit the runners, of
//! the runners themselves to take them. This is the only file that names frunk's `HCons`. The hot path is not
//! here but in the `match` that the derive emits.

use std::{collections::VecDeque, future::Future, sync::Arc};

use frunk::hlist::{HCons, HNil};
use futures_util::future::join;

use super::{
    CacheIdentity, DynStepRunner, Probe, RunnerDescriptor, RunnerError, RunnerIndex, RunnerRegistry, SnapshotRef,
    StepRunner,
    dynamic::Named,
    set::{no_such_runner, unusable_index},
};

/// One runner of a derived set. `R` is the runner, or a reference to it.
#[derive(Debug)]
pub struct Member<R> {
    name: &'static str,
    is_default: bool,
    runner: R,
}

/// The list of a set without runners, which [`cons`] extends.
pub const NIL: HNil = HNil;

/// Prepends a runner to `tail`. The derive emits one call per field.
pub fn cons<Head, Tail>(name: &'static str, is_default: bool, runner: Head, tail: Tail) -> HCons<Member<Head>, Tail> {
    HCons { head: Member { name, is_default, runner }, tail }
}

/// The recursion over references to runners. An index counts from the head of the list.
pub trait VisitRunners: Send {
    /// Appends one descriptor per runner.
    fn describe(self, descriptors: &mut Vec<RunnerDescriptor>);

    /// Probes the runner at `index`.
    fn probe_at(self, index: u16) -> impl Future<Output = Option<Probe>> + Send;

    /// Probes all runners at once.
    fn probe_all(self) -> impl Future<Output = VecDeque<Probe>> + Send;

    /// Asks the runner at `index` for its part of the cache keys.
    fn cache_identity_at(
        self,
        index: u16,
        image: Option<&str>,
    ) -> impl Future<Output = Option<Result<Option<CacheIdentity>, RunnerError>>> + Send;

    /// Passes snapshots to the runner at `index` for removal.
    fn reap_at(self, index: u16, snapshots: Vec<SnapshotRef>) -> impl Future<Output = ()> + Send;
}

impl VisitRunners for HNil {
    fn describe(self, _: &mut Vec<RunnerDescriptor>) {}

    async fn probe_at(self, _: u16) -> Option<Probe> {
        None
    }

    async fn probe_all(self) -> VecDeque<Probe> {
        VecDeque::new()
    }

    async fn cache_identity_at(self, _: u16, _: Option<&str>) -> Option<Result<Option<CacheIdentity>, RunnerError>> {
        None
    }

    async fn reap_at(self, _: u16, _: Vec<SnapshotRef>) {}
}

impl<Head, Tail> VisitRunners for HCons<Member<&Head>, Tail>
where
    Head: StepRunner,
    Tail: VisitRunners,
{
    fn describe(self, descriptors: &mut Vec<RunnerDescriptor>) {
        let Member { name, is_default, runner } = self.head;
        descriptors.push(RunnerDescriptor {
            name: name.into(),
            is_default,
            capabilities: runner.capabilities(),
            args: runner.args_schema(),
            pool: runner.pool(),
            cache_version: Head::CACHE_VERSION,
        });
        self.tail.describe(descriptors);
    }

    async fn probe_at(self, index: u16) -> Option<Probe> {
        match index.checked_sub(1) {
            None => Some(self.head.runner.probe().await),
            Some(index) => self.tail.probe_at(index).await,
        }
    }

    async fn probe_all(self) -> VecDeque<Probe> {
        let (head, mut probes) = join(self.head.runner.probe(), self.tail.probe_all()).await;
        probes.push_front(head);
        probes
    }

    async fn cache_identity_at(
        self,
        index: u16,
        image: Option<&str>,
    ) -> Option<Result<Option<CacheIdentity>, RunnerError>> {
        match index.checked_sub(1) {
            None => Some(self.head.runner.cache_identity(image).await),
            Some(index) => self.tail.cache_identity_at(index, image).await,
        }
    }

    async fn reap_at(self, index: u16, snapshots: Vec<SnapshotRef>) {
        match index.checked_sub(1) {
            None => self.head.runner.reap_snapshots(snapshots).await,
            Some(index) => self.tail.reap_at(index, snapshots).await,
        }
    }
}

/// The recursion over the runners themselves.
pub trait TakeRunners {
    /// Registers every runner under its name in the set.
    fn register(self, registry: &mut RunnerRegistry);
}

impl TakeRunners for HNil {
    fn register(self, _: &mut RunnerRegistry) {}
}

impl<Head, Tail> TakeRunners for HCons<Member<Head>, Tail>
where
    Head: StepRunner,
    Tail: TakeRunners,
{
    fn register(self, registry: &mut RunnerRegistry) {
        let Member { name, is_default, runner } = self.head;
        let runner: Arc<dyn DynStepRunner> =
            if name == Head::NAME { Arc::new(runner) } else { Arc::new(Named { name, runner }) };
        registry.register(runner, is_default);
        self.tail.register(registry);
    }
}

/// Returns the descriptors of a list.
#[must_use]
pub fn descriptors(runners: impl VisitRunners) -> Vec<RunnerDescriptor> {
    let mut descriptors = Vec::new();
    runners.describe(&mut descriptors);
    descriptors
}

/// Probes the runner at `index` of a list.
pub async fn probe(runners: impl VisitRunners, index: RunnerIndex) -> Probe {
    runners.probe_at(index.0).await.unwrap_or_else(|| unusable_index(index))
}

/// Probes all runners of a list at once.
pub async fn probe_all(runners: impl VisitRunners) -> Vec<Probe> {
    runners.probe_all().await.into()
}

/// Asks the runner at `index` of a list for its part of the cache keys.
///
/// # Errors
/// Returns the runner's error, or an error if there is no runner at `index`.
pub async fn cache_identity(
    runners: impl VisitRunners,
    index: RunnerIndex,
    image: Option<&str>,
) -> Result<Option<CacheIdentity>, RunnerError> {
    runners.cache_identity_at(index.0, image).await.unwrap_or_else(|| Err(no_such_runner(index)))
}

/// Passes snapshots to the runner at `index` of a list for removal.
pub async fn reap(runners: impl VisitRunners, index: RunnerIndex, snapshots: Vec<SnapshotRef>) {
    runners.reap_at(index.0, snapshots).await;
}

/// Moves the runners of a list into a registry, which resolves them at run time.
#[must_use]
pub fn into_registry(runners: impl TakeRunners) -> RunnerRegistry {
    let mut registry = RunnerRegistry::new();
    runners.register(&mut registry);
    registry
}
