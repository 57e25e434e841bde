//! Runners: what runs a step.
//!
//! [`StepRunner`] is the contract, [`RunnerSet`] composes runners at compile time, [`DynStepRunner`] and
//! [`RunnerRegistry`] are the same by name at run time, and each runner of our own has a folder. Knows nothing of the plan
//! or the schedule: an attempt is an [`ExecutorInput`] and a [`StepContext`].

mod context;
mod contract;
mod descriptor;
mod dynamic;
mod error;
pub(crate) mod hlist;
mod input;
pub(crate) mod name;
mod registry;
pub(crate) mod set;

pub use context::{CancelReason, Secrets, StepContext};
pub use contract::StepRunner;
pub use descriptor::{
    ArgsError, ArgsSchema, ImageSupport, Pool, Probe, RunnerCapabilities, RunnerDescriptor, RunnerIndex,
};
pub use dynamic::DynStepRunner;
pub use error::{RunnerError, RunnerErrorKind};
/// Makes a struct of runners a [`RunnerSet`](trait@RunnerSet).
pub use hm_exec_macros::RunnerSet;
pub use input::{ArchiveId, ArtifactRef, CacheDecision, ExecutorInput, SnapshotRef, StepResult};
pub use name::is_runner_name;
pub use registry::RunnerRegistry;
pub use set::{CompositionError, RunnerSet, validate};
