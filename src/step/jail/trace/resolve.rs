//! Resolves a path as the kernel will, and records what that reads.
//!
//! Over 500 lines because a walk has one state, which every kind of component changes.

use std::{
    ffi::CString,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat},
    io::Errno,
};

use super::{
    super::{
        SetupError,
        error::ResultExt,
        spec::{JailSpec, TraceSpec},
    },
    caller::{Caller, Place},
    format::{Kinds, MAX_PATH_BYTES, Reason},
    records::{KnownDir, Records},
    special::{self, OfProcess, Special},
};

/// The most links that the kernel follows in a path.
const MAX_LINKS: u32 = 40;

/// The upper directories of a step, by what they are mounted on.
#[derive(Debug)]
pub(super) struct Uppers {
    uppers: Vec<Upper>,
    /// What the jail mounts: mount points that the layers lack are made in the upper directories.
    mounts: Vec<Vec<u8>>,
    /// The cache directories. What is in them is part of no result, so nothing in them is an input.
    caches: Vec<Vec<u8>>,
}

/// An upper directory.
#[derive(Debug)]
pub(super) struct Upper {
    /// The path that it is mounted on, without a slash at the end: empty for the root.
    pub(super) on: Vec<u8>,
    pub(super) dir: OwnedFd,
}

/// What an upper directory has at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InUpper {
    Nothing,
    /// A directory: merged with one below, or the step's own.
    Dir,
    /// The step's own, or copied up.
    File,
    /// The step removed it, or something above it.
    Removed,
}

impl Uppers {
    /// Opens the upper directories, which are paths of the host, and the views, which have none.
    pub(super) fn open(spec: &JailSpec, trace: &TraceSpec) -> Result<Self, SetupError> {
        let mut uppers = Vec::with_capacity(trace.uppers.len());
        for upper in &trace.uppers {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = openat(CWD, &*upper.source, flags, Mode::empty())
                .doing(|| format!("open {}", upper.source.to_string_lossy()))?;
            let on = upper.target.to_bytes();
            uppers.push(Upper { on: on.strip_suffix(b"/").unwrap_or(on).to_vec(), dir });
        }
        // The longest first: the first that fits is the innermost.
        uppers.sort_by_key(|upper| std::cmp::Reverse(upper.on.len()));
        let caches: Vec<Vec<u8>> = spec.overlays.iter().map(|it| it.target.to_bytes().to_vec()).collect();
        let binds = spec.binds.iter().map(|it| it.target.to_bytes().to_vec());
        let mounts = binds.chain(caches.iter().cloned()).collect();
        Ok(Self { uppers, mounts, caches })
    }

    /// Finds out which paths without links the cache directories have.
    pub(super) fn find_caches(&mut self) -> Result<(), Errno> {
        for path in &mut self.caches {
            let dir = openat(CWD, &path[..], OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            *path = readlinkat(CWD, format!("/proc/self/fd/{}", dir.as_raw_fd()), Vec::new())?.into_bytes();
        }
        self.mounts.extend(self.caches.iter().cloned());
        Ok(())
    }

    fn is_cache(&self, path: &[u8]) -> bool {
        self.caches.iter().any(|cache| cache == path)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Upper> {
        self.uppers.iter()
    }

    /// Returns whether a path is one that something is mounted on, or a directory on the way there.
    pub(super) fn leads_to_mount(&self, path: &[u8]) -> bool {
        let on = self.uppers.iter().map(|upper| &upper.on).chain(&self.mounts);
        on.into_iter().any(|on| on.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest[0] == b'/'))
    }

    fn find(&self, path: &[u8]) -> Result<InUpper, Errno> {
        for Upper { on, dir } in &self.uppers {
            let Some(rest) = path.strip_prefix(&on[..]) else { continue };
            let Some(rest) = rest.strip_prefix(b"/") else {
                if rest.is_empty() {
                    // The directory itself is in the upper one always.
                    return Ok(InUpper::Nothing);
                }
                continue;
            };
            return match statat(dir, rest, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Ok(kind_of(&stat)),
                Err(Errno::NOENT) => Ok(InUpper::Nothing),
                Err(Errno::NOTDIR) => Ok(InUpper::Removed),
                Err(error) => Err(error),
            };
        }
        Ok(InUpper::Nothing)
    }
}

fn kind_of(stat: &Stat) -> InUpper {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => InUpper::Dir,
        FileType::CharacterDevice if stat.st_rdev == 0 => InUpper::Removed,
        _ => InUpper::File,
    }
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Is {
    There(FileType),
    /// Nothing, in a directory that exists.
    Absent,
    /// Nothing that is an input, or nothing that can be reached.
    NoInput,
}

/// The end of a resolution.
#[derive(Debug)]
pub(super) struct Found {
    /// The path without links.
    pub(super) path: Vec<u8>,
    pub(super) is: Is,
    /// Whether the step made it, or removed it.
    pub(super) is_own: bool,
    /// The link below `/proc` that still leads to the file, if it was removed.
    pub(super) removed: Option<String>,
    /// Whether the path leads through `/proc`: then the same path leads elsewhere for another process, or
    /// later.
    pub(super) by_caller: bool,
}

impl Found {
    fn no_input() -> Self {
        Self { path: Vec::new(), is: Is::NoInput, is_own: false, removed: None, by_caller: false }
    }

