//! Overlayfs' marks by path, as the store makes and checks them.

use std::{
    fs::Metadata,
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use rustix::fs::{self, FileType, Mode};

use super::at::{is_opaque, open_dir};

/// Makes a whiteout, which hides lower layers' content at its path. Ordinary users may do this on Linux 5.8
/// and later.
///
/// # Errors
/// Returns an error if the node cannot be made.
pub fn whiteout(path: &Path) -> io::Result<()> {
    Ok(fs::mknodat(fs::CWD, path, FileType::CharacterDevice, Mode::empty(), 0)?)
}

/// Returns whether a file is a whiteout, by its metadata from `symlink_metadata`.
pub fn is_whiteout_at(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

/// Returns whether a directory is opaque: it hides the content of lower layers.
///
/// # Errors
/// Returns an error if the directory or its attributes cannot be read.
pub fn is_opaque_at(path: &Path) -> io::Result<bool> {
    is_opaque(open_dir(path)?)
}
