//! A few megabytes reserved for when the disk is full, because removing files also needs some space.
//!
//! A process that cannot open the store or collect garbage for lack of space removes the file and tries
//! again.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::FallocateFlags;

use super::Filesystem;

const NAME: &str = "reserve";

/// Enough for the index's write-ahead log and for a few directories.
const MAX_BYTES: u64 = 4 << 20;
/// A collection may fail for lack of space if less than this is free.
pub(super) const MIN_BYTES: u64 = 512 << 10;

/// Creates the reserve, unless it exists or the disk is nearly full.
pub(super) fn fill(dir: &Path, filesystem: &Filesystem) {
    let bytes = (filesystem.free_bytes / 16).min(MAX_BYTES);
    if bytes < MIN_BYTES {
        return;
    }
    let path = dir.join(NAME);
    let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return,
        file => file,
    };
    let filled = file.and_then(|file| Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)?));
    if let Err(error) = filled {
        // Some filesystems do not support this. There, the user has to free space on a full disk.
        tracing::debug!(%error, path = %path.display(), "failed to reserve space");
    }
}

/// Returns how many bytes can be written without touching what removing files needs.
pub(super) fn room(filesystem: &Filesystem) -> u64 {
    filesystem.free_bytes.saturating_sub(MAX_BYTES)
}

/// Removes the reserve. Returns false if there is none.
pub(super) fn release(dir: &Path) -> bool {
    fs::remove_file(dir.join(NAME)).is_ok()
}
