//! Hard links within a copy of a tree.

use std::{
    collections::HashMap,
    ffi::{CStr, OsStr},
    io,
    os::unix::ffi::OsStrExt,
};

use rustix::{
    fd::{BorrowedFd, OwnedFd},
    fs::{self, AtFlags, Dev, Stat},
    io::Errno,
};

use super::at::join;

/// The files of a copy that have several names.
pub(super) struct HardLinks {
    /// The root of the copy.
    root: OwnedFd,
    /// The first name of each file in the copy, by the device and inode of the original.
    first: HashMap<(Dev, u64), Vec<u8>>,
}

/// What became of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Linked {
    /// It is a name of a file that was copied before.
    Done,
    /// It is the first name of its file, which must be copied.
    First,
    /// Its file was copied before, and the filesystem gives it no further name.
    Refused,
}

impl HardLinks {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, first: HashMap::new() }
    }

    /// Makes `name` in `dir` a link if its file was copied before. `parent` is the path of `dir` in the copy.
    pub(super) fn link(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat, parent: &[u8]) -> io::Result<Linked> {
        if stat.st_nlink <= 1 {
            return Ok(Linked::First);
        }
        let identity = (stat.st_dev, stat.st_ino);
        let linked = match self.first.get(&identity) {
            None => Linked::First,
            Some(first) => match fs::linkat(&self.root, OsStr::from_bytes(first), dir, name, AtFlags::empty()) {
                Ok(()) => return Ok(Linked::Done),
                Err(Errno::MLINK | Errno::NAMETOOLONG) => Linked::Refused,
                Err(error) => return Err(error.into()),
            },
        };
        self.first.insert(identity, join(parent, name.to_bytes()));
        Ok(linked)
    }
}
