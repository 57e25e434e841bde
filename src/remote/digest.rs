//! Digests, the names of blobs.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
    str::FromStr,
};

use sha2::{Digest as _, Sha256};

use super::reapi::{self, digest_function::Value};
use crate::hex::{from_hex, to_hex};

/// A digest function of the protocol. An engine uses one for everything that an Action consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum DigestFunction {
    /// SHA-256, which almost every engine supports.
    #[default]
    Sha256,
    /// BLAKE3.
    Blake3,
}

/// The name of a blob: the hash of its bytes, and its size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    /// The function that made the hash.
    pub function: DigestFunction,
    /// The hash.
    pub hash: [u8; 32],
    /// The size in bytes.
    pub size_bytes: u64,
}

/// An error for a received digest that is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a digest of 64 hexadecimal digits and a size", .0.escape_default())]
pub struct DigestError(String);

/// A hash under construction.
#[derive(Debug, Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Blake3(hash) => drop(hash.update(bytes)),
        }
    }

    pub(crate) fn finish(&self) -> [u8; 32] {
        match self {
            Self::Sha256(hash) => hash.clone().finalize().into(),
            Self::Blake3(hash) => *hash.finalize().as_bytes(),
        }
    }
}

impl DigestFunction {
    /// Returns the function's number in requests.
    pub(super) fn number(self) -> i32 {
        match self {
            Self::Sha256 => Value::Sha256 as i32,
            Self::Blake3 => Value::Blake3 as i32,
        }
    }

    pub(crate) fn hasher(self) -> Hasher {
        match self {
            Self::Sha256 => Hasher::Sha256(Sha256::new()),
            Self::Blake3 => Hasher::Blake3(Box::default()),
        }
    }

    /// Returns the digest of bytes in memory.
    #[must_use]
    pub fn of(self, bytes: &[u8]) -> Digest {
        let hash = match self {
            Self::Sha256 => Sha256::digest(bytes).into(),
            Self::Blake3 => *blake3::hash(bytes).as_bytes(),
        };
        Digest { function: self, hash, size_bytes: bytes.len() as u64 }
    }

    /// Returns the digest of a file's content. Blocks while the file is read.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn of_file(self, path: &Path) -> io::Result<Digest> {
        self.of_reader(File::open(path)?)
    }

    /// Returns the digest of everything that a reader yields.
    ///
    /// # Errors
    /// Returns an error if reading fails.
    pub fn of_reader(self, mut reader: impl Read) -> io::Result<Digest> {
        let mut hash = self.hasher();
        let (mut buffer, mut size_bytes) = (vec![0; 1 << 17], 0);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(Digest { function: self, hash: hash.finish(), size_bytes }),
                Ok(read) => {
                    hash.update(&buffer[..read]);
                    size_bytes += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Parses a digest in the protocol's form.
    ///
    /// # Errors
    /// Returns an error if it is not 64 hexadecimal digits and a valid size.
    pub fn parse(self, digest: &reapi::Digest) -> Result<Digest, DigestError> {
        let wrong =
            || DigestError(format!("{}/{}", digest.hash.chars().take(100).collect::<String>(), digest.size_bytes));
        let size_bytes = u64::try_from(digest.size_bytes).map_err(|_| wrong())?;
        let hash = from_hex(&digest.hash).ok_or_else(wrong)?;
        Ok(Digest { function: self, hash, size_bytes })
    }
}

impl Digest {
    /// Returns the SHA-256 digest of bytes in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        DigestFunction::Sha256.of(bytes)
    }

    /// Returns the SHA-256 digest of a file's content. Blocks while the file is read.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        DigestFunction::Sha256.of_file(path)
    }

    /// Returns the hash as 64 hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        to_hex(&self.hash)
    }
}

impl From<Digest> for reapi::Digest {
    fn from(digest: Digest) -> Self {
        Self { hash: digest.hex(), size_bytes: i64::try_from(digest.size_bytes).unwrap_or(i64::MAX) }
    }
}

/// `HASH/SIZE`, or `blake3/HASH/SIZE`, as in the names of an engine's blobs.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let function = match self.function {
            DigestFunction::Sha256 => "",
            DigestFunction::Blake3 => "blake3/",
        };
        write!(f, "{function}{}/{}", self.hex(), self.size_bytes)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (function, rest) = match text.strip_prefix("blake3/") {
            Some(rest) => (DigestFunction::Blake3, rest),
            None => (DigestFunction::Sha256, text),
        };
        let parts = rest.split_once('/').and_then(|(hash, size)| Some((hash, size.parse().ok()?)));
        let (hash, size_bytes) = parts.ok_or_else(|| DigestError(text.chars().take(100).collect()))?;
        function.parse(&reapi::Digest { hash: hash.to_owned(), size_bytes })
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
        for (function, hash) in [
            (DigestFunction::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (DigestFunction::Blake3, "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
        ] {
            let digest = function.of(b"abc");
            let wire = reapi::Digest::from(digest);
            assert_eq!((&*wire.hash, wire.size_bytes), (hash, 3));
            assert_eq!(function.parse(&wire), Ok(digest));
            assert_eq!(function.of_reader(&b"abc"[..]).unwrap(), digest);
            assert_eq!(digest.to_string().parse(), Ok(digest));
        }
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let hex = Digest::of(b"").hex();
        for (hash, size_bytes) in [("", 0), (&hex[1..], 0), (&*hex, -1), (&hex.to_uppercase(), 0), ("\u{e9}", 0)] {
            let wire = reapi::Digest { hash: hash.to_owned(), size_bytes };
            assert!(DigestFunction::Sha256.parse(&wire).is_err(), "{hash}/{size_bytes}");
        }
        for text in [String::new(), hex.clone(), format!("{hex}/x"), format!("sha1/{hex}/0"), format!("blake3/{hex}")] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
