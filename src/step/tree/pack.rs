//! Writes a tree as a tar stream, for a user who may not read it directly: see [`copy_out`](super::copy_out).

use std::{
    collections::HashMap,
    ffi::{CStr, CString, OsStr},
    fs::File,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{self, CWD, FileType, Mode, OFlags, ResolveFlags, Stat},
};
use tar::{Builder, EntryType, Header};

use super::{
    at::{entries, join, open_dir_at, stat_at},
    descent::Descent,
    filesystem::is_pseudo,
};

/// The first part of entry names if a directory's content was requested.
pub(super) const CONTENT: &[u8] = b".";

/// The entry name of a single file in a plain stream.
const FILE: &[u8] = b"file";

/// The times in a plain stream, in seconds since the Unix epoch: 2000-01-01.
pub const PLAIN_SECONDS: u64 = 946_684_800;

/// The most bytes of a plain stream: as many as outputs may have.
const PLAIN_BYTES: u64 = 4 << 30;

/// The size of an entry without its content.
const HEADER_BYTES: usize = 512;

/// Writes the file or tree at `path` to `out` as a GNU tar stream.
///
/// Names begin with the last part of `path`. If that is `.`, they begin with `.`, which means a directory's
/// content, as for `cp`. A symbolic link at `path` is written as a link, unless a `/` follows it; links
/// further up are followed. Sockets, devices, and the content of `/proc` and `/sys` are left out. Times are
/// whole seconds.
///
/// # Errors
/// Returns the first error; the stream is then incomplete.
pub fn pack(path: &Path, out: impl Write) -> io::Result<()> {
    let mut packer = Packer { tar: Builder::new(out), links: HashMap::new(), is_plain: false, left: u64::MAX };
    let bytes = path.as_os_str().as_bytes();
    let trimmed = bytes.iter().rposition(|byte| *byte != b'/').map_or(&b""[..], |last| &bytes[..=last]);
    let (parent, name) = match trimmed.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&trimmed[..=slash], &trimmed[slash + 1..]),
        None => (&b"."[..], trimmed),
    };
    if matches!(name, b"" | b"." | b"..") {
        let root = fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        packer.directory(&root, CONTENT)?;
    } else {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = fs::openat(CWD, OsStr::from_bytes(parent), flags, Mode::empty())?;
        let c_name = CString::new(name)?;
        let stat = fs::statat(&parent, &c_name, fs::AtFlags::SYMLINK_NOFOLLOW)?;
        if trimmed.len() < bytes.len() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            packer.directory(&fs::openat(&parent, &c_name, flags, Mode::empty())?, name)?;
        } else if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            packer.directory(&open_dir_at(&parent, &c_name)?, name)?;
        } else if !packer.leaf(parent.as_fd(), &c_name, &stat, name)? {
            return Err(io::Error::from(rustix::io::Errno::NXIO));
        }
    }
    packer.tar.into_inner()?.flush()
}

/// Writes the file or directory at `path` to `out` as a plain stream: equal names, types, modes, targets of
/// links and contents give equal bytes.
///
/// A directory is written as its content, a file under the name `file`. Links on the way to it, and at `path`
/// itself, are followed, except for those below `/proc` that lead to descriptors and roots of processes.
/// Owners are root, times are [`PLAIN_SECONDS`], and modes are permissions only.
///
/// # Errors
/// Returns the first error; the stream is then incomplete. If something else is at `path`, or something in
/// `/proc` or `/sys`, that is `ENOTDIR`. If the stream would be larger than 4 GiB, it is `EFBIG`; holes in
/// files count like data.
pub fn pack_plain(path: &Path, out: impl Write) -> io::Result<()> {
    pack_plain_within(PLAIN_BYTES, path, out)
}

fn pack_plain_within(most_bytes: u64, path: &Path, out: impl Write) -> io::Result<()> {
    let mut packer = Packer { tar: Builder::new(out), links: HashMap::new(), is_plain: true, left: most_bytes };
    let open = |flags: OFlags| fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    let found = open(OFlags::PATH | OFlags::CLOEXEC)?;
    let stat = fs::fstat(&found)?;
    if is_pseudo(found.as_fd())? {
        return Err(rustix::io::Errno::NOTDIR.into());
    }
    // What was examined is what is opened: nothing else changes the tree.
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            packer.directory(&open(OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC)?, CONTENT)?;
        }
        FileType::RegularFile => {
            let file = File::from(open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC)?);
            let size_bytes = stat.st_size.cast_unsigned();
            let member = Member { size_bytes, ..Member::new(FILE, &stat, EntryType::Regular) };
            packer.entry(&member, file.take(size_bytes))?;
        }
        _ => return Err(rustix::io::Errno::NOTDIR.into()),
    }
    packer.tar.into_inner()?.flush()
}

