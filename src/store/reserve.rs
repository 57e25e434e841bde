//! A few megabytes kept aside for when the disk is full: removing things takes some room, too.
//!
//! A process that can't open the store, or not collect garbage, for want of space removes the file and tries again.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::FallocateFlags;

use super::Filesystem;

const NAME: &str = "reserve";

/// Enough for the index's log of writes, and for a few directories.
const MAX_BYTES: u64 = 4 << 20;
/// If less is free, a collection may fail for want of space.
pub(super) const MIN_BYTES: u64 = 512 << 10;

/// Makes the reserve, unless it is there or the disk is nearly full.
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
        // Some filesystems can't. There a full disk is for people to mend.
        tracing::debug!(%error, path = %path.display(), "no space is reserved");
    }
}

/// Gives the reserve up. False where there is none.
pub(super) fn release(dir: &Path) -> bool {
    fs::remove_file(dir.join(NAME)).is_ok()
}
