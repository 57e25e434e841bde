//! The log of an attempt or of a cached step as a file: raw while it grows, compressed later.
//!
//! A log has one name, `PATH`. Its bytes are in the file `PATH`, or else in `PATH.zst`, in the [seekable
//! format](seekable) of Zstandard. Compression first puts `PATH.zst` in its place, whole and synced, and then
//! removes `PATH`. So at any time there is a complete file, and `PATH` is the valid one if it exists.
//!
//! Input: the path of a log. Output: its bytes, at any offset. The module knows neither runs nor events.

mod compress;
mod seekable;

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

pub(crate) use compress::{Compressed, compress, compress_dir, has_any_to_compress, replace};
use seekable::Seekable;

/// The minimum size of a log that is compressed, in bytes. Less gains nothing.
pub(crate) const MIN_BYTES: u64 = 64 << 10;

/// Returns the path of the compressed log at `path`.
pub(crate) fn compressed_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".zst");
    name.into()
}

/// The bytes of a log, whether or not it was compressed meanwhile.
///
/// ```no_run
/// use std::io::Read;
///
/// use hm_exec::{
///     event::{LogFile, last_log},
///     plan::StepIndex,
/// };
///
/// let mut text = Vec::new();
/// if let Some(log) = last_log("runs/2f5c3f0e", StepIndex(0))? {
///     LogFile::open(log)?.read_to_end(&mut text)?;
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct LogFile {
    content: Content,
    position: u64,
}

#[derive(Debug)]
enum Content {
    Raw(File),
    Compressed(Seekable),
}

impl LogFile {
    /// Opens the log at `path`: that file, or else its compressed form, whose name has `.zst` appended.
    ///
    /// # Errors
    /// Returns `NotFound` if there is neither, `InvalidData` or `UnexpectedEof` if the compressed form is
    /// damaged or truncated, and otherwise the error of opening the file.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let compressed = || File::open(compressed_path(path));
        let content = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => match compressed() {
                // A new raw log may have taken the compressed one's place just now.
                Err(error) if error.kind() == ErrorKind::NotFound => Content::Raw(File::open(path)?),
                file => Content::Compressed(Seekable::new(file?)?),
            },
            file => Content::Raw(file?),
        };
        Ok(Self { content, position: 0 })
    }

    /// Returns the number of bytes that the log has now.
    ///
    /// # Errors
    /// Returns an error if the file's size cannot be determined.
    pub fn size(&self) -> io::Result<u64> {
        match &self.content {
            Content::Raw(file) => Ok(file.metadata()?.len()),
            Content::Compressed(seekable) => Ok(seekable.size()),
        }
    }

    /// Reads once at `offset`; retries if interrupted. Returns 0 at the end.
    pub(crate) fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &mut self.content {
            Content::Raw(file) => loop {
                match file.read_at(buffer, offset) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    result => return result,
                }
            },
            Content::Compressed(seekable) => seekable.read_at(buffer, offset),
        }
    }
}

impl Read for LogFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for LogFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(delta) => self.size()?.checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = position.ok_or(ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests;
