//! Runs a CI pipeline: a DAG of shell steps. Each step is isolated and leaves a filesystem snapshot from
//! which its children start.
//!
//! The default features are those of the `hm` command. Programs that embed this crate turn them off, with
//! `default-features = false`, and name what they need, such as `process` and `sandbox`. `engine` is
//! everything that runs a pipeline except the runners, and is part of each of `process`, `sandbox`,
//! `registry` and `cli`. `step` is the `hm-step` command, without any asynchronous code.
//!
//! The modules follow the flow of the data: `ir` → `plan` → `schedule` → `runner` → `image` and `source` →
//! `store`, and `cache`.
//! `event` and `outcome` report what happened. `tree` and `jail` are leaves: together with `step`, and with
//! only the feature `step`, they are all that a step on another machine needs.

#[cfg(feature = "engine")]
#[allow(unused_extern_crates, reason = "what `#[derive(RunnerSet)]` emits names this crate as others do")]
extern crate self as hm_exec;

#[cfg(any(feature = "engine", all(feature = "step", target_os = "linux")))]
pub(crate) mod awake;
#[cfg(feature = "engine")]
pub mod backend;
#[cfg(feature = "engine")]
mod backoff;
#[cfg(feature = "engine")]
mod blocking;
#[cfg(feature = "engine")]
pub mod cache;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "engine")]
pub mod event;
#[cfg(all(feature = "step", target_os = "linux"))]
pub mod guest;
#[cfg(feature = "engine")]
mod hex;
#[cfg(feature = "engine")]
pub mod image;
#[cfg(feature = "engine")]
pub mod ir;
#[cfg(all(feature = "step", target_os = "linux"))]
pub mod jail;
#[cfg(feature = "engine")]
mod model;
#[cfg(feature = "engine")]
#[doc(hidden)]
pub mod open_files;
#[cfg(feature = "engine")]
pub mod outcome;
#[cfg(feature = "engine")]
pub mod plan;
#[cfg(any(feature = "registry", all(feature = "sandbox", target_os = "linux")))]
mod programs;
#[cfg(feature = "engine")]
pub mod project;
#[cfg(feature = "engine")]
#[doc(hidden)]
pub mod quote;
#[cfg(feature = "cloud")]
pub mod remote;
#[cfg(feature = "engine")]
pub mod remote_cache;
#[cfg(feature = "engine")]
pub mod runner;
#[cfg(feature = "engine")]
pub mod schedule;
#[cfg(feature = "engine")]
#[doc(hidden)]
pub mod size;
#[cfg(feature = "engine")]
pub mod source;
#[cfg(feature = "step")]
pub mod step;
#[cfg(feature = "engine")]
pub mod store;
#[cfg(all(any(feature = "process", feature = "step"), target_os = "linux"))]
pub(crate) mod streams;
#[cfg(feature = "engine")]
mod sync;
#[cfg(all(feature = "cloud", target_os = "linux"))]
pub(crate) mod transfer;
#[cfg(any(feature = "engine", feature = "step"))]
pub mod tree;
#[cfg(all(feature = "sandbox", target_os = "linux"))]
pub mod userns;
#[cfg(all(feature = "cloud", target_os = "linux"))]
pub mod worker;

#[cfg(feature = "engine")]
pub use backend::{
    BackendError, BackendHandle, Capabilities, Control, ExecutionBackend, RunOptions, RunRequest, SourceMeta,
};
#[cfg(feature = "engine")]
pub use engine::{Engine, EngineBuilder};
#[cfg(feature = "engine")]
pub use event::{BuildEvent, BuildRef, EventStream};
#[cfg(feature = "engine")]
pub use outcome::{BuildOutcome, BuildStatus, StepResultSummary, StepStatus};
#[cfg(feature = "engine")]
pub use plan::Plan;
#[cfg(feature = "engine")]
pub use runner::{ExecutorInput, RunnerSet, SnapshotRef, StepResult};

/// The names that `#[derive(RunnerSet)]` uses. Not part of the API.
#[doc(hidden)]
#[cfg(feature = "engine")]
pub mod __private {
    pub use crate::runner::{
        DynStepRunner, ExecutorInput, RunnerError, RunnerIndex, RunnerRegistry, RunnerSet, StepContext, StepResult,
        StepRunner,
        hlist::{NIL, at, cons, into_registry},
        name::{NameOf, Nameless, collide, is_bad},
        set::no_such_runner,
    };
}

/// Runs the example of the guide.
#[cfg(all(doctest, feature = "engine"))]
#[doc = include_str!("../docs/guide/embedding.md")]
struct Embedding;
