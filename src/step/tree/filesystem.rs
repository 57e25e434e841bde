//! What only Linux has for files.

use std::{fs::File, io};

use rustix::{
    fd::BorrowedFd,
    fs::{fstatfs, ioctl_ficlone},
};

/// The types of file systems that show a machine's state rather than stored files.
const PSEUDO: [i64; 3] = [0x9fa0, 0x6265_6572, 0x1cd1];

/// Shares the data of one file with another, empty one. Returns false if that fails for any reason.
pub fn reflink(from: &File, to: &File) -> bool {
    ioctl_ficlone(to, from).is_ok()
}

/// Returns whether a directory shows the machine's state rather than stored files.
pub(super) fn is_pseudo(dir: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(PSEUDO.contains(&fstatfs(dir)?.f_type))
}
