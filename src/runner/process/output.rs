//! Forwards a step's output from its pipes to the event bus.

use tokio::process::{ChildStderr, ChildStdout};
use uuid::Uuid;

use crate::event::EventBus;

/// The size of one read in bytes: the default capacity of a pipe.
const CHUNK_BYTES: usize = 64 << 10;

/// Forwards all output until the last writer has closed the pipes.
///
/// # Cancel safety
/// Everything that was read has been forwarded. The rest stays in the pipes.
pub(super) async fn pump(pipes: Option<(ChildStdout, ChildStderr)>, bus: &EventBus, step_id: Uuid) {
    let Some((stdout, stderr)) = pipes else { return };
    if let Err(error) = ordered::pump(stdout, stderr, bus, step_id).await {
        tracing::warn!(%error, "failed to read the rest of a step's output");
    }
}

/// Forwards output of both streams in the order of its arrival.
#[cfg(target_os = "linux")]
mod ordered {
    use std::io;

    use super::{CHUNK_BYTES, ChildStderr, ChildStdout, EventBus, Uuid};
    use crate::runner::pipes::Pipes;

    pub(super) async fn pump(
        stdout: ChildStdout,
        stderr: ChildStderr,
        bus: &EventBus,
        step_id: Uuid,
    ) -> io::Result<()> {
        let mut pipes = Pipes::new(stdout.into_owned_fd()?, stderr.into_owned_fd()?, CHUNK_BYTES)?;
        while let Some(piece) = pipes.next().await? {
            let (stream, bytes) = pipes.bytes(piece);
            bus.output(step_id, stream, bytes).await;
        }
        Ok(())
    }
}

/// Forwards standard output first if both streams have output.
#[cfg(not(target_os = "linux"))]
mod ordered {
    use std::io;

    use tokio::io::AsyncReadExt;

    use super::{CHUNK_BYTES, ChildStderr, ChildStdout, EventBus, Uuid};
    use crate::model::StdStream;

    pub(super) async fn pump(
        mut stdout: ChildStdout,
        mut stderr: ChildStderr,
        bus: &EventBus,
        step_id: Uuid,
    ) -> io::Result<()> {
        let mut buffers = [vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]];
        let mut open = [true; 2];
        while open != [false; 2] {
            let [from_stdout, from_stderr] = &mut buffers;
            let (index, stream, length) = tokio::select! {
                biased;
                length = stdout.read(from_stdout), if open[0] => (0, StdStream::Stdout, length?),
                length = stderr.read(from_stderr), if open[1] => (1, StdStream::Stderr, length?),
            };
            match length {
                0 => open[index] = false,
                length => bus.output(step_id, stream, &buffers[index][..length]).await,
            }
        }
        Ok(())
    }
}
