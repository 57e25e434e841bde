//! The runner without isolation: a plain shell in a private copy of the workspace.
//!
//! For machines where namespaces are denied. A step sees the whole machine, as the user who runs the build.
//! It has the following of its own: the workspace (a copy of the source, or of its parent's workspace), a
//! home and a temporary directory that are removed with the workspace, a session, and an environment that
//! inherits only `PATH` and `LANG` from the caller. Files outside of the workspace are not part of its
//! snapshot. The workspace has a different path for every step, and never `/workspace`. So tools that record
//! absolute paths, as CMake does, cannot pass their output on to a child.
//!
//! No process of a step outlives it: see [`command`](super::command).

mod runner;

pub use runner::ProcessRunner;
