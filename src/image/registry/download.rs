//! Downloads blobs. Resumes after a broken connection, and verifies size and digest.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use futures_util::StreamExt;
use oci_client::client::BlobResponse;
use sha2::{Digest, Sha256};

use super::{
    super::manifest::Descriptor,
    error::{Attempts, DownloadError, RegistryError},
    session::{PATIENT, RegistrySession},
};
use crate::store::{ImageDigest, StoreError};

/// The destination of a blob. What it received counts only once the whole blob is verified.
pub(super) trait BlobSink: Send {
    /// Receives the next bytes.
    fn write(&mut self, bytes: &[u8]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Discards all received bytes.
    fn restart(&mut self) -> impl Future<Output = ()> + Send;
}

impl BlobSink for Vec<u8> {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    async fn restart(&mut self) {
        self.clear();
    }
}

/// The progress of a download.
#[derive(Default)]
struct DownloadProgress {
    bytes: u64,
    hash: Sha256,
}

impl RegistrySession {
    /// Downloads a blob. Received bytes are added to `done`, and subtracted again if they have to be
    /// downloaded again.
    pub(super) async fn blob(
        &self,
        descriptor: &Descriptor,
        sink: &mut impl BlobSink,
        done: &AtomicU64,
    ) -> Result<(), DownloadError> {
        let mut attempts = Attempts::new(PATIENT);
        let mut progress = DownloadProgress::default();
        sink.restart().await;
        loop {
            let before = progress.bytes;
            let error = match self.part(descriptor, sink, &mut progress, done).await {
                Ok(()) if progress.bytes < descriptor.size => RegistryError::Unreachable("the connection broke".into()),
                Ok(()) => {
                    let found = ImageDigest::from_bytes(progress.hash.clone().finalize().into());
                    if found == descriptor.digest {
                        return Ok(());
                    }
                    RegistryError::WrongDigest { expected: descriptor.digest.to_string(), found: found.to_string() }
                }
                Err(DownloadError::Registry(error)) => error,
                Err(failure) => return Err(failure),
            };
            match error {
                // None of the received bytes can be trusted.
                RegistryError::WrongDigest { .. } => restart(sink, &mut progress, done).await,
                // The download makes progress, however slowly.
                _ if progress.bytes > before => attempts.progressed(),
                _ => {}
            }
            attempts.after(error).await?;
        }
    }

    /// Requests the missing part, and writes what is received.
    async fn part(
        &self,
        descriptor: &Descriptor,
        sink: &mut impl BlobSink,
        progress: &mut DownloadProgress,
        done: &AtomicU64,
    ) -> Result<(), DownloadError> {
        self.authenticate().await?;
        let digest = descriptor.digest.to_string();
        let answer = self.client.pull_blob_stream_partial(&self.reference, &*digest, progress.bytes, None).await;
        let mut stream = match answer.map_err(RegistryError::of)? {
            BlobResponse::Partial(stream) => stream,
            BlobResponse::Full(stream) => {
                restart(sink, progress, done).await;
                stream
            }
        };
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|error| RegistryError::of_stream(&error))?;
            progress.bytes += bytes.len() as u64;
            if progress.bytes > descriptor.size {
                progress.bytes -= bytes.len() as u64;
                let expected = format!("{digest} of {} bytes", descriptor.size);
                return Err(RegistryError::WrongDigest { expected, found: "more bytes".into() }.into());
            }
            progress.hash.update(&bytes);
            sink.write(&bytes).await.map_err(DownloadError::Store)?;
            done.fetch_add(bytes.len() as u64, Relaxed);
        }
        Ok(())
    }
}

async fn restart(sink: &mut impl BlobSink, progress: &mut DownloadProgress, done: &AtomicU64) {
    done.fetch_sub(progress.bytes, Relaxed);
    *progress = DownloadProgress::default();
    sink.restart().await;
}
