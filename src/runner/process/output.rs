//! Forwards a step's output from its pipes to the event bus.

use tokio::process::{ChildStderr, ChildStdout};
use uuid::Uuid;

use super::system;
use crate::event::EventBus;

/// The size of one read in bytes: the default capacity of a pipe.
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// Forwards all output until the last writer has closed the pipes.
///
/// # Cancel safety
/// Everything that was read has been forwarded. The rest stays in the pipes.
pub(super) async fn pump(pipes: Option<(ChildStdout, ChildStderr)>, bus: &EventBus, step_id: Uuid) {
    let Some((stdout, stderr)) = pipes else { return };
    if let Err(error) = system::forward(stdout, stderr, bus, step_id).await {
        tracing::warn!(%error, "failed to read the rest of a step's output");
    }
}
