//! The cloud runner: each step is an Action on an engine that speaks the Remote Execution API.
//!
//! In: an attempt's input. To the engine go the static `hm-step`, [`StepInput`](crate::step::StepInput), the frozen source as a
//! tree, and layers that are packed once; whatever the engine has already stays here. Back come the output, how the command
//! ended, and the layer that it left, as a snapshot of the store: so that steps of the sandbox and of this runner boot from
//! each other. Runs nothing itself, and knows nothing of the engine's workers.

mod action;
mod boot;
mod collect;
mod output;
mod runner;
mod source;
mod step_program;
mod trouble;

pub use runner::{CloudBuilder, CloudRunner};
