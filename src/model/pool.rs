//! The limits on concurrent steps.

use std::num::NonZeroUsize;

use serde::Serialize;

/// The limit on concurrent steps that counts a runner's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Pool {
    /// The steps use this machine. They count towards the engine's parallelism (`-j`), together with those of
    /// all other local runners.
    Local,
    /// The steps use another resource, with a limit of its own.
    Own {
        /// The number of steps that may be in flight at once.
        limit: NonZeroUsize,
    },
}
