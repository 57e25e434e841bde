//! From a step's pipes to the events.

use tokio::io::{AsyncRead, AsyncReadExt};
use uuid::Uuid;

use crate::event::{EventBus, StdStream};

/// How much is read at once, which is what a pipe holds.
const CHUNK_BYTES: usize = 64 << 10;

/// Hands on everything that comes until the last writer is gone.
///
/// # Cancel safety
/// What was read was handed on; what was not stays in the pipe.
pub(super) async fn pump(pipe: Option<impl AsyncRead + Unpin>, bus: &EventBus, step_id: Uuid, stream: StdStream) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) => return,
            Ok(length) => bus.output(step_id, stream, &buffer[..length]).await,
            Err(error) => {
                tracing::warn!(%error, "the rest of a step's output can't be read");
                return;
            }
        }
    }
}
