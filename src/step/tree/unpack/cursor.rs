//! The path to a directory below the root of a layer, through links but never out of the root.
//!
//! Each directory is opened from the one before, without following links. If a part is a link, it is read,
//! and its target replaces it in the path. `..` in a target leads to the directory that was opened before,
//! and stays at the root: the kernel is never asked to follow a link or `..`. `openat2` with
//! `RESOLVE_IN_ROOT` reaches the same directory, but it does not return the path, which is needed to set the
//! directories' attributes in the end, and it makes no directories on the way.

use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{self, Mode},
    io::Errno,
};

use super::{
    super::at::open_dir_at,
    error::{Fault, ResultExt},
};

/// The maximum length of a path, in bytes, as in the kernel.
const MAX_PATH_BYTES: usize = 4096;
/// The maximum number of links, as in the kernel.
const MAX_LINKS: usize = 40;
/// The number of directories that are held open. If the path is longer, only its last directory is held open
/// in addition.
const HELD_OPEN: usize = 64;

/// The directory that was entered last, and those that lead to it. None of their names is a link.
pub(super) struct DirCursor {
    root: OwnedFd,
    levels: Vec<Level>,
}

struct Level {
    name: Vec<u8>,
    /// Always present in the first [`HELD_OPEN`] levels and in the last one.
    dir: Option<OwnedFd>,
}

impl DirCursor {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, levels: Vec::new() }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Returns the directory that was entered last.
    pub(super) fn here(&self) -> BorrowedFd<'_> {
        self.levels.last().and_then(|level| level.dir.as_ref()).unwrap_or(&self.root).as_fd()
    }

    /// Returns the name of the root's directory that contains the current one.
    pub(super) fn top(&self) -> Option<&[u8]> {
        self.levels.first().map(|level| &level.name[..])
    }

    /// Returns the path of an entry of the current directory.
    pub(super) fn path_of(&self, name: &OsStr) -> Vec<u8> {
        let names = self.levels.iter().map(|level| &level.name[..]).chain([name.as_bytes()]);
        names.collect::<Vec<_>>().join(&b'/')
    }

    /// Makes a directory in the current one, which only its owner may access.
    pub(super) fn make_dir(&self, name: &OsStr) -> Result<(), Fault> {
        let bytes: usize = self.levels.iter().map(|level| level.name.len() + 1).sum();
        if bytes + name.len() > MAX_PATH_BYTES {
            return Err(Fault::refused(format!("its directory has a path of more than {MAX_PATH_BYTES} bytes")));
        }
        fs::mkdirat(self.here(), name, Mode::RWXU).doing("make the directory")
    }

    /// Enters the directory at `parts` below the root. `missing` is called for each missing directory, in its
    /// parent: it makes the directory, or returns false. Then `enter` stops and returns false.
    pub(super) fn enter(
        &mut self,
        parts: &[&[u8]],
        mut missing: impl FnMut(&Self, &OsStr) -> Result<bool, Fault>,
    ) -> Result<bool, Fault> {
        let common = self.levels.iter().zip(parts).take_while(|(level, part)| level.name == **part).count();
        self.go_up(common)?;
        // In reverse order: the next part is the last element.
        let mut rest: Vec<Vec<u8>> = parts[common..].iter().rev().map(|part| part.to_vec()).collect();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == b".." {
                self.go_up(self.levels.len().saturating_sub(1))?;
                continue;
            }
            let name = OsStr::from_bytes(&part);
            let opened = match open_dir_at(self.here(), name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if !missing(self, name)? {
                        return Ok(false);
                    }
                    open_dir_at(self.here(), name)
                }
                opened => opened,
            };
            match opened.map_err(|error| (Errno::from_io_error(&error), error)) {
                Ok(dir) => self.go_down(part, dir),
                Err((Some(Errno::LOOP | Errno::NOTDIR), _)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Fault::refused("it is behind a loop of symbolic links"));
                    }
                    self.follow(name, &mut rest)?;
                }
                Err((_, error)) => return Err(Fault::Io("open the directory of", error)),
            }
        }
        Ok(true)
    }

    /// Replaces the link `name` in the path by its target.
    fn follow(&mut self, name: &OsStr, rest: &mut Vec<Vec<u8>>) -> Result<(), Fault> {
        let target = match fs::readlinkat(self.here(), name, Vec::new()) {
            Ok(target) => target.into_bytes(),
            Err(Errno::INVAL) => {
                return Err(Fault::refused("its parent was made a file, or removed, by an earlier entry"));
            }
            Err(error) => return Err(error).doing("read the link before"),
        };
        if target.starts_with(b"/") {
            self.go_up(0)?;
        }
        let names = target.split(|byte| *byte == b'/').rev().filter(|name| !matches!(*name, b"" | b"."));
        rest.extend(names.map(<[u8]>::to_vec));
        Ok(())
    }

    fn go_down(&mut self, name: Vec<u8>, dir: OwnedFd) {
        if self.levels.len() > HELD_OPEN
            && let Some(last) = self.levels.last_mut()
        {
            last.dir = None;
        }
        self.levels.push(Level { name, dir: Some(dir) });
    }

    /// Leaves all directories except for the first `count`.
    fn go_up(&mut self, count: usize) -> Result<(), Fault> {
        self.levels.truncate(count);
        if self.levels.last().is_none_or(|level| level.dir.is_some()) {
            return Ok(());
        }
        let held = self.levels.iter().take_while(|level| level.dir.is_some()).count();
        let closed = self.levels.split_off(held);
        for level in closed {
            let dir = open_dir_at(self.here(), OsStr::from_bytes(&level.name)).doing("open the directory of")?;
            self.go_down(level.name, dir);
        }
        Ok(())
    }
}

/// Splits a name into its parts. Slashes at its beginning and end are ignored, and so are `.` parts. `..`
/// removes the part before it, whether or not that is a link, as docker does.
pub(super) fn parts(path: &[u8]) -> Result<Vec<&[u8]>, Fault> {
    if path.len() > MAX_PATH_BYTES {
        return Err(Fault::refused(format!("its name has {} bytes", path.len())));
    }
    if path.contains(&0) {
        return Err(Fault::refused("its name contains a NUL byte"));
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop().ok_or_else(|| Fault::refused("its name leads out of the image"))?),
            part => parts.push(part),
        }
    }
    Ok(parts)
}
