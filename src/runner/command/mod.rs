//! A step's command as processes of this machine: for runners that start commands themselves.
//!
//! [`StepCommand::run`] does what the contract of [`StepRunner`](crate::runner::StepRunner) asks: a clean
//! environment, TERM, grace, KILL, all output before the end, and no process that outlives the step. The
//! runner [`process`](crate::runner::process) is built on it.
//!
//! If the program has a helper (see [`sandbox::init`](crate::runner::sandbox::init)), each command has a
//! supervisor that all its processes descend from, and none can leave. Otherwise, processes are found by
//! their session, or by a mark in their environment, among all processes of the machine: only a process that
//! has left the session and cleared its environment escapes. So a runner that uses this may claim `grace`,
//! but no `isolation`.

mod group;
mod launch;
mod output;
mod processes;
mod step_command;
mod supervised;
mod watched;

pub use step_command::StepCommand;
pub(super) use supervised::Helper;
