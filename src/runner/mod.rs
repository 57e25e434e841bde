//! Runners: what runs a step.
//!
//! [`StepRunner`] is the contract, [`RunnerSet`] composes runners at compile time, [`DynStepRunner`] and
//! [`RunnerRegistry`] are the same by name at run time, and each runner of our own has a folder. Knows nothing of the plan
//! or the schedule: an attempt is an [`ExecutorInput`] and a [`StepContext`].

mod context;
mod contract;
mod descriptor;
mod error;
mod input;
mod set;

pub use context::{CancelReason, Secrets, StepContext};
pub use contract::StepRunner;
pub use descriptor::{
    ArgsError, ArgsSchema, ImageSupport, Pool, Probe, RunnerCapabilities, RunnerDescriptor, RunnerIndex,
};
pub use error::{RunnerError, RunnerErrorKind};
pub use input::{ArchiveId, ArtifactRef, CacheDecision, ExecutorInput, SnapshotRef, StepResult};
pub use set::RunnerSet;
