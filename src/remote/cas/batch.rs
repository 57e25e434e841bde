//! Small blobs, batched into one message.

use std::collections::HashMap;

use super::{
    super::{Digest, DigestFunction, RemoteError, RemoteErrorKind, reapi, retry::retried},
    Blob, Cas,
};

/// The overhead of a blob in a message, in bytes.
const AROUND_BYTES: usize = 128;

/// Batches small blobs up to the size of a message. Large blobs remain separate. A single blob that just fits
/// into a message is still a batch, which takes one call instead of three.
pub(super) fn plan(blobs: Vec<Blob>, batch_bytes: usize) -> (Vec<Vec<Blob>>, Vec<Blob>) {
    let (mut batches, mut large) = (Vec::new(), Vec::new());
    let (mut batch, mut room) = (Vec::new(), batch_bytes);
    for blob in blobs {
        let size = usize::try_from(blob.digest.size_bytes).unwrap_or(usize::MAX).saturating_add(AROUND_BYTES);
        if size > batch_bytes {
            large.push(blob);
            continue;
        }
        if size > room {
            batches.push(std::mem::take(&mut batch));
            room = batch_bytes;
        }
        room -= size;
        batch.push(blob);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    (batches, large)
}

impl Cas {
    /// Writes blobs in one call, and retries those that failed for a temporary reason.
    pub(super) async fn write_batch(&self, mut blobs: Vec<Blob>) -> Result<(), RemoteError> {
        retried!(self.endpoint.retry(), {
            let reading = blobs.clone();
            let read = tokio::task::spawn_blocking(move || {
                let read = reading.iter().map(|blob| match blob.read(0, usize::MAX) {
                    Ok(data) => Ok(reapi::batch_update_blobs_request::Request {
                        digest: Some(blob.digest.into()),
                        data,
                        ..Default::default()
                    }),
                    Err(error) => Err((blob.name(), error)),
                });
                read.collect::<Result<Vec<_>, _>>()
            });
            let no_thread = |error| self.endpoint.local_error("reading blobs", std::io::Error::other(error));
            let requests = read.await.map_err(no_thread)?;
            let requests =
                requests.map_err(|(name, error)| self.endpoint.local_error(format!("reading {name}"), error))?;
            let function = blobs.first().map_or(DigestFunction::Sha256, |blob| blob.digest.function);
            let request = reapi::BatchUpdateBlobsRequest {
                instance_name: self.endpoint.instance().to_owned(),
                requests,
                digest_function: function.number(),
            };
            let mut client = self.endpoint.cas_client().await;
            let answer = client.batch_update_blobs(self.endpoint.request(request)).await;
            let answer = answer.map_err(|status| self.endpoint.error(&status))?.into_inner();
            let mut again = None;
            let mut left: HashMap<Digest, Blob> = blobs.drain(..).map(|blob| (blob.digest, blob)).collect();
            for response in answer.responses {
                let digest = response.digest.as_ref().map(|digest| self.digest(function, digest)).transpose()?;
                let blob = digest.and_then(|digest| left.remove(&digest));
                let Some(status) = response.status.filter(|status| status.code != 0) else { continue };
                let error = self.endpoint.answer_error(&status);
                if !error.is_transient() {
                    return Err(error);
                }
                blobs.extend(blob);
                again = Some(error);
            }
            if !left.is_empty() && again.is_none() {
                let why = format!("it did not confirm {} blobs that were sent", left.len());
                again = Some(self.endpoint.own_error(RemoteErrorKind::Unavailable, why));
            }
            blobs.extend(left.into_values());
            again.map_or(Ok(()), Err)
        })
    }

    /// Reads small blobs, many in one call.
    ///
    /// # Errors
    /// Returns an error if the call fails, if blobs are missing (the error names all of them), or if the
    /// content does not match the digests.
    pub async fn read_many(&self, digests: Vec<Digest>) -> Result<Vec<(Digest, Vec<u8>)>, RemoteError> {
        let limit = self.endpoint.limits().await?.batch_bytes;
        let empty = Vec::new;
        let wanted = digests.into_iter().map(|digest| Blob { digest, content: super::Content::Bytes(empty().into()) });
        let (batches, large) = plan(wanted.collect(), limit);
        let mut read = Vec::new();
        for blob in large {
            read.push((blob.digest, self.read(blob.digest, blob.digest.size_bytes).await?));
        }
        for batch in batches {
            let function = batch.first().map_or(DigestFunction::Sha256, |blob| blob.digest.function);
            let answers = retried!(self.endpoint.retry(), {
                let mut client = self.endpoint.cas_client().await;
                let request = reapi::BatchReadBlobsRequest {
                    instance_name: self.endpoint.instance().to_owned(),
                    digests: batch.iter().map(|blob| blob.digest.into()).collect(),
                    digest_function: function.number(),
                    ..Default::default()
                };
                let answer = client.batch_read_blobs(self.endpoint.request(request)).await;
                Ok(answer.map_err(|status| self.endpoint.error(&status))?.into_inner().responses)
            });
            let mut found: HashMap<Digest, Vec<u8>> = HashMap::new();
            for answer in answers? {
                let digest = answer.digest.as_ref().map(|digest| self.digest(function, digest)).transpose()?;
                let Some(digest) = digest else { continue };
                if let Some(status) = answer.status.filter(|status| status.code != 0) {
                    let error = self.endpoint.answer_error(&status);
                    return Err(match error.kind() {
                        RemoteErrorKind::NotFound => self.endpoint.missing_error(vec![digest]),
                        _ => error,
                    });
                }
                let came = function.of(&answer.data);
                if came != digest {
                    let why = format!("{came} instead of {digest}");
                    return Err(self.endpoint.own_error(RemoteErrorKind::Corrupt, why));
                }
                found.insert(digest, answer.data);
            }
            for blob in batch {
                let data = found.get(&blob.digest).cloned();
                read.push((blob.digest, data.ok_or_else(|| self.endpoint.missing_error(vec![blob.digest]))?));
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::Content;

    fn blob(size_bytes: u64) -> Blob {
        let digest = Digest { size_bytes, ..Digest::of(&size_bytes.to_le_bytes()) };
        Blob { digest, content: Content::Bytes(Vec::new().into()) }
    }

    #[test]
    fn batches_are_filled_and_what_fits_none_stays_alone() {
        let (batches, large) = plan([300, 1000, 300, 900, 10, 2000].map(blob).into(), 1128);
        let sizes = |blobs: &Vec<Blob>| blobs.iter().map(|blob| blob.digest.size_bytes).collect::<Vec<_>>();
        assert_eq!(
            batches.iter().map(sizes).collect::<Vec<_>>(),
            [vec![300], vec![1000], vec![300], vec![900], vec![10]]
        );
        assert_eq!(sizes(&large), [2000]);
        assert_eq!(plan([1, 2, 3].map(blob).into(), 1000).0.len(), 1);
    }
}
