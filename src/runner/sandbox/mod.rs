//! The sandbox runner: every step in namespaces of its own, over an overlay of its image, the source and its
//! parents' layers. Linux, no daemon, as root and as an ordinary user.
//!
//! ```text
//!   execute ─▶ boot: layers from the store ─▶ attempt: request to the zygote, output, signals ─▶ commit
//!                                                 │
//!                                                 ▼
//!                                  jail (another process): namespaces, mounts, filters, the command
//! ```
//!
//! The input is an [`ExecutorInput`](crate::ExecutorInput). The output is the command's output on the event
//! bus, and a snapshot in the store. This module knows nothing of the plan. [`jail`] is a separate leaf: the
//! code that runs in the helper process.

mod attempt;
mod boot;
mod cache_dirs;
mod cgroup;
mod checks;
mod clock;
mod confined;
mod error;
mod exit_code;
mod export;
mod inputs;
mod layered_command;
mod looks;
mod outputs;
mod overlay_pool;
mod own_network;
mod placing;
mod reuse;
mod runner;
#[cfg(feature = "qemu")]
mod serve;
mod services;
mod shadow;
mod step_output;
mod step_spec;
mod traced;
mod verify;
mod view;
mod visit;

pub(crate) use attempt::{Control, OutputSink, Supervised, supervise};
pub use cgroup::reap_control_groups;
pub use checks::{Check, checks};
pub use confined::{
    ConfinedCommand, ConfinedEnd, ConfinedError, ConfinedLimits, ConfinedOutput, KeptOutput, KeptOutputs, OutputStream,
};
pub use export::SandboxExportError;
pub(crate) use layered_command::LayeredCommand;
pub use runner::{SandboxBuilder, SandboxRunner};
#[cfg(feature = "qemu")]
pub(crate) use serve::{Files, Program, ProgramNetwork, Serving};
pub(crate) use step_output::StepOutput;
pub(crate) use step_spec::c_string;
pub use visit::{Streams, Visit, VisitError, VisitOperation};

pub use crate::{
    jail::{self, MountApi, UserNamespace},
    userns::{HELPER_VARIABLE, NoHelper},
};

/// Lets the sandbox start this program again as its helper. Must be called first thing in `main`, before any
/// thread is started. In the helper it never returns.
pub fn init() {
    jail::run_if_marked();
    confined::run_if_marked();
    crate::userns::mark_initialized();
}
