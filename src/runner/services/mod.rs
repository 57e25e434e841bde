//! Services: programs that run beside a step, in the step's network.
//!
//! Input: their definitions in the step's `runner_args` ([`ServiceArg`]). What is common to all runners that
//! have services is in `beside`: how a service tells that it is ready, what becomes of its output, and in
//! which order services and their step start and end. A runner starts the programs.

mod arg;
#[cfg(any(feature = "sandbox", feature = "vm"))]
pub(super) mod beside;

pub use self::arg::{Ready, ServiceArg, ServiceBase};
pub(super) use self::arg::{ServicesForm, deserialize};
