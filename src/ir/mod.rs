//! The v0 IR: wire types, decoding, and a validation that reports every error with its position.
//!
//! Input: the JSON bytes that the DSL emits, or a draft that a program makes. Output: a valid [`Pipeline`],
//! or an [`InvalidPipeline`] with all errors. The module does not know runners: `plan::bind` checks whether
//! a runner exists.

pub(crate) mod adjacency;
mod csr;
mod cycles;
mod draft;
mod on_change;
mod pipeline;
mod problem;
mod raw;
mod text;
mod validate;
mod wire;

pub(crate) use draft::Draft;
pub(crate) use on_change::on_change_paths;
pub use pipeline::Pipeline;
pub(crate) use problem::Problems;
pub use problem::{Endpoint, InvalidPipeline, Problem, ProblemKind, ProblemPlace};
pub(crate) use validate::{Validated, check_env, decode};
pub use wire::{Cache, CommandStep, Edge, EdgeKind, Env, Node};
