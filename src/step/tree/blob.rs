//! A part of a file that is read as a stream.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

/// A part of a file.
#[derive(Debug)]
pub struct BlobFile {
    /// The file, open for reading. The handle must not be shared, because its position moves. It may be a
    /// pipe if the offset is zero.
    pub file: File,
    /// The offset of the part, in bytes.
    pub offset: u64,
    /// The length of the part, in bytes.
    pub length: u64,
}

impl BlobFile {
    /// Returns a reader of the part's bytes.
    ///
    /// # Errors
    /// Returns an error if the file cannot be positioned.
    pub fn into_reader(mut self) -> io::Result<impl Read> {
        match self.file.seek(SeekFrom::Start(self.offset)) {
            Err(error) if error.kind() == io::ErrorKind::NotSeekable && self.offset == 0 => {}
            sought => drop(sought?),
        }
        Ok(self.file.take(self.length))
    }
}
