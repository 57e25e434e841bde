//! An engine's content-addressed store: blobs by their digest.

mod batch;
mod blob;
mod read;
mod write;

use std::collections::HashSet;

use futures_util::{
    FutureExt, StreamExt, TryStreamExt,
    future::{self, BoxFuture},
    stream,
};

pub use self::blob::{Blob, Content};
use self::write::Write;
use super::{Digest, DigestFunction, Endpoint, RemoteError, RemoteErrorKind, reapi, retry::retried};

/// The maximum number of digests in one request: about 80 bytes each, in messages of 4 MiB.
const ASK_AT_ONCE: usize = 16_384;
/// The maximum number of concurrent calls. Each holds a batch, or a piece of a file, in memory.
const AT_ONCE: usize = 8;

/// What an upload transferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Uploaded {
    /// The number of blobs that were missing.
    pub blobs: u64,
    /// Their total size in bytes.
    pub bytes: u64,
}

/// An engine's content-addressed store.
#[derive(Debug, Clone)]
pub struct Cas {
    endpoint: Endpoint,
}

impl Cas {
    /// Returns the content-addressed store of `endpoint`.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// Returns the digest function for blobs of this engine.
    ///
    /// # Errors
    /// Returns an error if the engine does not answer, or supports none that we do.
    pub async fn digest_function(&self) -> Result<DigestFunction, RemoteError> {
        let limits = match self.endpoint.limits().await {
            Ok(limits) => limits,
            // Such an engine has no other than the one that all have.
            Err(error) if error.kind() == RemoteErrorKind::Unimplemented => return Ok(DigestFunction::Sha256),
            Err(error) => return Err(error),
        };
        limits.digest_function.ok_or_else(|| {
            self.endpoint.own_error(RemoteErrorKind::Unimplemented, "it supports neither SHA-256 nor BLAKE3")
        })
    }

    /// Returns how many bytes of blobs fit into one message, with what is around them.
    ///
    /// # Errors
    /// Returns an error if the engine does not answer.
    pub(crate) async fn batch_bytes(&self) -> Result<u64, RemoteError> {
        Ok(self.endpoint.limits().await?.batch_bytes as u64)
    }

    /// Returns which of these blobs, all named by one digest function, are missing. The engine counts the
    /// others as just used.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn find_missing(
        &self,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Result<HashSet<Digest>, RemoteError> {
        let digests: HashSet<Digest> = digests.into_iter().collect();
        let function = digests.iter().next().map_or(DigestFunction::Sha256, |digest| digest.function);
        let digests: Vec<reapi::Digest> = digests.into_iter().map(Into::into).collect();
        let asked = digests.chunks(ASK_AT_ONCE).map(|digests| async {
            retried!(self.endpoint.retry(), {
                let mut client = self.endpoint.cas_client().await;
                let request = reapi::FindMissingBlobsRequest {
                    instance_name: self.endpoint.instance().to_owned(),
                    blob_digests: digests.to_vec(),
                    digest_function: function.number(),
                };
                let answer = client.find_missing_blobs(self.endpoint.request(request)).await;
                Ok(answer.map_err(|status| self.endpoint.error(&status))?.into_inner().missing_blob_digests)
            })
        });
        let mut missing = HashSet::new();
        for answer in future::try_join_all(asked).await? {
            for digest in &answer {
                missing.insert(self.digest(function, digest)?);
            }
        }
        Ok(missing)
    }

    /// Uploads the blobs that are missing. Small blobs are batched, large ones are sent in pieces. At most
    /// eight calls run at a time, so that memory use stays below 64 MiB in addition to blobs that are in
    /// memory themselves.
    ///
    /// # Errors
    /// Returns the first error. Blobs that were uploaded before it stay there.
    pub async fn upload(&self, blobs: Vec<Blob>) -> Result<Uploaded, RemoteError> {
        let missing = self.find_missing(blobs.iter().map(|blob| blob.digest)).await?;
        self.upload_missing(blobs, missing).await
    }

    /// Uploads blobs like [`upload`](Self::upload), given which of them are missing.
    ///
    /// # Errors
    /// Returns the first error.
    pub async fn upload_missing(
        &self,
        blobs: Vec<Blob>,
        mut missing: HashSet<Digest>,
    ) -> Result<Uploaded, RemoteError> {
        if missing.is_empty() {
            return Ok(Uploaded::default());
        }
        let limits = self.endpoint.limits().await?;
        let blobs: Vec<Blob> = blobs.into_iter().filter(|blob| missing.remove(&blob.digest)).collect();
        if let (Some(limit), Some(largest)) = (limits.blob_bytes, blobs.iter().map(|it| it.digest.size_bytes).max())
            && largest > limit
        {
            let why = format!("a blob has {largest} bytes, more than the limit of {limit}");
            return Err(self.endpoint.own_error(RemoteErrorKind::Exhausted, why));
        }
        let uploaded =
            Uploaded { blobs: blobs.len() as u64, bytes: blobs.iter().map(|blob| blob.digest.size_bytes).sum() };
        let (batches, large) = batch::plan(blobs, limits.batch_bytes);
        // Boxed and collected: the compiler cannot prove that a stream which creates the futures lazily is
        // `Send`.
        let mut calls: Vec<BoxFuture<'_, Result<(), RemoteError>>> = Vec::new();
        for blob in large {
            calls.push(Write::new(&self.endpoint, blob).run().boxed());
        }
        for batch in batches {
            calls.push(self.write_batch(batch).boxed());
        }
        stream::iter(calls).buffer_unordered(AT_ONCE).try_for_each(|()| future::ready(Ok(()))).await?;
        Ok(uploaded)
    }

    /// Parses a digest that the engine sent.
    fn digest(&self, function: DigestFunction, digest: &reapi::Digest) -> Result<Digest, RemoteError> {
        function.parse(digest).map_err(|error| self.endpoint.own_error(RemoteErrorKind::Corrupt, error.to_string()))
    }
}
