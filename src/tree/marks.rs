//! Overlayfs' marks by path, as the store makes them and looks for them.

use std::{
    fs::Metadata,
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use rustix::fs::{self, FileType, Mode};

use super::at::{is_opaque, open_dir};

/// Makes an entry that hides what lower layers have there. Ordinary users may, from Linux 5.8 on.
pub(crate) fn whiteout(path: &Path) -> io::Result<()> {
    Ok(fs::mknodat(fs::CWD, path, FileType::CharacterDevice, Mode::empty(), 0)?)
}

/// [`is_whiteout`] of what `symlink_metadata` tells.
pub(crate) fn is_whiteout_at(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

/// [`is_opaque`] by path.
pub(crate) fn is_opaque_at(path: &Path) -> io::Result<bool> {
    is_opaque(open_dir(path)?)
}
