//! Runs a CI pipeline: a DAG of shell steps, each isolated, each leaving a filesystem snapshot from which its children
//! boot.
//!
//! The modules stand in the order in which the data flows:
//! `ir` → `plan` → `schedule` → `runner` → `store`, with `event` and `outcome` telling what happened.

pub mod backend;
pub mod event;
pub mod ir;
pub mod outcome;
pub mod plan;
pub mod runner;
pub mod store;

pub use backend::{
    BackendError, BackendHandle, Capabilities, Control, ExecutionBackend, RunOptions, RunRequest, SourceMeta,
};
pub use event::{BuildEvent, BuildRef, EventStream};
pub use outcome::{BuildOutcome, BuildStatus, StepResultSummary, StepStatus};
pub use plan::Plan;
pub use runner::{ExecutorInput, RunnerSet, SnapshotRef, StepResult};
