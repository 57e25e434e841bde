//! Forwards a step's output from its pipes to the event bus.

use std::io;

use tokio::process::{ChildStderr, ChildStdout};
use uuid::Uuid;

use crate::{event::EventBus, runner::pipes::Pipes};

/// The size of one read in bytes: the default capacity of a pipe.
const CHUNK_BYTES: usize = 64 << 10;

/// Forwards all output until the last writer has closed the pipes.
///
/// # Cancel safety
/// Everything that was read has been forwarded. The rest stays in the pipes.
pub(super) async fn pump(pipes: Option<(ChildStdout, ChildStderr)>, bus: &EventBus, step_id: Uuid) {
    let Some((stdout, stderr)) = pipes else { return };
    if let Err(error) = forward(stdout, stderr, bus, step_id).await {
        tracing::warn!(%error, "failed to read the rest of a step's output");
    }
}

/// Forwards output of both streams in the order of its arrival.
async fn forward(stdout: ChildStdout, stderr: ChildStderr, bus: &EventBus, step_id: Uuid) -> io::Result<()> {
    let mut pipes = Pipes::new(stdout.into_owned_fd()?, stderr.into_owned_fd()?, CHUNK_BYTES)?;
    while let Some(piece) = pipes.next().await? {
        let (stream, bytes) = pipes.bytes(piece);
        bus.output(step_id, stream, bytes).await;
    }
    Ok(())
}
