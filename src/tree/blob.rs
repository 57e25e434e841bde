//! A file's part that is read as a stream.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

/// A part of a file.
#[derive(Debug)]
pub struct BlobFile {
    /// The file, open for reading, and nobody else's: its position is moved.
    pub file: File,
    /// Where the part begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

impl BlobFile {
    /// The bytes of the part.
    ///
    /// # Errors
    /// Where the file can't be positioned.
    pub fn into_reader(mut self) -> io::Result<impl Read> {
        self.file.seek(SeekFrom::Start(self.offset))?;
        Ok(self.file.take(self.length))
    }
}