    /// Returns the type of what is there.
    pub(super) fn file_type(&self) -> Option<FileType> {
        match self.is {
            Is::There(file_type) => Some(file_type),
            Is::Absent | Is::NoInput => None,
        }
    }
}

/// A path to resolve.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// The caller's root, without a slash at the end.
    pub(super) root: &'a [u8],
    /// The directory that a relative path starts in.
    pub(super) dir: &'a [u8],
    pub(super) path: &'a [u8],
    pub(super) follow: bool,
    /// Whether directories may be remembered.
    pub(super) may_remember: bool,
    /// The name of the call.
    pub(super) call: &'static str,
}

/// A resolution under way.
struct Walk<'a> {
    uppers: &'a Uppers,
    records: &'a mut Records,
    caller: &'a Caller<'a>,
    wanted: Wanted<'a>,
    /// The path so far, without links and without a slash at the end.
    at: Vec<u8>,
    /// What is left of it.
    rest: Vec<u8>,
    /// The length of the directory below which everything is the step's own.
    own_below: Option<usize>,
    links: u32,
    by_caller: bool,
}

/// How a step of a resolution went.
enum Step {
    Next,
    End(Found),
}

/// Resolves a path, and records each directory and each link on the way, and what is missing.
pub(super) fn resolve(uppers: &Uppers, records: &mut Records, caller: &Caller<'_>, wanted: Wanted<'_>) -> Found {
    // From the root, so that each directory on the way is examined; most are remembered.
    let mut rest = Vec::with_capacity(wanted.dir.len() + wanted.path.len() + 1);
    let start = if wanted.path.starts_with(b"/") { wanted.root } else { wanted.dir };
    rest.extend_from_slice(start);
    rest.push(b'/');
    rest.extend_from_slice(wanted.path);
    let mut walk =
        Walk { uppers, records, caller, wanted, at: Vec::new(), rest, own_below: None, links: 0, by_caller: false };
    loop {
        match walk.step() {
            Step::Next => {}
            Step::End(found) => return Found { by_caller: walk.by_caller, ..found },
        }
    }
}

