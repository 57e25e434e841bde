//! Runners, which run steps.
//!
//! [`StepRunner`] is the contract. [`RunnerSet`] composes runners at compile time; [`DynStepRunner`] and
//! [`RunnerRegistry`] do the same by name at run time. Each built-in runner has a folder. This module knows
//! nothing of the plan or the schedule: an attempt is an [`ExecutorInput`] and a [`StepContext`].

mod caches;
mod cleanup_thread;
#[cfg(feature = "cloud")]
pub mod cloud;
#[cfg(feature = "process")]
pub mod command;
mod context;
mod contract;
mod descriptor;
#[cfg(feature = "docker")]
pub mod docker;
mod dynamic;
mod error;
pub(crate) mod hlist;
mod image_notes;
mod input;
mod kept_steps;
mod limits;
mod machine_memory;
pub(crate) mod name;
mod pipes;
#[cfg(feature = "process")]
pub mod process;
#[cfg(feature = "qemu")]
pub mod qemu;
mod registry;
mod reuse;
#[cfg(feature = "sandbox")]
pub mod sandbox;
mod services;
pub(crate) mod set;
mod shadow;
mod verification;
#[cfg(feature = "vm")]
pub mod vm;

pub use crate::model::{ArchiveId, ArtifactRef, EgressRule, Pool, Secrets, SnapshotRef, StepUsage};
pub use caches::{CacheArg, CacheScope};
pub(crate) use caches::{mount_point, overlap, step_path};
pub(crate) use context::Kept;
pub use context::{CacheOwner, CancelReason, StepContext};
pub use contract::StepRunner;
pub use descriptor::{ArgsError, ArgsSchema, ImageSupport, Probe, RunnerCapabilities, RunnerDescriptor, RunnerIndex};
pub use dynamic::DynStepRunner;
pub use error::{RunnerError, RunnerErrorKind};
/// Makes a struct whose fields are runners a [`RunnerSet`](trait@RunnerSet), so that an
/// [`Engine`](crate::Engine) runs steps on them.
///
/// The runners keep their types: [`dispatch`](RunnerSet::dispatch) is one `match` over the field's index in
/// one future, and neither boxes nor allocates. A runner's index is the position of its field, and its name
/// is [`StepRunner::NAME`].
///
/// ```
/// use hm_exec::{
///     ExecutorInput, RunnerSet, StepResult,
///     runner::{RunnerError, RunnerIndex, StepContext, StepRunner},
/// };
///
/// #[derive(Debug)]
/// struct Noop;
///
/// impl StepRunner for Noop {
///     const NAME: &'static str = "noop";
///
///     async fn execute(&self, _: &StepContext, _: ExecutorInput) -> Result<StepResult, RunnerError> {
///         Ok(StepResult::exited(0))
///     }
/// }
///
/// #[derive(Debug, RunnerSet)]
/// struct Mine<Remote: StepRunner> {
///     #[runner(default)]
///     noop: Noop,
///     #[runner(name = "noop-again")]
///     again: Noop,
///     #[cfg(windows)]
///     windows: NotHere,
///     remote: Remote,
/// }
///
/// # #[derive(Debug)]
/// # struct Farm;
/// # impl StepRunner for Farm {
/// #     const NAME: &'static str = "farm";
/// #     async fn execute(&self, _: &StepContext, _: ExecutorInput) -> Result<StepResult, RunnerError> {
/// #         Err(RunnerError::unsupported("there is no farm"))
/// #     }
/// # }
/// let runners = Mine { noop: Noop, again: Noop, remote: Farm };
/// assert_eq!(runners.default_index(), Some(RunnerIndex(0)));
/// assert_eq!(runners.index_of("noop-again"), Some(RunnerIndex(1)));
/// assert_eq!(runners.into_registry().runner_names(), ["farm", "noop", "noop-again"]);
/// ```
///
/// # Attributes of a field
/// - `#[runner(default)]`: the runner of steps that name none. The only field of a set is its default even
///   without the attribute. In a set of several fields without a default, every step must name its runner.
/// - `#[runner(name = "...")]`: the runner's name in this set, instead of its type's. It is required if two
///   fields have the same type.
/// - `#[runner(flatten)]`: the field is itself a set of runners, derived or a [`RunnerRegistry`]. Its runners
///   belong to this set, too, under the same names, with indices behind those of the other fields. With
///   `#[runner(flatten, default)]` its default is the default of this set.
///
/// An attribute of the struct, `#[runner(crate = "::facade::hm_exec")]`, is for crates that reach `hm_exec`
/// through another crate.
///
/// ```
/// # use hm_exec::{ExecutorInput, RunnerSet, StepResult, runner::{RunnerError, StepContext, StepRunner}};
/// use hm_exec::runner::{RunnerIndex, RunnerRegistry};
///
/// # #[derive(Debug)]
/// # struct Noop;
/// # impl StepRunner for Noop {
/// #     const NAME: &'static str = "noop";
/// #     async fn execute(&self, _: &StepContext, _: ExecutorInput) -> Result<StepResult, RunnerError> {
/// #         Ok(StepResult::exited(0))
/// #     }
/// # }
/// #[derive(Debug, RunnerSet)]
/// struct Library {
///     #[runner(default)]
///     noop: Noop,
///     #[runner(name = "noop-again")]
///     again: Noop,
/// }
///
/// #[derive(Debug, RunnerSet)]
/// struct Program {
///     #[runner(flatten, default)]
///     library: Library,
///     #[runner(flatten)]
///     plugins: RunnerRegistry,
///     #[runner(name = "mine")]
///     mine: Noop,
/// }
///
/// let library = Library { noop: Noop, again: Noop };
/// let runners = Program { library, plugins: RunnerRegistry::new(), mine: Noop };
/// assert_eq!(runners.index_of("mine"), Some(RunnerIndex(0)));
/// assert_eq!(runners.index_of("noop-again"), Some(RunnerIndex(2)));
/// assert_eq!(runners.default_index(), runners.index_of("noop"));
/// ```
///
/// # What does not compile
/// A set without fields, an enum or a union, a field that is not a runner, two defaults, two fields with the
/// same name, and a name with characters that [`is_runner_name`] does not accept. A flattened set counts with
/// all its names. Names that depend on a parameter of the struct, or that are in a registry, are known only
/// where the struct is used: the engine checks those with [`validate`] when it is built.
///
/// The set must be `Debug`, and must not be `Drop`, because [`into_registry`](RunnerSet::into_registry) takes
/// it apart.
pub use hm_exec_macros::RunnerSet;
pub use input::{CacheDecision, CacheIdentity, ExecutorInput, InputFiles, OtherSteps, StepResult};
pub use limits::{Cpus, Limits, MemorySize, Network};
pub(crate) use limits::{
    check_bridged_network, check_listed_network, check_network, check_shared_network, wants_private,
};
pub use machine_memory::available_memory;
pub use name::is_runner_name;
pub use registry::RunnerRegistry;
pub use reuse::TraceLookup;
pub(crate) use reuse::{TraceReuse, TracedResult};
pub use services::{Ready, ServiceArg, ServiceBase};
pub use set::{CompositionError, RunnerSet, validate};
pub(crate) use set::{PROBE_LIMIT, probe_within};
pub use shadow::ShadowMode;
pub(crate) use verification::{Expected, Verification};
