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
    session::{PATIENT, Session},
    trouble::{Attempts, Failure, Trouble},
};
use crate::store::{ImageDigest, StoreError, error::Doing};

/// The destination of a blob.
#[derive(Debug)]
pub(super) enum Sink {
    Memory(Vec<u8>),
    File(File, PathBuf),
}

/// The progress of a download.
#[derive(Default)]
struct Progress {
    bytes: u64,
    hash: Sha256,
}

impl Sink {
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

impl Session {
    /// Downloads a blob. Received bytes are added to `done`, and subtracted again if they have to be
    /// downloaded again.
    pub(super) async fn blob(&self, descriptor: &Descriptor, sink: &mut Sink, done: &AtomicU64) -> Result<(), Failure> {
        let mut attempts = Attempts::new(PATIENT);
        let mut progress = Progress::default();
        sink.clear().map_err(Failure::Store)?;
        loop {
            let before = progress.bytes;
            let trouble = match self.part(descriptor, sink, &mut progress, done).await {
                Ok(()) if progress.bytes < descriptor.size => Trouble::Unreachable("the connection broke".into()),
                Ok(()) => {
                    let found = ImageDigest::from_bytes(progress.hash.clone().finalize().into());
                    if found == descriptor.digest {
                        return Ok(());
                    }
                    Trouble::WrongDigest { expected: descriptor.digest.to_string(), found: found.to_string() }
                }
                Err(Failure::Trouble(trouble)) => trouble,
                Err(failure) => return Err(failure),
            };
            match trouble {
                // None of the received bytes can be trusted.
                Trouble::WrongDigest { .. } => restart(sink, &mut progress, done)?,
                // The download makes progress, however slowly.
                _ if progress.bytes > before => attempts.progressed(),
                _ => {}
            }
            attempts.after(trouble).await?;
        }
    }

    /// Requests the missing part, and writes what is received.
    async fn part(
        &self,
        descriptor: &Descriptor,
        sink: &mut Sink,
        progress: &mut Progress,
        done: &AtomicU64,
    ) -> Result<(), Failure> {
        self.authenticate().await?;
        let digest = descriptor.digest.to_string();
        let answer = self.client.pull_blob_stream_partial(&self.reference, &*digest, progress.bytes, None).await;
        let mut stream = match answer.map_err(Trouble::of)? {
            BlobResponse::Partial(stream) => stream,
            BlobResponse::Full(stream) => {
                restart(sink, progress, done)?;
                stream
            }
        };
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|error| Trouble::of_stream(&error))?;
            progress.bytes += bytes.len() as u64;
            if progress.bytes > descriptor.size {
                progress.bytes -= bytes.len() as u64;
                let expected = format!("{digest} of {} bytes", descriptor.size);
                return Err(Trouble::WrongDigest { expected, found: "more bytes".into() }.into());
            }
            progress.hash.update(&bytes);
            sink.write(&bytes).map_err(Failure::Store)?;
            done.fetch_add(bytes.len() as u64, Relaxed);
        }
        Ok(())
    }
}

fn restart(sink: &mut Sink, progress: &mut Progress, done: &AtomicU64) -> Result<(), Failure> {
    done.fetch_sub(progress.bytes, Relaxed);
    *progress = Progress::default();
    sink.clear().map_err(Failure::Store)
}
