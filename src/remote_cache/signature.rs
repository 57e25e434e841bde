//! Signatures of entries: Ed25519, in the form of minisign, so that its keys serve and its program can check.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};

/// The name of the algorithm that signs the bytes themselves, and not a hash of them.
const ALGORITHM: &[u8; 2] = b"Ed";
/// The ranges of the parts of a secret key: which function encrypts it, its id, its seed, its public key.
const KEY_BYTES: usize = 158;
const ENCRYPTION: std::ops::Range<usize> = 2..4;
const ID: std::ops::Range<usize> = 54..62;
const SEED: std::ops::Range<usize> = 62..94;
const PUBLIC: std::ops::Range<usize> = 94..126;
/// The lines before a signature and before the comment that is signed.
const UNTRUSTED: &str = "untrusted comment: ";
const TRUSTED: &str = "trusted comment: ";

/// The reason why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It is not a public key.
    #[error("not a public key of minisign: expected a line such as `RWRfC5Mp...`, of 56 characters")]
    Public,
    /// It is not a secret key.
    #[error("not a secret key of minisign: make one with `minisign -G -W`")]
    Secret,
    /// The secret key has a password, which a build cannot enter.
    #[error("the secret key has a password: remove it with `minisign -C -W`, and protect the file")]
    Password,
}

/// A public key, as minisign writes it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey {
    id: [u8; 8],
    key: [u8; 32],
}

/// The secret key with which a machine signs its results.
pub struct SigningKey {
    public: PublicKey,
    pair: Ed25519KeyPair,
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unsigned {
    /// There is none by one of the keys.
    Unknown(String),
    /// It claims to be by one of the keys, and is not.
    Wrong(String),
}

impl fmt::Display for Unsigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Unknown(why) | Self::Wrong(why)) = self;
        f.write_str(why)
    }
}

/// A key, or the file that minisign writes, with a comment above it.
impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = last_line(text).and_then(|line| STANDARD.decode(line).ok()).ok_or(KeyError::Public)?;
        let rest = bytes.strip_prefix(ALGORITHM).ok_or(KeyError::Public)?;
        let (id, key) = rest.split_first_chunk::<8>().ok_or(KeyError::Public)?;
        Ok(Self { id: *id, key: key.try_into().map_err(|_| KeyError::Public)? })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode([&ALGORITHM[..], &self.id, &self.key].concat()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// The file that minisign writes for a key without a password.
impl FromStr for SigningKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = last_line(text).and_then(|line| STANDARD.decode(line).ok()).ok_or(KeyError::Secret)?;
        if bytes.len() != KEY_BYTES || !bytes.starts_with(ALGORITHM) {
            return Err(KeyError::Secret);
        }
        if bytes[ENCRYPTION] != [0, 0] {
            return Err(KeyError::Password);
        }
        // Compares the two, which is what the checksum of the file is for.
        let pair = Ed25519KeyPair::from_seed_and_public_key(&bytes[SEED], &bytes[PUBLIC]);
        let id = bytes[ID].try_into().map_err(|_| KeyError::Secret)?;
        let key = bytes[PUBLIC].try_into().map_err(|_| KeyError::Secret)?;
        Ok(Self { public: PublicKey { id, key }, pair: pair.map_err(|_| KeyError::Secret)? })
    }
}

/// Shows no part of the key.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", id_text(&self.public.id))
    }
}

impl SigningKey {
    /// Returns the key that checks its signatures.
    pub(super) fn public(&self) -> PublicKey {
        self.public
    }

    /// Returns the text of a signature of `bytes`.
    pub(super) fn sign(&self, bytes: &[u8], comment: &str) -> String {
        let comment: String = comment.chars().filter(|char| !char.is_control()).collect();
        let signature = self.pair.sign(bytes);
        let whole = self.pair.sign(&[signature.as_ref(), comment.as_bytes()].concat());
        let first = STANDARD.encode([&ALGORITHM[..], &self.public.id, signature.as_ref()].concat());
        let second = STANDARD.encode(whole.as_ref());
        format!("{UNTRUSTED}signature of a cached result\n{first}\n{TRUSTED}{comment}\n{second}\n")
    }
}

/// Checks that one of `keys` signed `bytes`.
pub(super) fn verify(keys: &[PublicKey], bytes: &[u8], signature: Option<&[u8]>) -> Result<(), Unsigned> {
    let unknown = |why: &str| Unsigned::Unknown(why.to_owned());
    let signature = signature.ok_or_else(|| unknown("it is not signed"))?;
    let malformed = || unknown("its signature is malformed");
    let text = std::str::from_utf8(signature).map_err(|_| malformed())?;
    let lines: Vec<&str> = text.lines().collect();
    let &[_, first, comment, second] = &lines[..] else { return Err(malformed()) };
    let first = STANDARD.decode(first).map_err(|_| malformed())?;
    let first = first.strip_prefix(ALGORITHM).ok_or_else(malformed)?;
    let (id, first) = first.split_first_chunk::<8>().ok_or_else(malformed)?;
    let (comment, second) = (comment.strip_prefix(TRUSTED), STANDARD.decode(second).ok());
    let (comment, second) = comment.zip(second).ok_or_else(malformed)?;
    let mut of_id = keys.iter().filter(|key| key.id == *id).peekable();
    if of_id.peek().is_none() {
        return Err(Unsigned::Unknown(format!("it is signed by the key {}, which is not trusted here", id_text(id))));
    }
    let whole = [first, comment.as_bytes()].concat();
    let is_by = |key: &PublicKey| {
        let key = UnparsedPublicKey::new(&ED25519, key.key);
        key.verify(bytes, first).is_ok() && key.verify(&whole, &second).is_ok()
    };
    match of_id.any(is_by) {
        true => Ok(()),
        false => Err(Unsigned::Wrong(format!("its signature by the key {} is wrong", id_text(id)))),
    }
}

