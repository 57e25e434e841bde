//! Blobs on their way out.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
    sync::Arc,
};

use super::super::Digest;

/// A blob that can be brought to an engine.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its name.
    pub digest: Digest,
    /// Where its bytes are.
    pub content: Content,
}

/// Where the bytes of a blob are.
#[derive(Debug, Clone)]
pub enum Content {
    /// Here.
    Bytes(Arc<[u8]>),
    /// In a file, read when they are needed.
    File {
        /// The file.
        path: PathBuf,
        /// Where in it they begin.
        offset: u64,
    },
}

impl Blob {
    /// Some bytes.
    #[must_use]
    pub fn of_bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        Self { digest: Digest::of(&bytes), content: Content::Bytes(bytes) }
    }

    /// A whole file whose digest is known.
    #[must_use]
    pub fn of_file(digest: Digest, path: impl Into<PathBuf>) -> Self {
        Self { digest, content: Content::File { path: path.into(), offset: 0 } }
    }

    /// At most `most` bytes from `from` on. Blocks where the blob is a file.
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
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter"));
                }
                Ok(bytes)
            }
        }
    }

    /// What it is called in errors.
    pub(super) fn name(&self) -> String {
        match &self.content {
            Content::Bytes(_) => self.digest.to_string(),
            Content::File { path, .. } => path.display().to_string(),
        }
    }
}
