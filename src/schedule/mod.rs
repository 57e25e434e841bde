//! The schedule: which step runs when, and what follows from how it ended.
//!
//! [`Policy`] decides and is pure: no runtime, no clock, no randomness, so that a property test drives it through every
//! order of things. The dispatcher is the one loop that carries the decisions out and the one emitter of state events;
//! the executor runs one attempt, with its time limit and its cancel token; errands are what a cached step needs before and
//! after, and what it shares with other machines. None of them knows which runners exist.

mod critical_path;
mod dispatcher;
mod errands;
mod executor;
#[cfg(test)]
mod fixture;
mod inputs;
mod policy;
mod progress;
mod sharing;

pub use critical_path::priorities;
pub(crate) use dispatcher::{Build, run};
pub(crate) use errands::is_cached;
pub use policy::{Answer, AttemptEnd, Placement, Policy, Rules, Start, Stop};
