//! Downloads blobs. Resumes after a broken connection, and verifies size and digest.

use std::{
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
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
use crate::store::{ImageDigest, StoreError, error::IoContext};

/// The destination of a blob.
#[derive(Debug)]
pub(super) enum DownloadSink {
    Memory(Vec<u8>),
    File(File, PathBuf),
}

/// The progress of a download.
#[derive(Default)]
struct DownloadProgress {
    bytes: u64,
    hash: Sha256,
}

impl DownloadSink {
    /// Creates a new file.
    pub(super) fn file(path: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).doing("make", path)?;
        Ok(Self::File(file, path.to_owned()))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        match self {
            Self::Memory(all) => all.extend_from_slice(bytes),
            Self::File(file, path) => file.write_all(bytes).doing("write", path)?,
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Memory(all) => all.clear(),
            Self::File(file, path) => {
                file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).doing("empty", path)?;
            }
        }
        Ok(())
    }
}

impl RegistrySession {
    /// Downloads a blob. Received bytes are added to `done`, and subtracted again if they have to be
    /// downloaded again.
    pub(super) async fn blob(
        &self,
        descriptor: &Descriptor,
        sink: &mut DownloadSink,
        done: &AtomicU64,
    ) -> Result<(), DownloadError> {
        let mut attempts = Attempts::new(PATIENT);
        let mut progress = DownloadProgress::default();
        sink.clear().map_err(DownloadError::Store)?;
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
                RegistryError::WrongDigest { .. } => restart(sink, &mut progress, done)?,
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
        sink: &mut DownloadSink,
        progress: &mut DownloadProgress,
        done: &AtomicU64,
    ) -> Result<(), DownloadError> {
        self.authenticate().await?;
        let digest = descriptor.digest.to_string();
        let answer = self.client.pull_blob_stream_partial(&self.reference, &*digest, progress.bytes, None).await;
        let mut stream = match answer.map_err(RegistryError::of)? {
            BlobResponse::Partial(stream) => stream,
            BlobResponse::Full(stream) => {
                restart(sink, progress, done)?;
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
            sink.write(&bytes).map_err(DownloadError::Store)?;
            done.fetch_add(bytes.len() as u64, Relaxed);
        }
        Ok(())
    }
}

fn restart(sink: &mut DownloadSink, progress: &mut DownloadProgress, done: &AtomicU64) -> Result<(), DownloadError> {
    done.fetch_sub(progress.bytes, Relaxed);
    *progress = DownloadProgress::default();
    sink.clear().map_err(DownloadError::Store)
}
