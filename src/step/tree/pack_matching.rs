//! Writes the regular files of a tree that match patterns as a tar stream.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

use rustix::{
    fd::BorrowedFd,
    fs::{self, FileType, Mode, OFlags, Stat},
};
use tar::{Builder, EntryType, Header};

use super::{
    at::{join, open_dir, stat_at},
    descent::Descent,
    filesystem::is_pseudo,
    matching::{PathPatterns, PathState},
    pack::long_text,
};

/// The type of an entry that names a file which was left out. It has no content.
pub const LEFT_OUT: u8 = b'Z';

/// How much is written at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "every user sets all of it")]
pub struct PackLimits {
    /// The most files. The first that exceeds it is named as left out, and ends the stream.
    pub files: u32,
    /// The most bytes of all files together.
    pub bytes: u64,
}

/// The most names that are looked at. They are in memory until their directories have been visited.
const MOST_ENTRIES: usize = 1_000_000;

/// What to do in a directory.
#[derive(Debug, Clone)]
enum Within {
    /// Take everything.
    All,
    /// Take what matches. Most directories have the state of their parent, or of a sibling.
    Matching(Arc<PathState>),
}

/// Writes the regular files below `root` that `patterns` match to `out` as a GNU tar stream, with their paths
/// below `root`. A directory that matches is written with everything in it. Links are not followed, and only
/// regular files are written, so a FIFO or a device is never opened for longer than it takes to see what it
/// is. Files that cannot be read, or exceed the limits, are named by entries of the type [`LEFT_OUT`].
///
/// # Errors
/// Returns an error if the stream cannot be written, or if a directory changes meanwhile.
pub fn pack_matching(root: &Path, patterns: &PathPatterns, limits: PackLimits, out: impl Write) -> io::Result<()> {
    let mut packer = Packer { tar: Builder::new(out), patterns, limits, names: MOST_ENTRIES, is_full: false };
    let mut walk = Descent::new(open_dir(root)?);
    let mut work: Vec<Option<(CString, Within)>> = Vec::new();
    packer.content(&walk, &Within::Matching(Arc::new(patterns.top())), &mut work)?;
    while let Some(next) = work.pop().filter(|_| !packer.is_full) {
        match next {
            None => drop(walk.leave()?),
            // A directory that cannot be entered has nothing to write.
            Some((name, within)) => {
                if walk.enter(&name).is_ok() {
                    work.push(None);
                    packer.content(&walk, &within, &mut work)?;
                }
            }
        }
    }
    packer.tar.into_inner()?.flush()
}

/// Returns the state of a directory, which is often that of its parent or of the directory before it.
fn shared(state: PathState, parent: &Arc<PathState>, last: &mut Option<Arc<PathState>>) -> Arc<PathState> {
    if state == **parent {
        return Arc::clone(parent);
    }
    match last {
        Some(last) if **last == state => Arc::clone(last),
        last => Arc::clone(last.insert(Arc::new(state))),
    }
}

struct Packer<'a, W: Write> {
    tar: Builder<W>,
    patterns: &'a PathPatterns,
    limits: PackLimits,
    /// How many names may still be looked at.
    names: usize,
    /// Whether there are more files or names than the limit.
    is_full: bool,
}

