//! The thread that made a call: its memory, its directories and its descriptors.

use std::{ffi::CStr, os::fd::OwnedFd};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, readlinkat, statat},
    io::Errno,
};

use super::super::notify::{Notification, read_memory};

/// The longest path that the kernel takes, with the final zero byte.
const PATH_MAX: usize = 4096;
const PAGE: u64 = 4096;

/// The descriptor that stands for the working directory.
pub(super) const CWD_FD: i32 = libc::AT_FDCWD;

/// What a descriptor or a link below `/proc` leads to.
#[derive(Debug)]
pub(super) enum Place {
    /// A path.
    At(Vec<u8>),
    /// Something that had this path, and was removed.
    Removed(Vec<u8>),
    /// There is no such descriptor, or it has no path.
    None,
}

impl Place {
    /// Returns the path of what is still there.
    pub(super) fn path(self) -> Option<Vec<u8>> {
        match self {
            Self::At(path) => Some(path),
            Self::Removed(_) | Self::None => None,
        }
    }
}

/// The calling thread.
#[derive(Debug)]
pub(super) struct Caller<'a> {
    /// The step's `/proc`.
    pub(super) proc: &'a OwnedFd,
    pub(super) call: &'a Notification,
}

impl Caller<'_> {
    /// Reads a path. Returns `None` if the call will fail because there is none.
    pub(super) fn path(&self, address: u64) -> Result<Option<Vec<u8>>, Errno> {
        let mut path = Vec::new();
        let mut buffer = [0; PAGE as usize];
        let mut at = address;
        while path.len() < PATH_MAX {
            // Not beyond a page at once: the next one may not exist.
            let room = usize::try_from(PAGE - at % PAGE).unwrap_or(1).min(PATH_MAX - path.len());
            let read = match read_memory(self.call.thread, at, &mut buffer[..room]) {
                Ok(0) | Err(Errno::FAULT) => return Ok(None),
                Ok(read) => read,
                Err(error) => return Err(error),
            };
            if let Some(end) = buffer[..read].iter().position(|byte| *byte == 0) {
                path.extend_from_slice(&buffer[..end]);
                return Ok(Some(path));
            }
            path.extend_from_slice(&buffer[..read]);
            at = at.wrapping_add(read as u64);
        }
        // The kernel says ENAMETOOLONG.
        Ok(None)
    }

    /// Reads memory. Returns less than was asked for if there is no more.
    pub(super) fn bytes(&self, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        match read_memory(self.call.thread, address, &mut bytes) {
            Ok(read) => bytes.truncate(read),
            Err(Errno::FAULT) => bytes.clear(),
            Err(error) => return Err(error),
        }
        Ok(bytes)
    }

    /// Returns the path of a descriptor, or of the working directory.
    pub(super) fn place(&self, fd: i32) -> Result<Place, Errno> {
        self.magic(&self.link(fd))
    }

    /// Returns the link below `/proc` that leads to a descriptor's file, or to the working directory.
    pub(super) fn link(&self, fd: i32) -> String {
        let thread = self.call.thread;
        if fd == CWD_FD { format!("{thread}/cwd") } else { format!("{thread}/fd/{fd}") }
    }

    /// Opens the file that a link below `/proc` leads to, if it is a regular one.
    pub(super) fn open(&self, link: &str) -> Result<Option<OwnedFd>, Errno> {
        let stat = match statat(self.proc, link, AtFlags::empty()) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        openat(self.proc, link, flags, Mode::empty()).map(Some)
    }

    /// Returns the caller's root.
    pub(super) fn root(&self) -> Result<Vec<u8>, Errno> {
        match self.magic(&format!("{}/root", self.call.thread))? {
            Place::At(root) => Ok(root),
            // The root was removed, or the caller is dead.
            Place::Removed(_) | Place::None => Err(Errno::NOENT),
        }
    }

    /// Returns what a link below `/proc` leads to.
    pub(super) fn magic(&self, link: &str) -> Result<Place, Errno> {
        const REMOVED: &[u8] = b" (deleted)";
        let target = match readlinkat(self.proc, link, Vec::with_capacity(256)) {
            Ok(target) => target.into_bytes(),
            Err(Errno::NOENT | Errno::SRCH | Errno::BADF) => return Ok(Place::None),
            Err(error) => return Err(error),
        };
        if target.first() != Some(&b'/') {
            return Ok(Place::None);
        }
        // A file may have this name, too.
        match target.strip_suffix(REMOVED) {
            Some(path) if rustix::fs::lstat(&target[..]).is_err() => Ok(Place::Removed(path.to_vec())),
            _ => Ok(Place::At(target)),
        }
    }

    /// Returns the id of the caller's process.
    pub(super) fn process(&self) -> Option<u32> {
        let status = self.small_file(&format!("{}/status", self.call.thread))?;
        let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
        line.trim().parse().ok()
    }

    fn small_file(&self, path: &str) -> Option<String> {
        small_file(self.proc, path)
    }
}

/// Returns whether a thread has certainly returned from the call with this number.
pub(super) fn has_returned(proc: &OwnedFd, thread: u32, number: i32) -> bool {
    match small_file(proc, &format!("{thread}/syscall")) {
        // `running` may mean: in the call.
        Some(text) => {
            let first = text.split_ascii_whitespace().next().unwrap_or_default();
            first.parse::<i64>().is_ok_and(|now| now != i64::from(number))
        }
        None => {
            matches!(statat(proc, format!("{thread}"), AtFlags::empty()), Err(Errno::NOENT))
        }
    }
}

fn small_file(proc: &OwnedFd, path: &str) -> Option<String> {
    let file = openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut buffer = [0; 4096];
    let read = rustix::io::read(&file, &mut buffer[..]).ok()?;
    Some(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

/// Opens the step's `/proc`.
pub(super) fn open_proc() -> Result<OwnedFd, Errno> {
    const PROC: &CStr = c"/proc";
    openat(CWD, PROC, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
