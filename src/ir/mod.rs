//! The v0 IR: wire types, decoding, and a validation that reports every mistake with its place.
//!
//! In: the JSON bytes that the DSL emits. Out: a valid [`Pipeline`], or [`InvalidPipeline`] listing what is wrong. Knows
//! nothing of runners: whether a runner exists is a question for `plan::bind`.

mod pipeline;
mod wire;

pub use pipeline::{InvalidPipeline, Pipeline};
pub use wire::{Cache, CommandStep, Edge, EdgeKind, Env, Node};
