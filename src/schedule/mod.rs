//! The schedule: when steps run, and what follows from their results.
//!
//! [`Policy`] makes the decisions and is pure: it has no runtime, clock or randomness, so a property test can
//! run it through every order of events. The dispatcher is the only loop that executes the decisions, and the
//! only emitter of state events. The executor runs one attempt; `timeout` is its time limit.
//! Caching is the work for a cached step before and after its attempt, and the exchange with a remote cache.
//! None of them knows which runners exist.

mod caching;
mod critical_path;
mod dispatcher;
mod executor;
mod finished;
#[cfg(test)]
mod fixture;
mod outputs;
mod policy;
mod progress;
mod ranks;
mod timeout;

pub(crate) use caching::{CachingScope, is_looked_up, predict};
pub use critical_path::priorities;
pub(crate) use dispatcher::{Build, run};
pub use policy::{Answer, AttemptEnd, MemoryRules, Placement, Policy, Rules, Start, StopReason};
