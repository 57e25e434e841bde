//! Services: programs that run beside a step, in the step's network.
//!
//! Input: their definitions in the step's `runner_args` ([`ServiceArg`]). What is common to all runners that
//! have services is here: how a service tells that it is ready (`ready`), what becomes of its output
//! (`output`), and in which order services and their step start and end (`beside`). A runner starts the
//! programs.

mod arg;
#[cfg(any(feature = "sandbox", feature = "docker"))]
mod beside;
#[cfg(any(feature = "sandbox", feature = "docker"))]
mod output;
#[cfg(any(feature = "sandbox", feature = "docker"))]
mod ready;

pub use self::arg::{Ready, ServiceArg, ServiceBase};
pub(super) use self::arg::{ServicesForm, deserialize};
#[cfg(any(feature = "sandbox", feature = "docker"))]
pub(super) use self::{
    beside::{Attempts, FAILED, ServiceAttempt, ServiceEnd, ServiceFailure, beside, grace},
    output::ServiceOutput,
    ready::command_line,
};
