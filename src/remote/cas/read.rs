//! Reads blobs and streams, and resumes where an earlier attempt failed.

use std::{
    fs::{File, OpenOptions},
    future::Future,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use bazel_remote_apis::google::bytestream::ReadRequest;

use super::{
    super::{Digest, Hasher, RemoteError, RemoteErrorKind, retry::retried},
    Cas,
};
use crate::blocking;

/// How many bytes are collected before a blocking thread writes them.
const GATHER_BYTES: usize = 1 << 20;

/// Returns the prefix of resource names.
pub(super) fn prefix(instance: &str) -> String {
    if instance.is_empty() { String::new() } else { format!("{instance}/") }
}

/// The destination of the bytes, and the hash and size so far.
struct Sink {
    file: Option<File>,
    bytes: Vec<u8>,
    hash: Hasher,
    size_bytes: u64,
}

impl Sink {
    fn take(mut self, piece: &[u8]) -> io::Result<Self> {
        self.hash.update(piece);
        self.size_bytes += piece.len() as u64;
        match &mut self.file {
            Some(file) => file.write_all(piece)?,
            None => self.bytes.extend_from_slice(piece),
        }
        Ok(self)
    }
}

impl Cas {
    /// Reads a blob of at most `limit` bytes.
    ///
    /// # Errors
    /// Returns an error if the blob is larger, is missing ([`RemoteErrorKind::MissingBlobs`]), or does not
    /// match its digest.
    pub async fn read(&self, digest: Digest, limit: u64) -> Result<Vec<u8>, RemoteError> {
        if digest.size_bytes > limit {
            let why = format!("a blob has {} bytes, more than the limit of {limit}", digest.size_bytes);
            return Err(self.endpoint.own_error(RemoteErrorKind::Corrupt, why));
        }
        let sink = Sink { file: None, bytes: Vec::new(), hash: digest.function.hasher(), size_bytes: 0 };
        Ok(self.read_to(digest, sink).await?.bytes)
    }

    /// Reads a blob into a new file that only its owner can read. At most a megabyte is in memory at a time.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written, if the blob is missing
    /// ([`RemoteErrorKind::MissingBlobs`]), or if it does not match its digest. The content of the file is
    /// then undefined.
    ///
    /// # Cancel safety
    /// If the future is dropped, an incomplete file remains.
    pub async fn read_to_file(&self, digest: Digest, path: &Path) -> Result<(), RemoteError> {
        let failed = |error| self.endpoint.local_error(format!("writing {}", path.display()), error);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        let sink = Sink { file: Some(file), bytes: Vec::new(), hash: digest.function.hasher(), size_bytes: 0 };
        self.read_to(digest, sink).await.map(drop)
    }

    /// Waits for a part of a stream, unless it stands still.
    async fn moving<T>(&self, part: impl Future<Output = T>) -> Result<T, RemoteError> {
        let idle = self.endpoint.retry().idle;
        tokio::time::timeout(idle, part).await.map_err(|_| self.endpoint.stalled_error(idle))
    }

    async fn read_to(&self, digest: Digest, sink: Sink) -> Result<Sink, RemoteError> {
        let resource_name = format!("{}blobs/{digest}", prefix(self.endpoint.instance()));
        let failed = |error| self.endpoint.local_error(format!("writing {digest}"), error);
        let mut sink = Some(sink);
        let mut gathered = Vec::new();
        // The empty blob is known everywhere, and some engines do not store it. Others name it by zeros.
        if digest.size_bytes > 0 {
            let read = retried!(self.endpoint.retry(), {
                let mut client = self.endpoint.byte_stream_client().await;
                let came = sink.as_ref().map_or(0, |sink| sink.size_bytes) + gathered.len() as u64;
                let read_offset = i64::try_from(came).unwrap_or(i64::MAX);
                let request = ReadRequest { resource_name: resource_name.clone(), read_offset, read_limit: 0 };
                let error = |status| match self.endpoint.error(&status) {
                    error if error.kind() == RemoteErrorKind::NotFound => self.endpoint.missing_error(vec![digest]),
                    error => error,
                };
                let mut answer = self.moving(client.read(request)).await?.map_err(error)?.into_inner();
                while let Some(piece) = self.moving(answer.message()).await?.map_err(error)? {
                    gathered.extend_from_slice(&piece.data);
                    let came = sink.as_ref().map_or(0, |sink| sink.size_bytes) + gathered.len() as u64;
                    if came > digest.size_bytes {
                        let why = format!("more than {} bytes for {digest}", digest.size_bytes);
                        return Err(self.endpoint.own_error(RemoteErrorKind::Corrupt, why));
                    }
                    if gathered.len() >= GATHER_BYTES
                        && let Some(taking) = sink.take()
                    {
                        let bytes = std::mem::take(&mut gathered);
                        sink = Some(
                            blocking::run("write what was read", move || taking.take(&bytes)).await.map_err(failed)?,
                        );
                    }
                }
                let came = sink.as_ref().map_or(0, |sink| sink.size_bytes) + gathered.len() as u64;
                if came < digest.size_bytes {
                    let why = format!("only {came} bytes of {digest}");
                    return Err(self.endpoint.own_error(RemoteErrorKind::Unavailable, why));
                }
                Ok(())
            });
            read?;
        }
        let Some(taking) = sink else {
            return Err(failed(io::Error::other("the writing thread has ended")));
        };
        let sink = blocking::run("write what was read", move || taking.take(&gathered)).await.map_err(failed)?;
        let came = Digest { hash: sink.hash.finish(), size_bytes: sink.size_bytes, ..digest };
        if came != digest && digest.size_bytes > 0 {
            let why = format!("{came} instead of {digest}");
            return Err(self.endpoint.own_error(RemoteErrorKind::Corrupt, why));
        }
        Ok(sink)
    }
}
