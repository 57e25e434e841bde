//! The bytes of a layer: decompressed, counted, hashed.

use std::io::{self, BufReader, Read};

use sha2::{Digest, Sha256};

use super::error::Fault;

const BUFFER_BYTES: usize = 1 << 17;
/// The bytes by which a compression is recognised.
const MAGIC_BYTES: usize = 4;

/// Returns the decompressed stream of `blob`. Gzip and zstd are recognised by their first bytes; any other
/// stream is returned unchanged.
pub fn decompress<'a>(blob: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut blob = BufReader::with_capacity(BUFFER_BYTES, blob);
    // A pipe may return them one by one.
    let mut start = Vec::with_capacity(MAGIC_BYTES);
    blob.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut start)?;
    let (is_gzip, is_zstd) = (start.starts_with(&[0x1f, 0x8b]), start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    let blob = io::Cursor::new(start).chain(blob);
    if is_gzip {
        Ok(Box::new(flate2::bufread::MultiGzDecoder::new(blob)))
    } else if is_zstd {
        Ok(Box::new(zstd::stream::read::Decoder::with_buffer(blob)?))
    } else {
        Ok(Box::new(blob))
    }
}

/// The stream has more bytes than allowed.
#[derive(Debug, thiserror::Error)]
#[error("more than {limit} bytes")]
pub(super) struct TooLarge {
    pub(super) limit: u64,
}

/// A reader that counts and hashes its bytes.
pub(super) struct Measured<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
    limit: u64,
}

impl<R: Read> Measured<R> {
    pub(super) fn new(inner: R, limit: u64) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0, limit }
    }

    /// Reads the rest of the stream. Returns the hash and the length of the whole stream.
    pub(super) fn finish(mut self) -> Result<([u8; 32], u64), Fault> {
        let mut rest = vec![0; BUFFER_BYTES];
        while self.read(&mut rest).map_err(|error| Fault::reading(&error))? > 0 {}
        Ok((self.hash.finalize().into(), self.bytes))
    }
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = loop {
            match self.inner.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        self.bytes += read as u64;
        if self.bytes > self.limit {
            return Err(io::Error::other(TooLarge { limit: self.limit }));
        }
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A pipe whose writer is slow.
    struct OneByOne<'a>(&'a [u8]);

    impl Read for OneByOne<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = buffer.len().min(1);
            self.0.read(&mut buffer[..most])
        }
    }

    #[test]
    fn compression_is_recognised_however_the_bytes_arrive() {
        let text = b"some text";
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(text).unwrap();
        let blobs = [gzip.finish().unwrap(), zstd::encode_all(&text[..], 1).unwrap(), text.to_vec()];
        for (blob, content) in blobs.iter().map(|blob| (&blob[..], &text[..])).chain([(&b"ab"[..], &b"ab"[..])]) {
            let mut found = Vec::new();
            decompress(OneByOne(blob)).unwrap().read_to_end(&mut found).unwrap();
            assert_eq!(found, content);
        }
    }
}
