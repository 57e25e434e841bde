//! Reads one regular file at any path.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
};

/// Reads a regular file of at most `limit` bytes. Returns `None` if there is none. Never waits for a pipe or
/// a device.
pub(crate) fn read_plain(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let in_words = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file: File = match open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        file => file.map_err(|error| in_words(error.into()))?.into(),
    };
    let metadata = file.metadata().map_err(in_words)?;
    let refused = |why: &str| Err(in_words(io::Error::new(io::ErrorKind::InvalidData, why)));
    if !metadata.is_file() {
        return refused("not a regular file");
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(in_words)?;
    if bytes.len() as u64 > limit { refused("the file is too long") } else { Ok(Some(bytes)) }
}
