//! Cuts a layer's tar into chunks by its content.

use std::io::{self, Read};

use fastcdc::v2020::FastCDC;

use super::layout::{Part, TarLayout};

/// The sizes of chunks. Another choice gives chunks that no earlier layer has, and is readable all the same.
const MIN_BYTES: usize = 16 << 10;
const AVERAGE_BYTES: usize = 64 << 10;
/// The maximum size of a chunk.
pub(super) const MAX_BYTES: usize = 256 << 10;
/// How many bytes of a stream are collected before they are cut.
const GATHER_BYTES: usize = 1 << 20;

/// One of the two streams.
#[derive(Debug, Default)]
struct Cutter {
    bytes: Vec<u8>,
}

impl Cutter {
    fn push(&mut self, bytes: &[u8], put: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        // Where a chunk ends does not depend on what is more than a chunk away.
        if self.bytes.len() >= GATHER_BYTES { self.cut(MAX_BYTES, put) } else { Ok(()) }
    }

    /// Cuts chunks off until at most `rest` bytes are left.
    fn cut(&mut self, rest: usize, put: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut from = 0;
        let chunker = FastCDC::new(&self.bytes, MIN_BYTES, AVERAGE_BYTES, MAX_BYTES);
        while self.bytes.len() - from > rest {
            let (_, to) = chunker.cut(from, self.bytes.len() - from);
            put(&self.bytes[from..to])?;
            from = to;
        }
        self.bytes.drain(..from);
        Ok(())
    }
}

/// Reads a tar, and passes its chunks to `put`, those of each part in order. `each` sees all bytes before.
pub(super) fn cut(
    mut tar: impl Read,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
    mut put: impl FnMut(Part, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (mut metadata, mut content, mut layout) = (Cutter::default(), Cutter::default(), TarLayout::default());
    let mut buffer = vec![0; 1 << 17];
    loop {
        let read = match tar.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            break;
        }
        each(&buffer[..read])?;
        layout.separate(&buffer[..read], |part, bytes| match part {
            Part::Metadata => metadata.push(bytes, &mut |chunk| put(part, chunk)),
            Part::Content => content.push(bytes, &mut |chunk| put(part, chunk)),
        })?;
    }
    metadata.cut(0, &mut |chunk| put(Part::Metadata, chunk))?;
    content.cut(0, &mut |chunk| put(Part::Content, chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns bytes that look random, and are the same each time.
    fn noise(seed: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Returns a tar with a file of these bytes.
    fn tar(content: &[u8]) -> Vec<u8> {
        let mut header = [0_u8; 512];
        header[156] = b'0';
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        let mut tar = header.to_vec();
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
        tar
    }

    /// A reader that returns few bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(self.1);
            self.0.read(&mut buffer[..length])
        }
    }

    fn chunks(tar: &[u8], at_once: usize) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        let put = |part, chunk: &[u8]| {
            if part == Part::Content {
                chunks.push(chunk.to_vec());
            }
            Ok(())
        };
        cut(Slow(tar, at_once), |_| Ok(()), put).unwrap();
        chunks
    }

    #[test]
    fn chunks_depend_on_the_bytes_alone_and_an_insertion_changes_few() {
        let content = noise(1, 3 << 20);
        let cut = chunks(&tar(&content), usize::MAX);
        assert_eq!(cut.concat(), content);
        assert!(cut.len() > 20, "{}", cut.len());
        let is_sized = |chunk: &Vec<u8>| (MIN_BYTES..=MAX_BYTES).contains(&chunk.len());
        assert!(cut[..cut.len() - 1].iter().all(is_sized));
        assert_eq!(chunks(&tar(&content), 777), cut);
        let mut edited = content;
        edited.splice(1_500_000..1_500_000, *b"inserted");
        let edited = chunks(&tar(&edited), usize::MAX);
        let new = edited.iter().filter(|chunk| !cut.contains(chunk)).count();
        assert!((1..=3).contains(&new), "{new}");
    }
}