impl<W: Write> Packer<'_, W> {
    /// Writes the files of the current directory, and adds its directories to the work, the first one last.
    fn content(
        &mut self,
        walk: &Descent,
        within: &Within,
        work: &mut Vec<Option<(CString, Within)>>,
    ) -> io::Result<()> {
        let dir = walk.dir();
        if is_pseudo(dir)? {
            return Ok(());
        }
        let Ok(found) = self.list(dir) else { return Ok(()) };
        let Some(mut found) = found else {
            self.is_full = true;
            return self.entry(walk.path(), EntryType::new(LEFT_OUT), (0, 0), io::empty());
        };
        found.sort_unstable_by(|a, b| b.cmp(a));
        let mut files = Vec::new();
        let mut last = None;
        for entry in found {
            let (is_match, below) = match within {
                Within::All => (true, Some(Within::All)),
                // Patterns are text.
                Within::Matching(state) => match entry.to_str() {
                    Err(_) => continue,
                    Ok(name) => {
                        let found = self.patterns.entry(state, name);
                        let below = found.below.map(|below| Within::Matching(shared(below, state, &mut last)));
                        (found.is_match, if found.is_match { Some(Within::All) } else { below })
                    }
                },
            };
            let Ok(Some(stat)) = stat_at(dir, &entry) else { continue };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => work.extend(below.map(|below| Some((entry, below)))),
                FileType::RegularFile if is_match => files.push((entry, stat)),
                _ => {}
            }
        }
        for (entry, stat) in files.into_iter().rev() {
            self.file(dir, &entry, &stat, &join(walk.path(), entry.to_bytes()))?;
            if self.is_full {
                break;
            }
        }
        Ok(())
    }

    /// Returns the names in a directory, or `None` if there are more than may be looked at. The memory for
    /// them is not limited by anything else.
    fn list(&mut self, dir: BorrowedFd<'_>) -> io::Result<Option<Vec<CString>>> {
        let mut found = Vec::new();
        for entry in fs::Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Some(names) = self.names.checked_sub(1) else { return Ok(None) };
            self.names = names;
            found.push(name.to_owned());
        }
        Ok(Some(found))
    }

    fn file(&mut self, dir: BorrowedFd<'_>, entry: &CString, stat: &Stat, name: &[u8]) -> io::Result<()> {
        let left_out = EntryType::new(LEFT_OUT);
        let Some(files) = self.limits.files.checked_sub(1) else {
            self.is_full = true;
            return self.entry(name, left_out, (stat.st_mode, 0), io::empty());
        };
        self.limits.files = files;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = fs::openat(dir, entry.as_c_str(), flags, Mode::empty()).ok();
        // Another process may have put something else there since it was listed.
        let opened = opened.and_then(|file| Some((fs::fstat(&file).ok()?, file)));
        let opened = opened.filter(|(stat, _)| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        let size = opened.as_ref().map_or(0, |(stat, _)| stat.st_size.cast_unsigned());
        match (opened, self.limits.bytes.checked_sub(size)) {
            (Some((stat, file)), Some(rest)) => {
                self.limits.bytes = rest;
                let file = File::from(file);
                // A file that has become shorter is filled up: an entry has the size that it was announced
                // with.
                let data = file.take(size).chain(io::repeat(0)).take(size);
                self.entry(name, EntryType::Regular, (stat.st_mode, size), data)
            }
            _ => self.entry(name, left_out, (stat.st_mode, 0), io::empty()),
        }
    }

    fn entry(&mut self, name: &[u8], kind: EntryType, (mode, size): (u32, u64), data: impl Read) -> io::Result<()> {
        let mut header = Header::new_gnu();
        let Some(gnu) = header.as_gnu_mut() else { return Err(io::Error::other("a GNU header is not one")) };
        let fits = name.len().min(gnu.name.len());
        gnu.name[..fits].copy_from_slice(&name[..fits]);
        if name.len() > fits {
            long_text(&mut self.tar, EntryType::GNULongName, name)?;
        }
        header.set_entry_type(kind);
        header.set_mode(mode & 0o777);
        header.set_size(size);
        header.set_cksum();
        self.tar.append(&header, data)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tar::Archive;

    use super::*;

    const LIMITS: PackLimits = PackLimits { files: 100, bytes: 1 << 20 };

    fn packed(root: &Path, patterns: &[&str], limits: PackLimits) -> Vec<(String, u8, u64)> {
        let patterns = PathPatterns::parse(patterns.iter().copied()).unwrap();
        let mut stream = Vec::new();
        pack_matching(root, &patterns, limits, &mut stream).unwrap();
        let mut archive = Archive::new(&stream[..]);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let read = io::copy(&mut entry, &mut io::sink()).unwrap();
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            (name, entry.header().entry_type().as_byte(), read)
        });
        entries.collect()
    }

    #[test]
    fn only_regular_files_are_packed_and_no_link_is_followed() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        for dir in ["out/deep/er", "other"] {
            fs::create_dir_all(path(dir)).unwrap();
        }
        fs::write(path("out/a.xml"), "a").unwrap();
        fs::write(path("out/deep/er/b.xml"), "bb").unwrap();
        fs::write(path("out/deep/new\nline.txt"), "").unwrap();
        fs::write(path("other/c.xml"), "c").unwrap();
        symlink("/etc/passwd", path("out/link.xml")).unwrap();
        symlink("other", path("linked")).unwrap();
        let fifo = rustix::fs::mkfifoat(rustix::fs::CWD, path("out/fifo.xml"), Mode::RWXU);
        fifo.unwrap();
        let of = |patterns: &[&str]| -> Vec<String> {
            packed(top.path(), patterns, LIMITS).into_iter().map(|(name, ..)| name).collect()
        };
        assert_eq!(of(&["out/**/*.xml", "linked/*"]), ["out/a.xml", "out/deep/er/b.xml"]);
        assert_eq!(of(&["out/deep"]), ["out/deep/new\nline.txt", "out/deep/er/b.xml"]);
        assert_eq!(of(&["none", "out/link.xml"]), [] as [&str; 0]);
    }

    #[test]
    fn what_exceeds_the_limits_is_named_and_has_no_content() {
        let top = tempfile::tempdir().unwrap();
        fs::File::create(top.path().join("b")).unwrap().set_len(1 << 40).unwrap();
        for name in ["a", "c"] {
            fs::write(top.path().join(name), name).unwrap();
        }
        let expected = [("a", b'0', 1), ("b", LEFT_OUT, 0), ("c", b'0', 1)];
        assert_eq!(
            packed(top.path(), &["*"], LIMITS),
            expected.map(|(name, kind, size)| (name.to_owned(), kind, size))
        );
        let found = packed(top.path(), &["*"], PackLimits { files: 1, ..LIMITS });
        assert_eq!(found, [("a".to_owned(), b'0', 1), ("b".to_owned(), LEFT_OUT, 0)], "the rest is not even named");
    }
}
