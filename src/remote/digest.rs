//! Digests, the names of blobs.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest as _, Sha256};

use super::reapi;
use crate::hex::{from_hex, to_hex};

/// The name of a blob: the SHA-256 of its bytes, and its size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    /// The SHA-256.
    pub hash: [u8; 32],
    /// The size in bytes.
    pub size_bytes: u64,
}

/// An error for a received digest that is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a SHA-256 digest", .0.escape_default())]
pub struct DigestError(String);

impl Digest {
    /// Returns the digest of bytes in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { hash: Sha256::digest(bytes).into(), size_bytes: bytes.len() as u64 }
    }

    /// Returns the digest of a file's content. Blocks while the file is read.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        Self::of_reader(File::open(path)?)
    }

    /// Returns the digest of everything that a reader yields.
    ///
    /// # Errors
    /// Returns an error if reading fails.
    pub fn of_reader(mut reader: impl Read) -> io::Result<Self> {
        let mut hash = Sha256::new();
        let (mut buffer, mut size_bytes) = (vec![0; 1 << 17], 0);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(Self { hash: hash.finalize().into(), size_bytes }),
                Ok(read) => {
                    hash.update(&buffer[..read]);
                    size_bytes += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the hash as 64 hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        to_hex(&self.hash)
    }

    /// Parses the two parts of a digest in the protocol's form.
    ///
    /// # Errors
    /// Returns an error if they are not 64 hexadecimal digits and a valid size.
    pub fn parse(hex: &str, size_bytes: i64) -> Result<Self, DigestError> {
        let wrong = || DigestError(format!("{}/{size_bytes}", hex.chars().take(100).collect::<String>()));
        let size_bytes = u64::try_from(size_bytes).map_err(|_| wrong())?;
        let hash = from_hex(hex).ok_or_else(wrong)?;
        Ok(Self { hash, size_bytes })
    }
}

impl From<Digest> for reapi::Digest {
    fn from(digest: Digest) -> Self {
        Self { hash: digest.hex(), size_bytes: i64::try_from(digest.size_bytes).unwrap_or(i64::MAX) }
    }
}

impl TryFrom<&reapi::Digest> for Digest {
    type Error = DigestError;

    fn try_from(digest: &reapi::Digest) -> Result<Self, DigestError> {
        Self::parse(&digest.hash, digest.size_bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.hex(), self.size_bytes)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_goes_out_and_comes_back() {
        let digest = Digest::of(b"abc");
        let wire = reapi::Digest::from(digest);
        assert_eq!(wire.hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!((wire.size_bytes, Digest::try_from(&wire)), (3, Ok(digest)));
        assert_eq!(Digest::of_reader(&b"abc"[..]).unwrap(), digest);
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let hex = Digest::of(b"").hex();
        for (hash, size) in [("", 0), (&hex[1..], 0), (&*hex, -1), (&hex.to_uppercase(), 0), ("\u{e9}", 0)] {
            assert!(Digest::parse(hash, size).is_err(), "{hash}/{size}");
        }
    }
}
