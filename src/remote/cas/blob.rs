//! Blobs to upload.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
    sync::Arc,
};

use super::super::{Digest, DigestFunction};

/// A blob that can be uploaded to an engine.
#[derive(Debug, Clone)]
pub struct Blob {
    /// The digest of its bytes.
    pub digest: Digest,
    /// The location of its bytes.
    pub content: Content,
}

/// The location of a blob's bytes.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory.
    Bytes(Arc<[u8]>),
    /// In a file, which is read when the bytes are needed.
    File {
        /// The path of the file.
        path: PathBuf,
        /// The offset of the blob's first byte.
        offset: u64,
    },
}

impl Blob {
    /// Creates a blob from bytes in memory, named by their SHA-256.
    #[must_use]
    pub fn of_bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self::named_by(DigestFunction::Sha256, bytes)
    }

    /// Creates a blob from bytes in memory.
    #[must_use]
    pub fn named_by(function: DigestFunction, bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        Self { digest: function.of(&bytes), content: Content::Bytes(bytes) }
    }

    /// Creates a blob from a whole file whose digest is known.
    #[must_use]
    pub fn of_file(digest: Digest, path: impl Into<PathBuf>) -> Self {
        Self { digest, content: Content::File { path: path.into(), offset: 0 } }
    }

    /// Reads at most `most` bytes from the offset `from`. Blocks if the content is in a file.
    pub(super) fn read(&self, from: u64, most: usize) -> io::Result<Vec<u8>> {
        let left = self.digest.size_bytes.saturating_sub(from);
        let length = usize::try_from(left).map_or(most, |left| left.min(most));
        match &self.content {
            Content::Bytes(bytes) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes[from..bytes.len().min(from + length)].to_vec())
            }
            Content::File { path, offset } => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(offset + from))?;
                let mut bytes = Vec::with_capacity(length);
                file.take(length as u64).read_to_end(&mut bytes)?;
                if bytes.len() < length {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
                }
                Ok(bytes)
            }
        }
    }

    /// Returns the blob's name for errors.
    pub(super) fn name(&self) -> String {
        match &self.content {
            Content::Bytes(_) => self.digest.to_string(),
            Content::File { path, .. } => path.display().to_string(),
        }
    }
}
