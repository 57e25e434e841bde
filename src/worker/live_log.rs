//! Copies the output of a command to a log stream while it runs, from the growing file of each stream.
//!
//! Errors here do not affect the lease: the result contains all of the output anyway.

use std::{os::unix::fs::FileExt, time::Duration};

use bazel_remote_apis::google::bytestream::{QueryWriteStatusRequest, WriteRequest};
use futures_util::stream;
use tokio::sync::watch;

use super::spool::SpoolFile;
use crate::remote::{Endpoint, RemoteError};

/// The maximum number of bytes in one message.
const PIECE_BYTES: u64 = 64 << 10;
/// The maximum number of consecutive attempts without progress.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// Writes `file` to the log stream whose name is sent by `name`, as soon as it is known, until the file is
/// finished and has been written completely.
pub(super) async fn follow(endpoint: &Endpoint, mut name: watch::Receiver<String>, file: &SpoolFile) {
    let mut progress = file.follow();
    let named = tokio::select! {
        // An error means that the sender was dropped and no name will follow.
        named = name.wait_for(|name| !name.is_empty()) => named.is_ok(),
        _ = progress.wait_for(|progress| progress.finished) => false,
    };
    let resource = name.borrow().clone();
    if !named && resource.is_empty() {
        return;
    }
    let (mut from, mut failures) = (0, 0);
    while failures < ATTEMPTS {
        match write(endpoint, &resource, file, from).await {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(%error, failures, "a live log was interrupted");
                tokio::time::sleep(PAUSE).await;
                let committed = committed(endpoint, &resource).await.unwrap_or(from);
                failures = if committed > from { 0 } else { failures + 1 };
                from = committed;
            }
        }
    }
}

async fn write(endpoint: &Endpoint, resource: &str, file: &SpoolFile, from: u64) -> Result<(), RemoteError> {
    let (bytes, progress) = (file.file(), file.follow());
    let pieces = stream::unfold(Some((from, resource.to_owned(), progress)), move |state| {
        let bytes = bytes.clone();
        async move {
            let (at, resource_name, mut progress) = state?;
            // The sender is dropped together with the lease, after which the output need not be shown.
            let reached = *progress.wait_for(|it| it.finished || it.length_bytes > at).await.ok()?;
            let mut data =
                vec![0; usize::try_from((reached.length_bytes - at.min(reached.length_bytes)).min(PIECE_BYTES)).ok()?];
            bytes.read_exact_at(&mut data, at).ok()?;
            let next = at + data.len() as u64;
            let finish_write = reached.finished && next >= reached.length_bytes;
            let write_offset = i64::try_from(at).ok()?;
            let piece = WriteRequest { resource_name, write_offset, finish_write, data };
            Some((piece, (!finish_write).then_some((next, String::new(), progress))))
        }
    });
    let mut client = endpoint.byte_stream_client().await;
    client.write(pieces).await.map(drop).map_err(|status| endpoint.error(&status))
}

async fn committed(endpoint: &Endpoint, resource: &str) -> Option<u64> {
    let mut client = endpoint.byte_stream_client().await;
    let request = endpoint.request(QueryWriteStatusRequest { resource_name: resource.to_owned() });
    let answer = client.query_write_status(request).await.ok()?.into_inner();
    u64::try_from(answer.committed_size).ok()
}
