//! Runs a CI pipeline: a DAG of shell steps, each isolated, each leaving a filesystem snapshot from which its children
//! boot.
//!
//! The modules stand in the order in which the data flows:
//! `ir` → `plan` → `schedule` → `runner` → `store` and `cache`, with `event` and `outcome` telling what happened.

#[allow(unused_extern_crates, reason = "what `#[derive(RunnerSet)]` emits names this crate as others do")]
extern crate self as hm_exec;

pub mod backend;
pub mod cache;
pub mod engine;
pub mod event;
pub mod ir;
pub mod outcome;
pub mod plan;
pub mod runner;
pub mod schedule;
pub mod step;
pub mod store;

pub use backend::{
    BackendError, BackendHandle, Capabilities, Control, ExecutionBackend, RunOptions, RunRequest, SourceMeta,
};
pub use engine::{Engine, EngineBuilder};
pub use event::{BuildEvent, BuildRef, EventStream};
pub use outcome::{BuildOutcome, BuildStatus, StepResultSummary, StepStatus};
pub use plan::Plan;
pub use runner::{ExecutorInput, RunnerSet, SnapshotRef, StepResult};

/// What `#[derive(RunnerSet)]` names. Not part of the API.
#[doc(hidden)]
pub mod __private {
    pub use crate::runner::{
        CacheIdentity, ExecutorInput, Probe, RunnerDescriptor, RunnerError, RunnerIndex, RunnerRegistry, RunnerSet,
        SnapshotRef, StepContext, StepResult, StepRunner,
        hlist::{NIL, cache_identity, cons, descriptors, into_registry, probe, probe_all, reap},
        name::{NameOf, Nameless, collide, is_bad, position},
        set::no_such_runner,
    };
}

/// Runs the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
