//! Reads a journal's frames, whole or not at all. The module does not interpret their content.

use std::{fs::File, io, path::PathBuf};

use super::{
    logs::read_at,
    record::{FRAME_HEADER_BYTES, MAX_RECORD_BYTES},
};

/// The number of bytes of a journal that are read at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// The reason why a journal cannot be read, or cannot be read further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The journal, or a part of it, cannot be read.
    #[error("failed to read the journal {}", path.display())]
    Io {
        /// The journal.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file does not begin with a journal's magic.
    #[error("{} is not a journal of a run", path.display())]
    NotAJournal {
        /// The file.
        path: PathBuf,
    },
    /// A newer version of this program wrote the journal.
    #[error("the journal has format version {found}, but this program supports versions up to {supported}: upgrade it")]
    UnsupportedVersion {
        /// The journal's version.
        found: u32,
        /// The highest version that this program reads.
        supported: u32,
    },
    /// The journal ends inside a frame: its writer was killed or its disk was full. Every record before the
    /// frame was returned.
    #[error("the journal is truncated in the record at byte {offset}")]
    Truncated {
        /// The offset of the frame, in bytes.
        offset: u64,
    },
    /// The journal's bytes are not the bytes that were written. Every record before the frame was returned.
    #[error("the journal is damaged at byte {offset}: {reason}")]
    Corrupt {
        /// The offset of the frame, in bytes.
        offset: u64,
        /// The problem.
        reason: &'static str,
    },
}

/// Reads frames one after another, in chunks.
#[derive(Debug)]
pub(super) struct Frames {
    path: PathBuf,
    /// A chunk, or more if a frame is longer.
    buffer: Vec<u8>,
    /// The position of the next frame in `buffer`.
    next: usize,
    /// The position of `buffer` in the file.
    base: u64,
}

impl Frames {
    /// Returns a reader that starts at the frame at `offset`. `path` is for messages.
    pub(super) fn new(path: PathBuf, offset: u64) -> Self {
        Self { path, buffer: Vec::new(), next: 0, base: offset }
    }

    /// Returns the offset of the next frame, in bytes.
    pub(super) fn offset(&self) -> u64 {
        self.base + self.next as u64
    }

    /// Returns the next frame's payload in the first `limit` bytes of `file`, or `None` if they end with the
    /// last frame.
    pub(super) fn next(&mut self, file: &File, limit: u64) -> Result<Option<&[u8]>, JournalError> {
        let offset = self.offset();
        if self.ready() < FRAME_HEADER_BYTES && !self.fill(file, limit, FRAME_HEADER_BYTES)? {
            return if self.ready() == 0 { Ok(None) } else { Err(JournalError::Truncated { offset }) };
        }
        let (len, crc) = frame_header(&self.buffer[self.next..]);
        if len > MAX_RECORD_BYTES {
            return Err(JournalError::Corrupt { offset, reason: "a record is too long" });
        }
        let needed = FRAME_HEADER_BYTES + len;
        if self.ready() < needed && !self.fill(file, limit, needed)? {
            return Err(JournalError::Truncated { offset });
        }
        let start = self.next + FRAME_HEADER_BYTES;
        let payload = &self.buffer[start..start + len];
        if crc32fast::hash(payload) != crc {
            return Err(JournalError::Corrupt { offset, reason: "a record's checksum is wrong" });
        }
        self.next = start + len;
        Ok(Some(payload))
    }

    fn ready(&self) -> usize {
        self.buffer.len() - self.next
    }

    /// Reads until `needed` bytes are ready; returns whether they are.
    fn fill(&mut self, file: &File, limit: u64, needed: usize) -> Result<bool, JournalError> {
        self.base = self.offset();
        self.buffer.drain(..std::mem::take(&mut self.next));
        while self.buffer.len() < needed {
            let have = self.buffer.len();
            let at = self.base + have as u64;
            let there = usize::try_from(limit.saturating_sub(at)).unwrap_or(usize::MAX);
            self.buffer.resize(have + there.min(CHUNK_BYTES), 0);
            let read = read_at(file, &mut self.buffer[have..], at);
            self.buffer.truncate(have + *read.as_ref().unwrap_or(&0));
            if read.map_err(|source| JournalError::Io { path: self.path.clone(), source })? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Returns a frame's length and checksum. `bytes` has at least [`FRAME_HEADER_BYTES`].
pub(super) fn frame_header(bytes: &[u8]) -> (usize, u32) {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (word(0) as usize, word(4))
}
