//! Unpacks an image layer: a tar stream, which may be compressed, becomes the directory of an overlay layer.
//!
//! Input: an untrusted stream of bytes. Output: files below one directory, and the digest of the uncompressed
//! stream, by which the caller verifies it. Nothing is ever written outside that directory: names are split,
//! each directory on the path is opened separately, and a link on the path is read and resolved from there,
//! with that directory as its root. A `chroot` would do the same, and so does docker; see
//! `docs/design/image.md`.
//!
//! Entries that remove lower entries (`.wh.NAME`, `.wh..wh..opq`) become overlayfs' own marks. Attributes of
//! directories are set last. If the caller is not root, devices below `dev` are left out, because steps get a
//! `/dev` of their own, and devices elsewhere are refused.

mod cursor;
mod error;
mod reader;
mod sparse;
mod stream;
mod writer;

#[cfg(test)]
mod tests;

use std::{io::Read, path::Path};

use serde::{Deserialize, Serialize};

pub use error::UnpackError;
pub use stream::decompress;

use self::{
    error::Fault,
    reader::{Kind, Reader},
    stream::Measured,
    writer::Writer,
};
use crate::tree::IdMap;

/// The limits on a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackLimits {
    /// The maximum number of uncompressed bytes.
    pub bytes: u64,
    /// The maximum number of files, directories and links.
    pub entries: u64,
}

impl Default for UnpackLimits {
    /// Returns limits of 64 GiB and four million entries.
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 4_000_000 }
    }
}

/// An unpacked layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// SHA-256 of the uncompressed stream.
    pub diff_id: [u8; 32],
    /// Its length in bytes.
    pub bytes: u64,
}

/// Unpacks the tar stream `blob`, plain or compressed with gzip or zstd, into the empty directory `into`.
///
/// Owners are set, except with [`IdMap::Single`], where the caller owns everything. Modes, modification times
/// and extended attributes are those of the archive; the directory `into` itself gets only a time.
///
/// # Errors
/// Returns the first error; the caller must then remove `into`.
pub fn unpack(blob: impl Read, into: &Path, id_map: IdMap, limits: UnpackLimits) -> Result<Unpacked, UnpackError> {
    let unnamed = |fault: Fault| fault.at(b"");
    let stream = decompress(blob).map_err(|error| UnpackError::reading(&error))?;
    let mut reader = Reader::new(Measured::new(stream, limits.bytes));
    let mut writer = Writer::new(into, id_map).map_err(unnamed)?;
    let mut entries = 0;
    // Holes take no space here, but a copy of such a file may have to write them.
    let mut sparse_bytes = 0_u64;
    while let Some(mut member) = reader.next().map_err(|(path, fault)| fault.at(&path))? {
        entries += 1;
        if let Kind::File { bytes, pieces: Some(_) } = member.kind {
            sparse_bytes = sparse_bytes.saturating_add(bytes);
            if sparse_bytes > limits.bytes {
                return Err(UnpackError::TooLarge { limit: limits.bytes });
            }
        }
        let path = std::mem::take(&mut member.path);
        if !matches!(member.kind, Kind::Skipped) {
            writer.put(&path, &member, &mut reader.data()).map_err(|fault| fault.at(&path))?;
        }
        if entries + writer.implied > limits.entries {
            return Err(UnpackError::TooManyEntries { limit: limits.entries });
        }
    }
    writer.finish().map_err(|(path, fault)| fault.at(&path))?;
    let (diff_id, bytes) = reader.into_inner().finish().map_err(unnamed)?;
    Ok(Unpacked { diff_id, bytes })
}