impl Walk<'_> {
    fn step(&mut self) -> Step {
        let start = self.rest.iter().position(|byte| *byte != b'/').unwrap_or(self.rest.len());
        self.rest.drain(..start);
        if self.rest.is_empty() {
            return self.end_in_dir();
        }
        let end = self.rest.iter().position(|byte| *byte == b'/').unwrap_or(self.rest.len());
        let is_last = self.rest[end..].iter().all(|byte| *byte == b'/');
        // A slash at the end demands a directory, and has links followed.
        let wants_dir = end < self.rest.len();
        match &self.rest[..end] {
            b"." => {
                self.rest.drain(..end);
                return Step::Next;
            }
            b".." => {
                self.rest.drain(..end);
                self.leave();
                return Step::Next;
            }
            _ => {}
        }
        self.at.push(b'/');
        self.at.extend_from_slice(&self.rest[..end]);
        self.rest.drain(..end);
        if self.at.len() > MAX_PATH_BYTES {
            return Step::End(Found::no_input());
        }
        let follow = !is_last || wants_dir || self.wanted.follow;
        match special::of(&self.at) {
            None => self.enter(is_last, follow),
            Some(special) => self.enter_special(special, is_last, follow),
        }
    }

    /// Goes to the directory above, but not above the caller's root.
    fn leave(&mut self) {
        if self.at == self.wanted.root {
            return;
        }
        let end = self.at.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        self.at.truncate(end);
        self.own_below = self.own_below.filter(|length| *length <= self.at.len());
    }

    /// The path ended in a directory.
    fn end_in_dir(&mut self) -> Step {
        if self.at.is_empty() {
            self.at.push(b'/');
            self.records.add(b"/", Kinds::DIRECTORY);
        }
        if special::of(&self.at).is_some_and(|special| special::is_ignored(special, &self.at)) {
            return Step::End(Found::no_input());
        }
        self.end(Is::There(FileType::Directory), self.own_below.is_some())
    }

    fn end(&mut self, is: Is, is_own: bool) -> Step {
        Step::End(Found { path: std::mem::take(&mut self.at), is, is_own, removed: None, by_caller: false })
    }

    /// Examines a file of the step's layers.
    fn enter(&mut self, is_last: bool, follow: bool) -> Step {
        if self.wanted.may_remember
            && let Some(KnownDir { own_below }) = self.records.dir(&self.at)
        {
            if own_below && self.own_below.is_none() {
                self.own_below = Some(self.at.len());
            }
            return if is_last { self.end_in_known_dir() } else { Step::Next };
        }
        if self.own_below.is_none() && self.uppers.is_cache(&self.at) {
            self.own_below = Some(self.at.len());
        }
        let in_upper = if self.own_below.is_some() { Ok(InUpper::File) } else { self.uppers.find(&self.at) };
        let in_upper = in_upper.unwrap_or_else(|error| {
            self.unexamined(error);
            InUpper::Nothing
        });
        let is_own = in_upper != InUpper::Nothing;
        let file_type = match statat(CWD, &self.at[..], AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => {
                if !is_own {
                    self.records.add(&self.at, Kinds::ABSENT);
                }
                return if is_last { self.end(Is::Absent, is_own) } else { Step::End(Found::no_input()) };
            }
            Err(error) => {
                self.unexamined(error);
                return Step::End(Found::no_input());
            }
        };
        match file_type {
            FileType::Directory => {
                if !is_own {
                    self.records.add(&self.at, Kinds::DIRECTORY);
                } else if self.own_below.is_none() && self.records.is_own_below(&self.at) {
                    self.own_below = Some(self.at.len());
                }
                if self.wanted.may_remember {
                    let own_below = self.own_below.is_some();
                    self.records.know_dir(&self.at, KnownDir { own_below });
                }
                if is_last { self.end_in_known_dir() } else { Step::Next }
            }
            FileType::Symlink if follow => {
                if !is_own {
                    self.records.add(&self.at, Kinds::LINK);
                }
                self.follow()
            }
            _ if is_last => self.end(Is::There(file_type), is_own),
            _ => {
                // ENOTDIR is an answer, too.
                if !is_own {
                    self.records.add(&self.at, Kinds::METADATA);
                }
                Step::End(Found::no_input())
            }
        }
    }

    /// Ends in a directory. It is the step's own if everything in it is: a directory that was copied up still
    /// shows what is below.
    fn end_in_known_dir(&mut self) -> Step {
        let is_own = self.own_below.is_some();
        self.end(Is::There(FileType::Directory), is_own)
    }

    /// Replaces the link at the end of the path by its target.
    fn follow(&mut self) -> Step {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Step::End(Found::no_input());
        }
        let target = match readlinkat(CWD, &self.at[..], Vec::with_capacity(128)) {
            Ok(target) => target.into_bytes(),
            // Replaced meanwhile.
            Err(Errno::NOENT | Errno::INVAL | Errno::NOTDIR) => return Step::End(Found::no_input()),
            Err(error) => {
                self.unexamined(error);
                return Step::End(Found::no_input());
            }
        };
        let is_absolute = target.starts_with(b"/");
        self.leave();
        self.splice(&target);
        if is_absolute {
            self.restart(true);
        }
        Step::Next
    }

    fn splice(&mut self, target: &[u8]) {
        let mut rest = target.to_vec();
        rest.append(&mut self.rest);
        self.rest = rest;
    }

    /// Starts again at the root: the caller's, or the step's.
    fn restart(&mut self, at_callers: bool) {
        self.at.clear();
        self.own_below = None;
        if at_callers && !self.wanted.root.is_empty() {
            let root = [self.wanted.root, b"/"].concat();
            self.splice(&root);
        }
    }

    /// Examines a file that the kernel or the jail made.
    fn enter_special(&mut self, special: Special, is_last: bool, follow: bool) -> Step {
        self.own_below = None;
        match special {
            Special::Proc => {
                self.by_caller = true;
                if self.at == b"/proc/self" || self.at == b"/proc/thread-self" {
                    let Some(process) = self.caller.process() else { return Step::End(Found::no_input()) };
                    let is_thread = self.at.ends_with(b"thread-self");
                    let thread = if is_thread { format!("/task/{}", self.caller.call.thread) } else { String::new() };
                    self.at = format!("/proc/{process}{thread}").into_bytes();
                }
                if follow
                    && let Some(OfProcess { process, rest }) = special::of_process(&self.at)
                    && special::is_magic(rest)
                {
                    let link = format!("{process}/{rest}");
                    return self.jump(&link);
                }
            }
            Special::Dev => {
                let stat = statat(CWD, &self.at[..], AtFlags::SYMLINK_NOFOLLOW);
                let is_link = stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
                if follow && is_link {
                    return self.follow();
                }
            }
            Special::Sys | Special::Secrets => {}
        }
        if !is_last {
            return Step::Next;
        }
        if !special::is_ignored(special, &self.at) {
            let reason = match special {
                Special::Secrets => {
                    let name = self.at.strip_prefix(b"/run/secrets/").unwrap_or(&self.at);
                    Reason::Secret(name.to_vec())
                }
                Special::Proc | Special::Sys | Special::Dev => Reason::KernelFile(self.at.clone()),
            };
            self.records.reason(reason);
        }
        Step::End(Found::no_input())
    }

    /// Goes on where a link below `/proc` leads to. Its target is a path in the step's root, even if
    /// the caller has another root.
    fn jump(&mut self, link: &str) -> Step {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Step::End(Found::no_input());
        }
        match self.caller.magic(link) {
            Ok(Place::At(target)) => {
                self.splice(&target);
                self.restart(false);
                Step::Next
            }
            Ok(Place::Removed(path)) => Step::End(removed(self.records, &path, link.to_owned())),
            Ok(Place::None) => Step::End(Found::no_input()),
            Err(error) => {
                self.unexamined(error);
                Step::End(Found::no_input())
            }
        }
    }

    fn unexamined(&mut self, error: Errno) {
        let call = self.wanted.call.to_owned();
        self.records.reason(Reason::Unexamined { call, error: error.to_string() });
    }
}

/// Returns what is known of a file that had this path, and was removed. If it was the layers' own, it can
/// still be read by `link`.
pub(super) fn removed(records: &mut Records, path: &[u8], link: String) -> Found {
    if !records.get(path).is_empty() {
        records.add(path, Kinds::CONTENT.and(Kinds::METADATA));
    }
    Found { is_own: true, removed: Some(link), ..Found::no_input() }
}

/// Opens a file of the step by its path without links. Returns `None` if it is no longer a regular file.
pub(super) fn open_file(path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    // The type is checked before the file is opened, because opening a pipe waits.
    let is_file = match rustix::fs::lstat(&*path) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
        Err(Errno::NOENT | Errno::NOTDIR) => false,
        Err(error) => return Err(error),
    };
    if !is_file {
        return Ok(None);
    }
    // Never waits, also if a process of the step has a lease on the file.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(CWD, &*path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Returns whether a directory of the step is empty.
pub(super) fn is_empty_dir(path: &[u8]) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(dir) = openat(CWD, path, flags, Mode::empty()) else { return false };
    let Ok(mut entries) = Dir::new(dir) else { return false };
    entries.all(|entry| entry.is_ok_and(|entry| matches!(entry.file_name().to_bytes(), b"." | b"..")))
}
