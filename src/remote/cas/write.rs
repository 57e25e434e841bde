//! Writes a large blob in pieces, and resumes at what the engine has committed.

use std::{pin::pin, sync::Arc, time::Duration};

use bazel_remote_apis::google::bytestream::{QueryWriteStatusRequest, WriteRequest};
use futures_util::stream;
use tokio::sync::watch;

use super::{
    super::{Endpoint, RemoteError, RemoteErrorKind, retry::retried},
    Blob,
};
use crate::{blocking, sync::Mutex};

/// The number of bytes in one message.
const PIECE_BYTES: usize = 512 << 10;

/// The upload of one blob. The resource name stays the same over all attempts, so that the engine knows how
/// much it has received.
pub(super) struct Write {
    endpoint: Endpoint,
    blob: Blob,
    resource: String,
}

/// The error from reading the blob, which a stream of messages cannot return.
type Failure = Arc<Mutex<Option<std::io::Error>>>;

impl Write {
    pub(super) fn new(endpoint: &Endpoint, blob: Blob) -> Self {
        let instance = super::read::prefix(endpoint.instance());
        let resource = format!("{instance}uploads/{}/blobs/{}", uuid::Uuid::new_v4(), blob.digest);
        Self { endpoint: endpoint.clone(), blob, resource }
    }

    /// Writes the blob.
    pub(super) async fn run(self) -> Result<(), RemoteError> {
        let mut first = true;
        retried!(self.endpoint.retry(), {
            let from = if std::mem::take(&mut first) { 0 } else { self.committed().await? };
            if from >= self.blob.digest.size_bytes && from > 0 {
                return Ok(());
            }
            self.write(from).await
        })
    }

    /// Returns how many bytes the engine has committed.
    async fn committed(&self) -> Result<u64, RemoteError> {
        let mut client = self.endpoint.byte_stream_client().await;
        let request = self.endpoint.request(QueryWriteStatusRequest { resource_name: self.resource.clone() });
        match client.query_write_status(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let committed = u64::try_from(answer.committed_size).unwrap_or(0).min(self.blob.digest.size_bytes);
                Ok(if answer.complete { self.blob.digest.size_bytes } else { committed })
            }
            Err(status) => match self.endpoint.error(&status) {
                error if error.is_transient() => Err(error),
                // The engine does not keep incomplete uploads.
                _ => Ok(0),
            },
        }
    }

    async fn write(&self, from: u64) -> Result<(), RemoteError> {
        let failure = Failure::default();
        let (blob, resource, slot) = (self.blob.clone(), self.resource.clone(), Arc::clone(&failure));
        // Each message that is taken changes it.
        let (moves, mut moved) = watch::channel(());
        let pieces = stream::unfold(Some(from), move |at| {
            moves.send_replace(());
            let (blob, slot) = (blob.clone(), Arc::clone(&slot));
            let resource_name = if at == Some(from) { resource.clone() } else { String::new() };
            async move {
                let at = at?;
                let size = blob.digest.size_bytes;
                match blocking::run("read a blob", move || blob.read(at, PIECE_BYTES)).await {
                    Ok(data) => {
                        let next = at + data.len() as u64;
                        let write_offset = i64::try_from(at).unwrap_or(i64::MAX);
                        let finish_write = next >= size;
                        let piece = WriteRequest { resource_name, write_offset, finish_write, data };
                        Some((piece, (!finish_write).then_some(next)))
                    }
                    Err(error) => {
                        *slot.lock() = Some(error);
                        None
                    }
                }
            }
        });
        let mut client = self.endpoint.byte_stream_client().await;
        let idle = self.endpoint.retry().idle;
        let mut writing = pin!(client.write(pieces));
        let answer = loop {
            tokio::select! {
                answer = &mut writing => break answer,
                stalled = stands_still(&mut moved, idle) => {
                    if stalled {
                        return Err(self.endpoint.stalled_error(idle));
                    }
                }
            }
        };
        if let Some(error) = failure.lock().take() {
            return Err(self.endpoint.local_error(format!("reading {}", self.blob.name()), error));
        }
        let committed = answer.map_err(|status| self.endpoint.error(&status))?.into_inner().committed_size;
        // An engine that already has the blob may answer before all of it was sent. It answers -1 for a
        // compressed blob.
        if committed == -1 || u64::try_from(committed) == Ok(self.blob.digest.size_bytes) {
            return Ok(());
        }
        let why = format!("it accepted only {committed} bytes of {}", self.blob.digest);
        Err(self.endpoint.own_error(RemoteErrorKind::Unavailable, why))
    }
}

/// Completes at the next move, or when there was none for so long. Returns whether that is the reason.
async fn stands_still(moved: &mut watch::Receiver<()>, idle: Duration) -> bool {
    let next = async {
        // All messages were taken: the engine has to answer.
        if moved.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::time::timeout(idle, next).await.is_err()
}
