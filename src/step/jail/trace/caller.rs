//! The thread that made a call: its memory, its directories and its descriptors.

use std::{ffi::CStr, os::fd::OwnedFd};

use rustix::{
    fs::{CWD, Mode, OFlags, openat, readlinkat},
    io::Errno,
};

use super::super::notify::{Notification, read_memory};

/// The longest path that the kernel takes, with the final zero byte.
const PATH_MAX: usize = 4096;
const PAGE: u64 = 4096;

/// The descriptor that stands for the working directory.
pub(super) const CWD_FD: i32 = libc::AT_FDCWD;

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

    /// Returns the path of a descriptor, or of the working directory. Returns `None` if there is no such
    /// descriptor, or what it refers to has no path.
    pub(super) fn place(&self, fd: i32) -> Result<Option<Vec<u8>>, Errno> {
        let thread = self.call.thread;
        let link = if fd == CWD_FD { format!("{thread}/cwd") } else { format!("{thread}/fd/{fd}") };
        self.magic(&link)
    }

    /// Returns the caller's root.
    pub(super) fn root(&self) -> Result<Option<Vec<u8>>, Errno> {
        self.magic(&format!("{}/root", self.call.thread))
    }

    /// Returns what a link below `/proc` leads to, if that has a path.
    pub(super) fn magic(&self, link: &str) -> Result<Option<Vec<u8>>, Errno> {
        let target = match readlinkat(self.proc, link, Vec::with_capacity(256)) {
            Ok(target) => target.into_bytes(),
            Err(Errno::NOENT | Errno::SRCH | Errno::BADF) => return Ok(None),
            Err(error) => return Err(error),
        };
        if target.first() != Some(&b'/') {
            return Ok(None);
        }
        // A file may have this name, too.
        let is_gone = target.ends_with(b" (deleted)") && rustix::fs::lstat(&target[..]).is_err();
        Ok((!is_gone).then_some(target))
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
            matches!(rustix::fs::statat(proc, format!("{thread}"), rustix::fs::AtFlags::empty()), Err(Errno::NOENT))
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
