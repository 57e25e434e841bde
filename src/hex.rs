//! SHA-256 digests as text: 64 lowercase hexadecimal digits, as registries and engines write them.

use std::fmt::Write;

/// The digits of a digest.
pub(crate) fn to_hex(digest: &[u8; 32]) -> String {
    let mut text = String::with_capacity(64);
    for byte in digest {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The digest of those digits; `None` where they are none, or in capitals.
pub(crate) fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_64_lowercase_digits() {
        let digest: [u8; 32] = std::array::from_fn(|index| u8::try_from(index * 8).unwrap());
        let text = to_hex(&digest);
        assert!(text.starts_with("0008101820") && text.ends_with("f0f8"), "{text}");
        assert_eq!(from_hex(&text), Some(digest));
        let two_bytes = format!("{}\u{e9}", &text[..62]);
        for wrong in
            ["", &text[1..], &text.to_uppercase(), &format!("{text}00"), &format!(" {}", &text[1..]), &two_bytes]
        {
            assert_eq!(from_hex(wrong), None, "{wrong}");
        }
    }
}