/// Returns the id of a key as minisign shows it.
fn id_text(id: &[u8; 8]) -> String {
    format!("{:016X}", u64::from_le_bytes(*id))
}

/// Returns the line of a file that has the key.
fn last_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made by minisign 0.11.
    const PUBLIC_KEY: &str = "RWRfC5MpuIKIIr658P0LhIa867meYNKOw0x4U2e67ywmVCub4jrssPoz";
    const SECRET_KEY: &str = "untrusted comment: minisign encrypted secret key\nRWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAXwuTKbiCiCKsdONW8wBtXiFDeRVAHS8SKJvA157LYOmF4Neuw/zSPL658P0LhIa867meYNKOw0x4U2e67ywmVCub4jrssPozAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";
    const SIGNATURE: &str = "untrusted comment: signature from minisign secret key\nRWRfC5MpuIKIIlHjG4HyFBsTRwqcyH0pY9KDKovwQaZe8atxT7PARqqpBniz4e0ZrvuZAZzT3qLrbEXafxJJpKbUgqGGgKeLlwg=\ntrusted comment: comment\nNnuoD98ecbhuUEAATUfoI0ElsL16mjyB0yL23IlUCH0W+a9r0Qe8R0Sl3eUkeWJWz9xIJt/GUDdIZ6rv0nV+BA==\n";
    const SIGNED: &[u8] = b"hello\n";

    #[test]
    fn signatures_and_keys_are_those_of_minisign() {
        let public: PublicKey = PUBLIC_KEY.parse().unwrap();
        assert_eq!(public.to_string(), PUBLIC_KEY);
        assert_eq!(format!("untrusted comment: x\n{PUBLIC_KEY}\n").parse::<PublicKey>(), Ok(public));
        assert_eq!(verify(&[public], SIGNED, Some(SIGNATURE.as_bytes())), Ok(()));
        let secret: SigningKey = SECRET_KEY.parse().unwrap();
        let ours = secret.sign(SIGNED, "comment");
        // Ed25519 signatures of the same bytes are the same.
        assert_eq!(ours.lines().skip(1).collect::<Vec<_>>(), SIGNATURE.lines().skip(1).collect::<Vec<_>>());
        assert_eq!(format!("{secret:?}"), "SigningKey(228882B829930B5F)");
        assert_eq!(secret.public(), public);
    }

    #[test]
    fn nothing_but_the_signed_bytes_and_a_trusted_key_count() {
        let public: PublicKey = PUBLIC_KEY.parse().unwrap();
        let refused = |keys: &[PublicKey], bytes: &[u8], signature: Option<&str>| {
            verify(keys, bytes, signature.map(str::as_bytes)).unwrap_err()
        };
        let unknown = |why: &str| Unsigned::Unknown(why.into());
        assert_eq!(refused(&[public], SIGNED, None), unknown("it is not signed"));
        assert_eq!(
            refused(&[], SIGNED, Some(SIGNATURE)),
            unknown("it is signed by the key 228882B829930B5F, which is not trusted here")
        );
        let is_wrong = |refused| matches!(refused, Unsigned::Wrong(_));
        assert!(is_wrong(refused(&[public], b"Hello\n", Some(SIGNATURE))));
        // Another key that has the same id.
        let other = PublicKey { key: [7; 32], ..public };
        assert!(is_wrong(refused(&[other], SIGNED, Some(SIGNATURE))));
        assert!(is_wrong(refused(
            &[public],
            SIGNED,
            Some(&SIGNATURE.replace("trusted comment: comment", "trusted comment: other"))
        )));
        for (at, _) in SIGNATURE.match_indices(|char: char| char.is_ascii_alphanumeric()) {
            let mut changed = SIGNATURE.to_owned().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            // The first line is not signed.
            let is_comment = at < SIGNATURE.find('\n').unwrap();
            assert_eq!(verify(&[public], SIGNED, Some(&changed)).is_ok(), is_comment, "{at}");
        }
        for malformed in ["", "RWR", "\n\n\n\n", "a\nb\nc\nd", &SIGNATURE[..100], &format!("{SIGNATURE}more\n")] {
            assert_eq!(
                refused(&[public], SIGNED, Some(malformed)),
                unknown("its signature is malformed"),
                "{malformed}"
            );
        }
        assert_eq!(verify(&[public], SIGNED, Some(&[0xff; 40])), Err(unknown("its signature is malformed")));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "RWRf", "untrusted comment: x", &SIGNATURE.replace('\n', " ")] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError::Public), "{text}");
            assert_eq!(text.parse::<SigningKey>().err(), Some(KeyError::Secret), "{text}");
        }
        assert_eq!(PUBLIC_KEY.parse::<SigningKey>().err(), Some(KeyError::Secret));
        let line = SECRET_KEY.lines().last().unwrap();
        let mut bytes = STANDARD.decode(line).unwrap();
        bytes[2..4].copy_from_slice(b"Sc");
        assert_eq!(STANDARD.encode(&bytes).parse::<SigningKey>().err(), Some(KeyError::Password));
        bytes[2..4].copy_from_slice(&[0, 0]);
        bytes[SEED.start] ^= 1;
        assert_eq!(STANDARD.encode(&bytes).parse::<SigningKey>().err(), Some(KeyError::Secret), "the halves differ");
    }
}