struct Packer<W: Write> {
    tar: Builder<W>,
    /// The name under which each file with several names was written first.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Whether owners and times are left out.
    is_plain: bool,
    /// How many bytes may still be written.
    left: u64,
}

/// An entry of the stream.
struct Member<'a> {
    name: &'a [u8],
    stat: &'a Stat,
    kind: EntryType,
    /// The target of a link.
    link: &'a [u8],
    size_bytes: u64,
}

impl<'a> Member<'a> {
    /// Describes an entry without a target and content.
    fn new(name: &'a [u8], stat: &'a Stat, kind: EntryType) -> Self {
        Self { name, stat, kind, link: b"", size_bytes: 0 }
    }
}

impl<W: Write> Packer<W> {
    fn directory(&mut self, root: &OwnedFd, top: &[u8]) -> io::Result<()> {
        Descent::new(root.try_clone()?).walk(|walk| self.content(walk, top))
    }

    /// Writes the current directory of a walk, and its content except for directories. Returns the names of
    /// those.
    fn content(&mut self, walk: &Descent, top: &[u8]) -> io::Result<Vec<CString>> {
        let dir = walk.dir();
        let name = if walk.path().is_empty() { top.to_vec() } else { join(top, walk.path()) };
        self.entry(&Member::new(&name, &fs::fstat(dir)?, EntryType::Directory), io::empty())?;
        if is_pseudo(dir)? {
            return Ok(Vec::new());
        }
        let mut found = entries(dir)?;
        found.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut directories = Vec::new();
        for (entry, _) in found {
            let Some(stat) = stat_at(dir, &entry)? else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                directories.push(entry);
            } else {
                self.leaf(dir, &entry, &stat, &join(&name, entry.to_bytes()))?;
            }
        }
        Ok(directories)
    }

    /// Writes an entry that is not a directory. Returns false if entries of its kind are left out.
    fn leaf(&mut self, dir: BorrowedFd<'_>, entry: &CStr, stat: &Stat, name: &[u8]) -> io::Result<bool> {
        let member = |kind| Member::new(name, stat, kind);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                if stat.st_nlink > 1 {
                    if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                        let first = first.clone();
                        let link = Member { link: &first, ..member(EntryType::Link) };
                        return self.entry(&link, io::empty()).map(|()| true);
                    }
                    self.links.insert((stat.st_dev, stat.st_ino), name.to_vec());
                }
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = File::from(fs::openat(dir, entry, flags, Mode::empty())?);
                let size_bytes = stat.st_size.cast_unsigned();
                self.entry(&Member { size_bytes, ..member(EntryType::Regular) }, file.take(size_bytes))?;
            }
            FileType::Symlink => {
                let target = fs::readlinkat(dir, entry, Vec::new())?;
                self.entry(&Member { link: target.to_bytes(), ..member(EntryType::Symlink) }, io::empty())?;
            }
            FileType::Fifo => self.entry(&member(EntryType::Fifo), io::empty())?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn entry(&mut self, member: &Member<'_>, data: impl Read) -> io::Result<()> {
        let &Member { name, stat, kind, link, size_bytes } = member;
        // Before anything of the file is read: a hole costs a step nothing, but would be read for hours.
        let needed = (HEADER_BYTES + name.len() + link.len()) as u64;
        let left = self.left.checked_sub(needed).and_then(|left| left.checked_sub(size_bytes));
        self.left = left.ok_or(rustix::io::Errno::FBIG)?;
        let mut header = Header::new_gnu();
        let Some(gnu) = header.as_gnu_mut() else { return Err(io::Error::other("a GNU header is not one")) };
        for (text, field, long) in
            [(name, &mut gnu.name, EntryType::GNULongName), (link, &mut gnu.linkname, EntryType::GNULongLink)]
        {
            let fits = text.len().min(field.len());
            field[..fits].copy_from_slice(&text[..fits]);
            if text.len() > fits {
                long_text(&mut self.tar, long, text)?;
            }
        }
        header.set_entry_type(kind);
        if self.is_plain {
            header.set_mode(if kind == EntryType::Symlink { 0o777 } else { stat.st_mode & 0o777 });
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(PLAIN_SECONDS);
        } else {
            header.set_mode(stat.st_mode & 0o7777);
            header.set_uid(stat.st_uid.into());
            header.set_gid(stat.st_gid.into());
            header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        }
        header.set_size(size_bytes);
        header.set_cksum();
        self.tar.append(&header, data)
    }
}

