//! Bytes with their checksum, for what must not be trusted if it is damaged.

/// The bytes of the checksum, a BLAKE3.
const CHECKSUM_BYTES: usize = 32;

/// Returns bytes after their checksum.
pub(crate) fn seal(body: &[u8]) -> Vec<u8> {
    [&blake3::hash(body).as_bytes()[..], body].concat()
}

/// Returns the bytes that were sealed, or `None` if they are damaged.
pub(crate) fn open(sealed: &[u8]) -> Option<&[u8]> {
    let (checksum, body) = sealed.split_at_checked(CHECKSUM_BYTES)?;
    (blake3::hash(body).as_bytes() == checksum).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_damaged_byte_is_noticed() {
        let sealed = seal(b"body");
        assert_eq!(open(&sealed), Some(&b"body"[..]));
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!((open(&damaged), open(&sealed[..at])), (None, None), "byte {at}");
        }
    }
}
