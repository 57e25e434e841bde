//! Runs a CI pipeline: a DAG of shell steps. Each step is isolated and leaves a filesystem snapshot from
//! which its children start.
//!
//! The default features are those of the `hm` command. Programs that embed this crate turn them off, with
//! `default-features = false`, and name what they need, such as `process` and `sandbox`. Without
//! any feature, the crate has everything that runs a pipeline except the runners.
//!
//! The modules follow the flow of the data: `ir` → `plan` → `schedule` → `runner` → `image` and `source` →
//! `store`, and `cache`.
//! `event` and `outcome` report what happened. `tree`, `jail`, `step` and `guest` are a crate of
//! their own, `hm-exec-step`: all that a step on another machine needs.
//!
//! The crate is for Linux.

// Without all features, some functions have no caller. With them, as `hm` is built, none is excused.
#![cfg_attr(not(feature = "cli"), allow(dead_code, unused_imports))]
// On docs.rs, items that need a feature name it.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!("hm-exec runs on Linux only: its store and its steps rely on the kernel's overlays and namespaces");

#[allow(unused_extern_crates, reason = "what `#[derive(RunnerSet)]` emits names this crate as others do")]
extern crate self as hm_exec;

mod awake;
pub mod backend;
mod backoff;
mod blocking;
pub mod cache;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod engine;
pub mod event;
mod hex;
pub mod image;
pub mod ir;
mod log_file;
mod model;
#[cfg(feature = "sandbox")]
mod network;
#[doc(hidden)]
pub mod open_files;
pub mod outcome;
#[doc(hidden)]
pub mod outputs;
pub mod plan;
#[doc(hidden)]
pub mod programs;
pub mod project;
#[doc(hidden)]
pub mod quote;
#[cfg(feature = "cloud")]
#[doc(hidden)]
pub mod remote;
#[cfg(feature = "cloud")]
pub mod remote_cache;
pub mod runner;
#[cfg(feature = "sandbox")]
#[doc(hidden)]
pub mod saved_cache;
#[doc(hidden)]
pub mod schedule;
#[cfg(feature = "service")]
pub mod service;
#[doc(hidden)]
pub mod size;
pub mod source;
pub mod store;
mod sync;
#[cfg(any(feature = "registry", feature = "service"))]
mod tls;
#[cfg(feature = "cloud")]
pub(crate) mod transfer;
#[cfg(feature = "sandbox")]
pub mod userns;
#[cfg(feature = "cloud")]
#[doc(hidden)]
pub mod worker;

/// The crate that runs one step, and its modules, as parts of this one.
#[doc(hidden)]
pub use hm_exec_step::{self as step, guest, jail, streams, tree};

pub use backend::{
    BackendError, BackendHandle, Capabilities, Control, DynExecutionBackend, ExecutionBackend, Result, RunOptions,
    RunRequest, SourceMeta,
};
pub use engine::{Engine, EngineBuilder};
pub use event::{BuildEvent, BuildRef, EventStream};
pub use outcome::{BuildOutcome, BuildStatus, StepResultSummary, StepStatus};
pub use plan::Plan;
pub use runner::{ExecutorInput, RunnerSet, SnapshotRef, StepResult};

/// The names that `#[derive(RunnerSet)]` uses. Not part of the API.
#[doc(hidden)]
pub mod __private {
    pub use crate::runner::{
        DynStepRunner, ExecutorInput, RunnerError, RunnerIndex, RunnerRegistry, RunnerSet, StepContext, StepResult,
        StepRunner,
        hlist::{NIL, at, behind, cons, flatten, into_registry, nested},
        name::{ConstNames, NameOf, Nameless, Names, NamesOf, collide, is_bad},
        set::no_such_runner,
    };
}

/// Runs the example of the guide.
#[cfg(doctest)]
#[doc = include_str!("../docs/guide/embedding.md")]
struct Embedding;
