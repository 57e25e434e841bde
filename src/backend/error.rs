//! Why a build could not run.

use std::fmt::Write as _;

use crate::{ir::InvalidPipeline, runner::CompositionError, size};

/// The result of a backend's operations.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

/// An error that keeps a backend from running a build. A failed build is an outcome instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The pipeline, or what it requests of the engine's runners, is invalid.
    #[error(transparent)]
    Invalid(#[from] InvalidPipeline),
    /// A runner that the plan needs cannot work on this machine.
    #[error("runner `{runner}` is not available: {reason}; {hint}")]
    Unusable {
        /// The runner.
        runner: String,
        /// The check that failed.
        reason: String,
        /// How to fix it.
        hint: String,
    },
    /// The engine's runners cannot be combined.
    #[error("failed to combine the engine's runners")]
    Composition(#[from] CompositionError),
    /// A local file or process operation failed.
    #[error("failed to {doing}")]
    Local {
        /// The operation that failed, as in "failed to ...".
        doing: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A server requires credentials.
    #[error("authentication required")]
    Unauthorized,
    /// A server does not have what the request names.
    #[error("not found: {0}")]
    NotFound(String),
    /// A server refused the build.
    #[error("backend rejected the build [{code}]: {message}")]
    Rejected {
        /// The server's code.
        code: String,
        /// The server's message.
        message: String,
    },
    /// A server could not be reached, or its answer could not be read.
    #[error("network error: {0}")]
    Transport(String),
    /// The logs of a build that runs elsewhere could not be followed.
    #[error("failed to follow the build's logs: {0}")]
    LogStream(String),
    /// The source is larger than the backend accepts. Nothing was sent.
    #[error(
        "the packed source has {observed_bytes} bytes, but at most {cap_bytes} are accepted{}",
        largest(largest_paths)
    )]
    SourceTooLarge {
        /// The size of the packed source, or that of the part that was packed before the limit was exceeded.
        observed_bytes: u64,
        /// The limit.
        cap_bytes: u64,
        /// The largest entries at the top of the source, with their sizes in bytes.
        largest_paths: Vec<(String, u64)>,
    },
    /// Anything else.
    #[error("the build ended unexpectedly")]
    Other(#[from] Box<dyn std::error::Error + Send + Sync>),
}

/// Returns the end of a message that names the largest entries of a source.
fn largest(paths: &[(String, u64)]) -> String {
    let mut text = String::new();
    for (index, (path, bytes)) in paths.iter().enumerate() {
        let before = if index == 0 { "; the largest are " } else { ", " };
        let _ = write!(text, "{before}{path} ({})", size::show(*bytes));
    }
    text
}
