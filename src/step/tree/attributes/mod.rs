//! The modes and times of a source tree, as a list that travels beside the tree.
//!
//! Engines make the tree from digests: with modes of their own, with the times at which they made it, and
//! with files that other actions share, so that nothing of it can be changed in place. [`encode`] writes the
//! list. [`restore`] compares the tree with it, and makes a layer that lies over the tree and corrects what
//! differs.
//!
//! ```text
//! header     a line with the format's version
//! entries    compressed by zstd: u32 mode with the type, i64 + u32 time of modification, u32 length of
//!            the path, the path. Little-endian. A directory comes before its entries; the root has no path.
//! ```

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io::{self, BufReader, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
};

use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{self, AtFlags, FileType, Mode, OFlags, Stat},
};

use super::{
    at::{mtime, open_below, open_dir_at, stat_at},
    copy::copy_data,
};

const HEADER: &[u8] = b"hm-exec attributes 1\n";
/// The longest path in a list.
const MAX_PATH_BYTES: usize = 1 << 20;
const PERMISSIONS: u32 = 0o7777;

/// The attributes of one entry of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryAttributes<'a> {
    /// The path below the root of the tree.
    pub path: &'a [u8],
    /// The type: a directory, a regular file, or a symbolic link.
    pub kind: FileType,
    /// The permission bits, which count for directories and files.
    pub mode: u32,
    /// The time of modification: seconds since the Unix epoch, and nanoseconds.
    pub mtime: (i64, u32),
}

/// Writes a list. A directory must come before its entries.
///
/// # Errors
/// Returns an error if compressing fails.
pub fn encode<'a>(entries: impl IntoIterator<Item = EntryAttributes<'a>>) -> io::Result<Vec<u8>> {
    let mut out = zstd::Encoder::new(HEADER.to_vec(), 3)?;
    for entry in entries {
        let length = u32::try_from(entry.path.len()).map_err(|_| invalid("a path is too long"))?;
        out.write_all(&(entry.kind.as_raw_mode() | entry.mode & PERMISSIONS).to_le_bytes())?;
        out.write_all(&entry.mtime.0.to_le_bytes())?;
        out.write_all(&entry.mtime.1.to_le_bytes())?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(entry.path)?;
    }
    out.finish()
}

/// Makes a layer in the empty directory `to` that gives the entries of the tree `from` the attributes of
/// `list`, if it lies over the tree. Entries that have them already are not part of it. Returns whether it
/// corrects anything. The tree is not changed.
///
/// # Errors
/// Returns an error if the list is invalid, if the tree lacks an entry of the list, or if copying fails.
pub fn restore(list: impl Read, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
    let mut list = BufReader::new(list);
    let mut header = vec![0; HEADER.len()];
    list.read_exact(&mut header)?;
    if header != HEADER {
        return Err(invalid("the list of attributes has another format"));
    }
    let mut list = Records { list: BufReader::new(zstd::Decoder::with_buffer(list)?), path: Vec::new() };
    let (from, to) = (open_dir_at(from, ".")?, open_dir_at(to, ".")?);
    let mut layer = CorrectingLayer { from, to, dirs: Vec::new(), known: HashMap::new(), here: None };
    while let Some(entry) = list.next()? {
        layer.correct(entry)?;
    }
    layer.finish()
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// The entries of a list.
struct Records<R> {
    list: R,
    path: Vec<u8>,
}

impl<R: Read> Records<R> {
    fn next(&mut self) -> io::Result<Option<EntryAttributes<'_>>> {
        let mut fixed = [0; 20];
        let first = loop {
            match self.list.read(&mut fixed) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                first => break first?,
            }
        };
        if first == 0 {
            return Ok(None);
        }
        self.list.read_exact(&mut fixed[first..])?;
        let u32_at = |at: usize| fixed[at..at + 4].iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
        let (mode, seconds) = (u32_at(0), i64::from(u32_at(4)) | i64::from(u32_at(8)) << 32);
        let length = usize::try_from(u32_at(16)).unwrap_or(usize::MAX);
        if length > MAX_PATH_BYTES {
            return Err(invalid("a path in the list of attributes is too long"));
        }
        self.path.resize(length, 0);
        self.list.read_exact(&mut self.path)?;
        let (kind, nanoseconds) = (FileType::from_raw_mode(mode), u32_at(12).min(999_999_999));
        Ok(Some(EntryAttributes { path: &self.path, kind, mode: mode & PERMISSIONS, mtime: (seconds, nanoseconds) }))
    }
}

/// A directory of the list.
struct ListedDir {
    path: Vec<u8>,
    mode: u32,
    mtime: (i64, u32),
    /// Whether the layer has it.
    is_made: bool,
}

/// A layer under construction.
struct CorrectingLayer {
    from: OwnedFd,
    to: OwnedFd,
    dirs: Vec<ListedDir>,
    /// The indices of directories by path.
    known: HashMap<Vec<u8>, usize>,
    /// The directory of the last entry, in the tree and in the layer.
    here: Option<Here>,
}

struct Here {
    dir: usize,
    from: OwnedFd,
    to: Option<OwnedFd>,
}