/// Writes a text that is too long for the next entry's header.
pub(super) fn long_text(tar: &mut Builder<impl Write>, kind: EntryType, text: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    let name = b"././@LongLink";
    if let Some(gnu) = header.as_gnu_mut() {
        gnu.name[..name.len()].copy_from_slice(name);
    }
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(text.len() as u64 + 1);
    header.set_cksum();
    tar.append(&header, text.chain(&b"\0"[..]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn plain(path: &Path) -> Vec<u8> {
        let mut out = Vec::new();
        pack_plain(path, &mut out).unwrap();
        out
    }

    fn tree(top: &Path, text: &str) {
        std::fs::create_dir_all(top.join("d/empty")).unwrap();
        std::fs::write(top.join("d/f"), text).unwrap();
        std::fs::set_permissions(top.join("d/f"), std::fs::Permissions::from_mode(0o600)).unwrap();
        symlink("/nowhere", top.join("link")).unwrap();
        std::fs::hard_link(top.join("d/f"), top.join("other")).unwrap();
    }

    #[test]
    fn a_plain_stream_has_what_a_step_is_shown_and_nothing_else() {
        let top = tempfile::tempdir().unwrap();
        let (a, b, c) = (top.path().join("a"), top.path().join("b"), top.path().join("c"));
        tree(&a, "text");
        tree(&b, "text");
        tree(&c, "Text");
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
        File::open(b.join("d/f")).unwrap().set_modified(old).unwrap();
        let first = plain(&a);
        assert_eq!(first, plain(&b));
        assert_ne!(first, plain(&c));
        symlink("a", top.path().join("to-a")).unwrap();
        assert_eq!(first, plain(&top.path().join("to-a")));
        std::fs::set_permissions(b.join("d/f"), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_ne!(first, plain(&b));
        std::fs::set_permissions(a.join("d/f"), std::fs::Permissions::from_mode(0o4600)).unwrap();
        assert_eq!(first, plain(&a), "set-id bits refer to ids that are left out");
        assert_eq!(plain(&a.join("other")), plain(&a.join("d/f")), "a file has no name");
    }

    #[test]
    fn a_plain_stream_is_limited_and_holes_count() {
        let top = tempfile::tempdir().unwrap();
        let holes = top.path().join("holes");
        File::create(&holes).unwrap().set_len(PLAIN_BYTES).unwrap();
        let too_big = Some(rustix::io::Errno::FBIG.raw_os_error());
        for path in [&holes, top.path()] {
            let mut out = Vec::new();
            assert_eq!(pack_plain(path, &mut out).unwrap_err().raw_os_error(), too_big, "{}", path.display());
            assert!(out.len() <= 4096, "it is refused before it is read");
        }
        // All files together count.
        File::create(&holes).unwrap().set_len(5000).unwrap();
        assert!(pack_plain_within(8000, top.path(), io::sink()).is_ok());
        std::fs::write(top.path().join("other"), [0; 5000]).unwrap();
        let both = pack_plain_within(8000, top.path(), io::sink());
        assert_eq!(both.unwrap_err().raw_os_error(), too_big);
    }

    #[test]
    fn only_files_and_directories_are_packed_and_no_link_to_a_descriptor_is_followed() {
        let top = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        let error = |path: &Path, out: &mut Vec<u8>| pack_plain(path, out).unwrap_err().kind();
        assert_eq!(error(&top.path().join("none"), &mut out), io::ErrorKind::NotFound);
        for path in ["/dev/null", "/proc/self/fd", "/proc/version"] {
            assert_eq!(error(Path::new(path), &mut out), io::ErrorKind::NotADirectory, "{path}");
        }
        let dir = File::open(top.path()).unwrap();
        let link = top.path().join("link");
        symlink(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir)), &link).unwrap();
        let error = pack_plain(&link, &mut out).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()));
    }
}
