//! Which bytes of a layer's tar are metadata, and which are the content of files.

use std::io;

const BLOCK_BYTES: usize = 512;
/// An extended header that is longer than this is not searched for a size. Ours are never that long unless
/// they have large attributes, and then the file's size is in its header.
const MAX_EXTENDED_BYTES: u64 = 1 << 20;
/// No size is larger than this, so that sums of sizes do not overflow.
const MAX_SIZE: u64 = 1 << 62;

/// One of the two streams into which a tar is separated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Part {
    /// Headers, extended headers, padding, and whatever else is not content.
    Metadata,
    /// The bytes of regular files, one after another.
    Content,
}

/// A position in a tar.
///
/// Two readers of the same metadata agree on what is content, whatever the metadata is. So a tar that was
/// separated by one of them is put together by the other, even if both misread a header.
#[derive(Debug)]
pub(super) struct TarLayout {
    state: State,
    /// The size of the next file, if an extended header has it.
    size: Option<u64>,
}

#[derive(Debug)]
enum State {
    /// A header, as far as it has been read.
    Header(Vec<u8>),
    /// The data of an extended header, and the number of bytes that follow.
    Extended { text: Vec<u8>, is_kept: bool, left: u64, padding: u64 },
    /// The content of a file.
    Content { left: u64, padding: u64 },
    /// Other bytes.
    Skipped { left: u64 },
}

impl Default for TarLayout {
    fn default() -> Self {
        Self { state: State::Header(Vec::new()), size: None }
    }
}

impl TarLayout {
    /// Returns what comes next, and how many bytes of it, at least one.
    pub(super) fn next(&self) -> (Part, u64) {
        match &self.state {
            State::Header(read) => (Part::Metadata, (BLOCK_BYTES - read.len()) as u64),
            State::Extended { left, .. } | State::Skipped { left } => (Part::Metadata, *left),
            State::Content { left, .. } => (Part::Content, *left),
        }
    }

    /// Goes on by `bytes`, which must not be more than [`next`](Self::next) said.
    pub(super) fn advance(&mut self, bytes: &[u8]) {
        let length = bytes.len() as u64;
        let next = match &mut self.state {
            State::Header(read) => {
                read.extend_from_slice(bytes);
                (read.len() >= BLOCK_BYTES).then(|| after_header(read, &mut self.size))
            }
            State::Extended { text, is_kept, left, padding } => {
                if *is_kept {
                    text.extend_from_slice(bytes);
                }
                *left = left.saturating_sub(length);
                (*left == 0).then(|| {
                    self.size = size_record(text).or(self.size);
                    skipped(*padding)
                })
            }
            State::Content { left, padding } => {
                *left = left.saturating_sub(length);
                (*left == 0).then(|| skipped(*padding))
            }
            State::Skipped { left } => {
                *left = left.saturating_sub(length);
                (*left == 0).then(|| skipped(0))
            }
        };
        if let Some(next) = next {
            self.state = next;
        }
    }

    /// Separates the next bytes of a tar.
    pub(super) fn separate(
        &mut self,
        mut bytes: &[u8],
        mut put: impl FnMut(Part, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            let (part, length) = self.next();
            let (taken, rest) = bytes.split_at(usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len()));
            put(part, taken)?;
            self.advance(taken);
            bytes = rest;
        }
        Ok(())
    }
}

/// Returns the state after `left` bytes of metadata that need not be read.
fn skipped(left: u64) -> State {
    if left == 0 { State::Header(Vec::with_capacity(BLOCK_BYTES)) } else { State::Skipped { left } }
}

/// Returns what follows a header. `extended` is the size from an extended header before it.
fn after_header(header: &[u8], extended: &mut Option<u64>) -> State {
    let size = octal(&header[124..136]);
    let padded = |size: u64| size.next_multiple_of(BLOCK_BYTES as u64) - size;
    match header[156] {
        b'x' if size > 0 => {
            State::Extended { text: Vec::new(), is_kept: size <= MAX_EXTENDED_BYTES, left: size, padding: padded(size) }
        }
        b'0' | b'7' | 0 => {
            let size = extended.take().unwrap_or(size);
            if size == 0 { skipped(0) } else { State::Content { left: size, padding: padded(size) } }
        }
        _ => {
            *extended = None;
            skipped(size + padded(size))
        }
    }
}

/// Parses a number of a header. What is no number is zero.
fn octal(field: &[u8]) -> u64 {
    let text = std::str::from_utf8(field).unwrap_or_default();
    let text = text.trim_matches(|char| matches!(char, ' ' | '\0'));
    u64::from_str_radix(text, 8).unwrap_or(0).min(MAX_SIZE)
}

