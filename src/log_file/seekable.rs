//! The seekable format of Zstandard: independent frames, and a table of their sizes at the end of the file.
//!
//! ```text
//! frame*  u32 0x184D2A5E  u32 length  (u32 compressed size, u32 size)*  u32 frames  u8 0  u32 0x8F92EAB1
//! ```
//!
//! The table is a frame that every decoder skips, so that `zstdcat` shows the file. Integers are
//! little-endian. Each frame has a checksum of its content. A file that does not match its table is an error,
//! and no file makes a reader allocate more than one frame and the table.

use std::{
    fs::File,
    io::{self, ErrorKind, Write},
    os::unix::fs::FileExt,
};

use zstd::bulk::{Compressor, Decompressor};

/// The size of each frame's content but the last one's, in bytes.
pub(super) const FRAME_BYTES: usize = 256 << 10;

/// The maximum size of a frame's content that is read, in bytes.
const MAX_FRAME_BYTES: u32 = 4 << 20;

/// The maximum number of frames in a file that is read.
const MAX_FRAMES: u32 = 16 << 20;

/// The level of compression: the library's default.
const LEVEL: i32 = 3;

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const TABLE_MAGIC: u32 = 0x8F92_EAB1;
/// Magic and length.
const HEADER_BYTES: u64 = 8;
/// Number of frames, descriptor and magic.
const FOOTER_BYTES: u64 = 9;
const ENTRY_BYTES: u64 = 8;

/// Writes frames, then the table.
pub(super) struct Writer<W> {
    sink: W,
    compressor: Compressor<'static>,
    frame: Vec<u8>,
    table: Vec<u8>,
    frames: u32,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(sink: W) -> io::Result<Self> {
        let mut compressor = Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        let frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(FRAME_BYTES));
        Ok(Self { sink, compressor, frame, table: Vec::new(), frames: 0 })
    }

    /// Appends a frame. Its content has at most [`FRAME_BYTES`].
    pub(super) fn frame(&mut self, content: &[u8]) -> io::Result<()> {
        self.frame.clear();
        let size = self.compressor.compress_to_buffer(content, &mut self.frame)?;
        self.sink.write_all(&self.frame)?;
        for size in [size, content.len()] {
            self.table.extend_from_slice(&u32::try_from(size).map_err(io::Error::other)?.to_le_bytes());
        }
        self.frames =
            self.frames.checked_add(1).filter(|frames| *frames <= MAX_FRAMES).ok_or(ErrorKind::FileTooLarge)?;
        Ok(())
    }

    /// Appends the table, and returns the sink.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let len = u32::try_from(self.table.len() as u64 + FOOTER_BYTES).map_err(io::Error::other)?;
        self.sink.write_all(&SKIPPABLE_MAGIC.to_le_bytes())?;
        self.sink.write_all(&len.to_le_bytes())?;
        self.sink.write_all(&self.table)?;
        self.sink.write_all(&self.frames.to_le_bytes())?;
        self.sink.write_all(&[0])?;
        self.sink.write_all(&TABLE_MAGIC.to_le_bytes())?;
        Ok(self.sink)
    }
}

/// A file of this format, for reading. The last frame that was read is kept.
pub(super) struct Seekable {
    file: File,
    decompressor: Decompressor<'static>,
    /// The ends of the frames in the file, and the ends of their contents.
    ends: Vec<(u64, u64)>,
    /// The frame in `content`.
    current: Option<usize>,
    content: Vec<u8>,
    compressed: Vec<u8>,
}

impl Seekable {
    /// Reads the table. Returns an error if the file has none, or does not match it.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let mut footer = [0; FOOTER_BYTES as usize];
        let footer_at = len.checked_sub(FOOTER_BYTES).ok_or(ErrorKind::UnexpectedEof)?;
        file.read_exact_at(&mut footer, footer_at)?;
        let [a, b, c, d, descriptor, magic @ ..] = footer;
        // A truncated file has no table at its end.
        if u32::from_le_bytes(magic) != TABLE_MAGIC {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let frames = u32::from_le_bytes([a, b, c, d]);
        if descriptor != 0 || frames > MAX_FRAMES {
            return Err(damaged("its table is of an unknown kind"));
        }
        let table_len = u64::from(frames) * ENTRY_BYTES;
        let frames_len = len.checked_sub(HEADER_BYTES + table_len + FOOTER_BYTES);
        let frames_len = frames_len.ok_or_else(|| damaged("its table is too long"))?;
        let mut table = vec![0; (HEADER_BYTES + table_len) as usize];
        file.read_exact_at(&mut table, frames_len)?;
        let mut words = table.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        if words.next() != Some(SKIPPABLE_MAGIC) || words.next().map(u64::from) != Some(table_len + FOOTER_BYTES) {
            return Err(damaged("its table has no beginning"));
        }
        let (mut ends, mut end) = (Vec::with_capacity(frames as usize), (0, 0));
        while let (Some(compressed), Some(size)) = (words.next(), words.next()) {
            // Whatever does not compress becomes only a little longer.
            if size > MAX_FRAME_BYTES || compressed > 2 * MAX_FRAME_BYTES {
                return Err(damaged("a frame is too long"));
            }
            end = (end.0 + u64::from(compressed), end.1 + u64::from(size));
            ends.push(end);
        }
        if end.0 != frames_len {
            return Err(damaged("its table does not match its frames"));
        }
        let decompressor = Decompressor::new()?;
        Ok(Self { file, decompressor, ends, current: None, content: Vec::new(), compressed: Vec::new() })
    }

    /// Returns the size of the content, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.ends.last().map_or(0, |(_, end)| *end)
    }

    /// Reads from the frame that has the byte at `offset`. Returns 0 at the end.
    pub(super) fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let frame = self.ends.partition_point(|(_, end)| *end <= offset);
        if frame == self.ends.len() {
            return Ok(0);
        }
        if self.current != Some(frame) {
            self.load(frame)?;
        }
        let start = self.start(frame).1;
        let rest = usize::try_from(offset - start).ok().and_then(|at| self.content.get(at..)).unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn start(&self, frame: usize) -> (u64, u64) {
        frame.checked_sub(1).map_or((0, 0), |before| self.ends[before])
    }

    fn load(&mut self, frame: usize) -> io::Result<()> {
        let ((start, content_start), (end, content_end)) = (self.start(frame), self.ends[frame]);
        self.current = None;
        self.compressed.resize(usize::try_from(end - start).map_err(io::Error::other)?, 0);
        self.file.read_exact_at(&mut self.compressed, start)?;
        let size = usize::try_from(content_end - content_start).map_err(io::Error::other)?;
        self.content.clear();
        self.content.reserve_exact(size);
        match self.decompressor.decompress_to_buffer(&self.compressed, &mut self.content) {
            Ok(len) if len == size => {}
            _ => return Err(damaged("a frame cannot be decompressed")),
        }
        self.current = Some(frame);
        Ok(())
    }
}

impl std::fmt::Debug for Seekable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seekable").field("file", &self.file).finish_non_exhaustive()
    }
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the compressed log is damaged: {why}"))
}
