//! The cloud runner: each step is an Action on an engine that speaks the Remote Execution API.
//!
//! The input is the input of an attempt. The runner sends the static `hm-step`,
//! [`StepInput`](crate::step::StepInput), the frozen source as a tree, and layers that are packed once. It
//! does not send what the engine already has. It receives the output, how the command ended, and the layer
//! with its changes, which becomes a snapshot of the store. So steps of the sandbox and of this runner boot
//! from each other's snapshots. The runner executes nothing itself, and knows nothing of the engine's
//! workers.

mod action;
mod attempt;
mod boot;
mod builder;
mod collect;
mod error;
mod output;
mod runner;
mod source;
mod step_program;

pub use builder::CloudBuilder;
pub use runner::CloudRunner;