/// Returns the size that an extended header has: its records are `LENGTH KEY=VALUE\n`.
fn size_record(mut records: &[u8]) -> Option<u64> {
    let mut found = None;
    while let Some(space) = records.iter().position(|byte| *byte == b' ') {
        let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let record = records.get(space + 1..length)?;
        if let Some(value) = record.strip_prefix(b"size=") {
            let value = std::str::from_utf8(value).ok()?.trim_end();
            found = value.parse().ok().map(|size: u64| size.min(MAX_SIZE));
        }
        records = &records[length..];
    }
    found
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use proptest::prelude::*;

    use super::*;
    use crate::tree::{IdMap, layer_tar};

    fn separated(tar: &[u8], pieces: usize) -> (Vec<u8>, Vec<u8>) {
        let (mut metadata, mut content, mut layout) = (Vec::new(), Vec::new(), TarLayout::default());
        for piece in tar.chunks(pieces.max(1)) {
            let put = |part, bytes: &[u8]| {
                match part {
                    Part::Metadata => metadata.extend_from_slice(bytes),
                    Part::Content => content.extend_from_slice(bytes),
                }
                Ok(())
            };
            layout.separate(piece, put).unwrap();
        }
        (metadata, content)
    }

    fn together<'a>(mut metadata: &'a [u8], mut content: &'a [u8]) -> Vec<u8> {
        let (mut tar, mut layout) = (Vec::new(), TarLayout::default());
        loop {
            let (part, length) = layout.next();
            let source = if part == Part::Metadata { &mut metadata } else { &mut content };
            let (taken, rest) = source.split_at(usize::try_from(length).unwrap_or(usize::MAX).min(source.len()));
            if taken.is_empty() {
                return tar;
            }
            *source = rest;
            tar.extend_from_slice(taken);
            layout.advance(taken);
        }
    }

    #[test]
    fn the_content_of_a_layer_is_that_of_its_files_in_order_and_times_are_not_in_it() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        fs::create_dir(path("dir")).unwrap();
        fs::write(path("a"), "first").unwrap();
        fs::write(path("b"), vec![b'x'; 1024]).unwrap();
        fs::write(path(&"long".repeat(40)), "named by an extended header").unwrap();
        fs::write(path("dir/z"), "last").unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::hard_link(path("a"), path("c")).unwrap();
        symlink("a", path("link")).unwrap();
        let pack = || {
            let mut tar = Vec::new();
            layer_tar(top.path(), &mut tar, IdMap::Single).unwrap();
            tar
        };
        let tar = pack();
        let (metadata, content) = separated(&tar, 1000);
        let expected = ["first", &"x".repeat(1024), "named by an extended header", "last"].concat();
        assert_eq!(String::from_utf8(content.clone()).unwrap(), expected);
        assert_eq!(together(&metadata, &content), tar);
        for pieces in [1, 511, 512, 513] {
            assert_eq!(separated(&tar, pieces), (metadata.clone(), content.clone()), "{pieces}");
        }
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
        fs::File::open(path("b")).unwrap().set_modified(old).unwrap();
        let (other, same) = separated(&pack(), 1000);
        assert_eq!(same, content);
        assert_ne!(other, metadata);
    }

    #[test]
    fn an_extended_size_counts_once() {
        let mut header = [0_u8; 512];
        header[156] = b'x';
        header[124..136].copy_from_slice(b"00000000015\0");
        let mut tar = header.to_vec();
        tar.extend_from_slice(b"13 size=1000\n");
        tar.resize(1024, 0);
        let mut file = [0_u8; 512];
        file[156] = b'0';
        file[124..136].copy_from_slice(b"00000000005\0");
        tar.extend_from_slice(&file);
        tar.extend_from_slice(&[b'a'; 1000]);
        tar.extend_from_slice(&[0; 24]);
        tar.extend_from_slice(&file);
        tar.extend_from_slice(b"short");
        let (_, content) = separated(&tar, 100);
        assert_eq!(content.len(), 1005);
    }

    proptest! {
        #[test]
        fn any_bytes_that_are_separated_are_put_together_again(
            blocks in prop::collection::vec((prop::sample::select(b"0x7gL5\0"), 0_u64..3000), 0..8),
            noise in prop::collection::vec(any::<u8>(), 0..2000),
            pieces in 1_usize..1500,
        ) {
            let mut tar = Vec::new();
            for (kind, size) in blocks {
                let mut header = [0_u8; 512];
                header[156] = kind;
                header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
                tar.extend_from_slice(&header);
            }
            tar.extend_from_slice(&noise);
            let (metadata, content) = separated(&tar, pieces);
            prop_assert_eq!(together(&metadata, &content), tar);
        }
    }
}
