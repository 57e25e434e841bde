//! The runner that isolates nothing: a plain shell in a private copy of the workspace.
//!
//! For machines where namespaces are denied. A step sees the whole machine, as the user who runs the build. What it gets of
//! its own: the workspace (a copy of the source, or of what its parent left there), a home and a temporary directory that
//! go with it, a session, and an environment that has `PATH` and `LANG` of the caller's and no more. What it leaves
//! outside of the workspace is not part of its snapshot. The workspace lies elsewhere for every step, and not at
//! `/workspace`: what writes down absolute paths, as CMake does, can't hand its output on.
//!
//! No process of a step outlives it. A session can be left, so on Linux those who left are found by a mark in their
//! environment; only a process that has left the session and cleared its environment gets away.

mod group;
mod output;
mod runner;
mod supervisor;

pub use runner::ProcessRunner;
