//! The schedule: which step runs when, and what follows from how it ended.
//!
//! [`Policy`] decides and is pure: no runtime, no clock, no randomness, so that a property test drives it through every
//! order of things. The dispatcher is the one loop that carries the decisions out and the one emitter of state events;
//! the executor runs one attempt, with its time limit and its cancel token. None of them knows which runners exist.

mod critical_path;
mod dispatcher;
mod executor;
#[cfg(test)]
mod fixture;
mod policy;
mod progress;

pub use critical_path::priorities;
pub(crate) use dispatcher::{Build, run};
pub use policy::{Answer, AttemptEnd, Placement, Policy, Rules, Start, Stop};
