//! Files with a header and a checksum, and the numbers in them: the form of manifests and stat caches. What
//! is damaged, or of another version, is not read.

const CHECKSUM_BYTES: usize = 4;

/// A file under construction: a header, the body's checksum, and the body.
pub(super) struct UnsealedFile {
    pub(super) bytes: Vec<u8>,
    body: usize,
}

impl UnsealedFile {
    pub(super) fn new(header: &[u8]) -> Self {
        let bytes = [header, &[0; CHECKSUM_BYTES]].concat();
        Self { body: bytes.len(), bytes }
    }

    pub(super) fn seal(mut self) -> Vec<u8> {
        let checksum = crc32fast::hash(&self.bytes[self.body..]).to_le_bytes();
        self.bytes[self.body - CHECKSUM_BYTES..self.body].copy_from_slice(&checksum);
        self.bytes
    }
}

/// Returns the body of a sealed file, or `None` if it is damaged or of another version.
pub(super) fn unseal<'a>(header: &[u8], bytes: &'a [u8]) -> Option<&'a [u8]> {
    let mut rest = bytes.strip_prefix(header)?;
    let checksum = u32_of(&mut rest)?;
    (crc32fast::hash(rest) == checksum).then_some(rest)
}

pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

pub(super) fn u32_of(bytes: &mut &[u8]) -> Option<u32> {
    take(bytes).map(u32::from_le_bytes)
}

pub(super) fn u64_of(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes).map(u64::from_le_bytes)
}

pub(super) fn i64_of(bytes: &mut &[u8]) -> Option<i64> {
    take(bytes).map(i64::from_le_bytes)
}
