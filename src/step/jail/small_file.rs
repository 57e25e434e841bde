//! Small files of the step, read while its jail is made.

use std::{
    ffi::CStr,
    fs::File,
    io::{self, Read},
};

use rustix::fs::{CWD, FileType, Mode, OFlags};

/// Reads a regular file of at most `max_bytes`. An image may have a FIFO, a device or a huge file at any
/// path, so those are refused, and the read never blocks.
pub(crate) fn read(path: &CStr, max_bytes: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?);
    let metadata = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(metadata.st_mode) != FileType::RegularFile {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut content = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut content)?;
    if content.len() as u64 > max_bytes { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(content) }
}
