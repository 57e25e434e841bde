//! Traces: what a step reads of the files that it starts from.
//!
//! ```text
//!   a call of the step ──▶ tracer: which path? ──▶ resolve: what is there, and is it the step's own? ──▶ records
//!                            │ caller: memory, directories                                                  │
//!                            └ program: interpreters, loaders            audit: what was written ──▶ format ◀┘
//! ```
//!
//! Runs in pid 1 of the step, in the loop in which it waits for children. The design is in
//! `docs/design/traces.md`.

mod answers;
mod audit;
mod caller;
mod calls;
mod format;
mod open_flags;
mod own_filter;
mod program;
mod records;
mod resolve;
mod special;
mod support;
mod tracer;

pub use self::support::check_support;
pub(super) use answers::answer;
pub use answers::{Answer, Change, Node, Status, answer_here, decode_answers};
pub(super) use calls::{FOREIGN, reported};
pub use format::{Kinds, Reason, Trace, TraceError, check_decoder};
pub(super) use tracer::{Answered, Tracer};