impl CorrectingLayer {
    fn correct(&mut self, entry: EntryAttributes<'_>) -> io::Result<()> {
        if entry.path.is_empty() && self.dirs.is_empty() && entry.kind == FileType::Directory {
            let stat = fs::fstat(&self.from)?;
            self.add_dir(entry, has(&stat, &entry))?;
            return Ok(());
        }
        let (parent, name) = split(entry.path);
        let is_name = !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
        let parent = self.known.get(parent).copied().filter(|_| is_name);
        // Only listed directories are entered, so no symbolic link of the tree is followed.
        let parent = parent.ok_or_else(|| invalid("the list of attributes has an entry without its directory"))?;
        let from = self.enter(parent)?;
        let stat = stat_at(from, OsStr::from_bytes(name))?;
        let kind = stat.as_ref().map(|stat| FileType::from_raw_mode(stat.st_mode));
        let Some(stat) = stat.filter(|_| kind == Some(entry.kind)) else {
            let what = String::from_utf8_lossy(entry.path);
            return Err(invalid(&format!("`{}` of the source is missing, or of another type", what.escape_debug())));
        };
        let is_same = has(&stat, &entry);
        match entry.kind {
            FileType::Directory => self.add_dir(entry, is_same),
            _ if is_same => Ok(()),
            FileType::RegularFile => {
                let from = fs::openat(self.enter(parent)?, OsStr::from_bytes(name), READ, Mode::empty())?;
                let to = self.enter_layer(parent)?;
                let to = File::from(fs::openat(to, OsStr::from_bytes(name), CREATE, Mode::RUSR | Mode::WUSR)?);
                copy_data(&File::from(from), &to)?;
                fs::fchmod(&to, Mode::from_raw_mode(entry.mode))?;
                Ok(fs::futimens(&to, &mtime(entry.mtime.0, entry.mtime.1.into()))?)
            }
            FileType::Symlink => {
                let name = OsStr::from_bytes(name);
                let target = fs::readlinkat(self.enter(parent)?, name, Vec::new())?;
                let to = self.enter_layer(parent)?;
                fs::symlinkat(target, to, name)?;
                let times = mtime(entry.mtime.0, entry.mtime.1.into());
                Ok(fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
            }
            _ => Err(invalid("the list of attributes has an entry of another type")),
        }
    }

    fn add_dir(&mut self, entry: EntryAttributes<'_>, is_same: bool) -> io::Result<()> {
        let index = self.dirs.len();
        let EntryAttributes { path, mode, mtime, .. } = entry;
        // The root of the layer exists.
        self.dirs.push(ListedDir { path: path.to_vec(), mode, mtime, is_made: false });
        if self.known.insert(path.to_vec(), index).is_some() {
            return Err(invalid("the list of attributes has a directory twice"));
        }
        if is_same { Ok(()) } else { self.make(index) }
    }

    /// Creates a directory in the layer, and those above it.
    fn make(&mut self, index: usize) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut next = Some(index);
        while let Some(index) = next.filter(|index| !self.dirs[*index].is_made) {
            missing.push(index);
            let path = &self.dirs[index].path;
            next = (!path.is_empty()).then(|| self.known.get(split(path).0).copied()).flatten();
        }
        for index in missing.into_iter().rev() {
            let path = &self.dirs[index].path;
            if !path.is_empty() {
                let (parent, name) = split(path);
                let parent = open_below(self.to.as_fd(), parent)?;
                fs::mkdirat(parent, OsStr::from_bytes(name), Mode::RWXU)?;
            }
            self.dirs[index].is_made = true;
        }
        Ok(())
    }

    /// Opens a directory of the tree, unless it is open.
    fn enter(&mut self, dir: usize) -> io::Result<BorrowedFd<'_>> {
        let here = match self.here.take().filter(|here| here.dir == dir) {
            Some(here) => here,
            None => Here { dir, from: open_below(self.from.as_fd(), &self.dirs[dir].path)?, to: None },
        };
        Ok(self.here.insert(here).from.as_fd())
    }

    /// Opens the directory in the layer, which is created if it does not exist.
    fn enter_layer(&mut self, dir: usize) -> io::Result<BorrowedFd<'_>> {
        self.make(dir)?;
        self.enter(dir)?;
        let Some(here) = &mut self.here else { return Err(io::Error::other("no directory is open")) };
        let to = match here.to.take() {
            Some(to) => to,
            None => open_below(self.to.as_fd(), &self.dirs[dir].path)?,
        };
        let to: &OwnedFd = here.to.insert(to);
        Ok(to.as_fd())
    }

    /// Sets the attributes of the layer's directories, innermost first: creating an entry changes the time of
    /// its directory, and some modes permit no creation.
    fn finish(self) -> io::Result<bool> {
        let mut corrects = false;
        for dir in self.dirs.iter().rev().filter(|dir| dir.is_made) {
            corrects = true;
            let made = open_below(self.to.as_fd(), &dir.path)?;
            fs::fchmod(&made, Mode::from_raw_mode(dir.mode))?;
            fs::futimens(&made, &mtime(dir.mtime.0, dir.mtime.1.into()))?;
        }
        Ok(corrects)
    }
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const CREATE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Returns the parent of a path, and its last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// Returns whether a file has the attributes.
#[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
fn has(stat: &Stat, entry: &EntryAttributes<'_>) -> bool {
    let has_mode = entry.kind == FileType::Symlink || stat.st_mode as u32 & PERMISSIONS == entry.mode;
    has_mode && (stat.st_mtime as i64, stat.st_mtime_nsec as i64) == (entry.mtime.0, entry.mtime.1.into())
}

#[cfg(test)]
mod tests;
