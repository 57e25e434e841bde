//! Writes an overlay layer as the tar stream of an OCI layer: the same bytes for the same tree.
//!
//! Entries are sorted, and owners are numbers. Values that do not fit the `ustar` format are written to
//! extended headers, which are omitted if they are not needed. Overlayfs' marks are converted to those of the
//! format (`.wh.NAME`, `.wh..wh..opq`).

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{self, FileType, Mode, OFlags, Stat},
};
use tar::{EntryType, Header};

use super::{
    at::{entries, is_opaque, is_whiteout, join, open_dir, shared_xattrs, stat_at},
    descent::Descent,
};
use crate::tree::IdMap;

const BLOCK_BYTES: u64 = 512;
/// The maximum numbers in a header: eight digits, eleven digits.
const MAX_ID: u32 = 0o7_777_777;
const MAX_SIZE: u64 = 0o77_777_777_777;
/// The maximum length of a name in a header, in bytes.
const MAX_NAME: usize = 100;

/// Writes the tree at `root` to `out`. With [`IdMap::Single`] every file is owned by root, as it was in the
/// step. Sockets and the content of mounts within the tree are left out.
///
/// # Errors
/// Returns the first error; the stream is then incomplete.
pub fn layer_tar(root: &Path, out: impl Write, id_map: IdMap) -> io::Result<()> {
    let top = open_dir(root)?;
    let device = fs::fstat(&top)?.st_dev;
    let mut writer = Writer { out, single: id_map == IdMap::Single, links: HashMap::new() };
    Descent::new(top).walk(|walk| writer.directory(walk, device))?;
    writer.out.write_all(&[0; 2 * BLOCK_BYTES as usize])?;
    writer.out.flush()
}

struct Writer<W> {
    out: W,
    single: bool,
    /// The name under which each file with several names was written first.
    links: HashMap<(u64, u64), Vec<u8>>,
}

/// A file of the layer.
struct Member<'a> {
    path: &'a [u8],
    stat: &'a Stat,
    kind: EntryType,
    /// The target of a link.
    link: &'a [u8],
    size: u64,
    xattrs: &'a [(CString, Vec<u8>)],
}

impl<'a> Member<'a> {
    /// Describes a file without a target, content and attributes.
    fn new(path: &'a [u8], stat: &'a Stat, kind: EntryType) -> Self {
        Self { path, stat, kind, link: b"", size: 0, xattrs: &[] }
    }
}

impl<W: Write> Writer<W> {
    /// Writes the current directory of a walk, and its content except for directories. Returns the names of
    /// those.
    fn directory(&mut self, walk: &Descent, device: fs::Dev) -> io::Result<Vec<CString>> {
        let (dir, path) = (walk.dir(), walk.path());
        if !path.is_empty() {
            let stat = fs::fstat(dir)?;
            self.entry(&Member { xattrs: &shared_xattrs(dir)?, ..Member::new(path, &stat, EntryType::Directory) })?;
            if stat.st_dev != device {
                return Ok(Vec::new());
            }
        }
        if is_opaque(dir)? {
            self.mark(&join(path, b".wh..wh..opq"))?;
        }
        let mut names = entries(dir)?;
        names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut directories = Vec::new();
        for (name, _) in names {
            let Some(stat) = stat_at(dir, &name)? else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                directories.push(name);
            } else {
                self.leaf(dir, &name, &join(path, name.to_bytes()), &stat)?;
            }
        }
        Ok(directories)
    }

    fn leaf(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &[u8], stat: &Stat) -> io::Result<()> {
        // Checked before hard links: all marks of a layer may be one inode.
        if is_whiteout(stat) {
            let (parent, name) = path
                .iter()
                .rposition(|byte| *byte == b'/')
                .map_or((&b""[..], path), |slash| (&path[..slash], &path[slash + 1..]));
            return self.mark(&join(parent, &[b".wh.", name].concat()));
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let first = first.clone();
                return self.entry(&Member { link: &first, ..Member::new(path, stat, EntryType::Link) });
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        let member = |kind| Member::new(path, stat, kind);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = File::from(fs::openat(dir, name, flags, Mode::empty())?);
                let size = stat.st_size.cast_unsigned();
                let xattrs = shared_xattrs(file.as_fd())?;
                self.entry(&Member { size, xattrs: &xattrs, ..member(EntryType::Regular) })?;
                let copied = io::copy(&mut file.take(size), &mut self.out)?;
                if copied < size {
                    return Err(io::Error::other("a file became shorter while it was read"));
                }
                self.pad(size)
            }
            FileType::Symlink => {
                let target = fs::readlinkat(dir, name, Vec::new())?;
                self.entry(&Member { link: target.to_bytes(), ..member(EntryType::Symlink) })
            }
            FileType::Fifo => self.entry(&member(EntryType::Fifo)),
            FileType::CharacterDevice => self.entry(&member(EntryType::Char)),
            FileType::BlockDevice => self.entry(&member(EntryType::Block)),
            _ => Ok(()),
        }
    }

    /// Writes an empty file that marks something about lower layers.
    fn mark(&mut self, path: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0);
        header.set_mtime(0);
        if path.len() > MAX_NAME {
            let mut records = Vec::new();
            push_record(&mut records, b"path", path);
            self.extended(&records)?;
        }
        self.header(header, path, b"", 0, (0, 0))
    }

    /// Writes the headers of a member.
    fn entry(&mut self, member: &Member<'_>) -> io::Result<()> {
        let &Member { path, stat, kind, link, size, xattrs } = member;
        let (uid, gid) = if self.single { (0, 0) } else { (stat.st_uid, stat.st_gid) };
        let mut records = Vec::new();
        if stat.st_mtime_nsec != 0 || stat.st_mtime < 0 || stat.st_mtime.cast_unsigned() > MAX_SIZE {
            push_record(&mut records, b"mtime", time(stat.st_mtime, stat.st_mtime_nsec as i64).as_bytes());
        }
        let numbers = [(&b"uid"[..], uid, MAX_ID), (b"gid", gid, MAX_ID)];
        for (key, number, _) in numbers.into_iter().filter(|(_, number, most)| number > most) {
            push_record(&mut records, key, number.to_string().as_bytes());
        }
        if size > MAX_SIZE {
            push_record(&mut records, b"size", size.to_string().as_bytes());
        }
        for (key, name) in [(&b"path"[..], path), (b"linkpath", link)] {
            if name.len() > MAX_NAME {
                push_record(&mut records, key, name);
            }
        }
        for (name, value) in xattrs {
            push_record(&mut records, &[b"SCHILY.xattr.", name.to_bytes()].concat(), value);
        }
        if !records.is_empty() {
            self.extended(&records)?;
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0).min(MAX_SIZE));
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(fs::major(stat.st_rdev))?;
            header.set_device_minor(fs::minor(stat.st_rdev))?;
        }
        self.header(header, path, link, size, (uid, gid))
    }

    /// Writes a header. Values that do not fit are written to an extended header before it.
    fn header(
        &mut self,
        mut header: Header,
        path: &[u8],
        link: &[u8],
        size: u64,
        (uid, gid): (u32, u32),
    ) -> io::Result<()> {
        header.set_uid(uid.min(MAX_ID).into());
        header.set_gid(gid.min(MAX_ID).into());
        header.set_size(size.min(MAX_SIZE));
        let bytes = header.as_mut_bytes();
        let (name, target) = (&path[..path.len().min(MAX_NAME)], &link[..link.len().min(MAX_NAME)]);
        bytes[..name.len()].copy_from_slice(name);
        bytes[157..157 + target.len()].copy_from_slice(target);
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn extended(&mut self, records: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_mtime(0);
        self.header(header, b"pax", b"", records.len() as u64, (0, 0))?;
        self.out.write_all(records)?;
        self.pad(records.len() as u64)
    }

    fn pad(&mut self, written: u64) -> io::Result<()> {
        let zeros = [0; BLOCK_BYTES as usize];
        let missing = written.next_multiple_of(BLOCK_BYTES) - written;
        self.out.write_all(&zeros[..usize::try_from(missing).unwrap_or(0)])
    }
}

/// Appends `LENGTH KEY=VALUE\n`, where the length includes itself.
fn push_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    for part in [&b" "[..], key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

/// Formats seconds with as many digits after the point as needed. Before the epoch, a `stat` rounds seconds
/// down, and this text rounds them towards zero.
fn time(seconds: i64, nanoseconds: i64) -> String {
    let (sign, whole, fraction) = match (seconds < 0, nanoseconds) {
        (false, _) => ("", seconds.unsigned_abs(), nanoseconds),
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, _) => ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - nanoseconds),
    };
    if fraction == 0 {
        return format!("{sign}{whole}");
    }
    format!("{sign}{whole}.{fraction:09}").trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::{super::unpack, *};
    use crate::tree::{Seal, UnpackLimits, seal};

    fn id_map() -> IdMap {
        if rustix::process::geteuid().is_root() { IdMap::Root } else { IdMap::Single }
    }

    fn pack(root: &Path) -> Vec<u8> {
        let mut out = Vec::new();
        layer_tar(root, &mut out, id_map()).unwrap();
        out
    }

    fn unpacked(tar: &[u8]) -> (tempfile::TempDir, Seal) {
        let top = tempfile::tempdir().unwrap();
        unpack(tar, top.path(), id_map(), UnpackLimits::default()).unwrap();
        let sealed = seal(top.path()).unwrap();
        (top, sealed)
    }

    #[test]
    fn what_is_packed_unpacks_to_the_same_and_packs_to_the_same_bytes() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        let long = "long/".repeat(40);
        fs::create_dir_all(path(&long)).unwrap();
        fs::write(path(&(long.clone() + "file")), "deep").unwrap();
        fs::write(path("b"), "b").unwrap();
        fs::hard_link(path("b"), path("a")).unwrap();
        std::os::unix::fs::symlink("x".repeat(150), path("link")).unwrap();
        fs::write(path("odd\nname \u{fc}"), vec![7; 100_000]).unwrap();
        for (name, seconds, nanoseconds) in [("b", 5, 250_000_000), ("link", 0, 1), ("odd\nname \u{fc}", -7, 5)] {
            let times = super::super::mtime(seconds, nanoseconds);
            rustix::fs::utimensat(rustix::fs::CWD, path(name), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        // The root's own time is not a part of a layer.
        rustix::fs::utimensat(rustix::fs::CWD, top.path(), &super::super::mtime(0, 0), rustix::fs::AtFlags::empty())
            .unwrap();

        let tar = pack(top.path());
        let (copy, sealed) = unpacked(&tar);
        assert_eq!(sealed.hash, seal(top.path()).unwrap().hash);
        assert_eq!(pack(copy.path()), tar);
        let stat = |name: &str| fs::symlink_metadata(copy.path().join(name)).unwrap();
        assert_eq!(stat("a").ino(), stat("b").ino());
        assert_eq!((stat("odd\nname \u{fc}").mtime(), stat("odd\nname \u{fc}").mtime_nsec()), (-7, 5));
    }

    #[test]
    fn marks_of_overlayfs_become_those_of_the_format_and_come_back() {
        let top = tempfile::tempdir().unwrap();
        let whiteouts = ["dir/gone", "gone"].map(|name| top.path().join(name));
        fs::create_dir(top.path().join("dir")).unwrap();
        let made =
            super::super::whiteout(&whiteouts[0]).is_ok_and(|()| fs::hard_link(&whiteouts[0], &whiteouts[1]).is_ok());
        let opaque = rustix::fs::setxattr(
            top.path().join("dir"),
            id_map().opaque_xattr(),
            b"y",
            rustix::fs::XattrFlags::empty(),
        );
        if !made || opaque.is_err() {
            return;
        }
        let tar = pack(top.path());
        let mut archive = tar::Archive::new(&tar[..]);
        let names: Vec<_> = archive.entries().unwrap().map(|it| it.unwrap().path().unwrap().into_owned()).collect();
        let expected = [".wh.gone", "dir/", "dir/.wh..wh..opq", "dir/.wh.gone"].map(std::path::PathBuf::from);
        assert_eq!(names, expected);
        let (copy, _) = unpacked(&tar);
        assert_eq!(pack(copy.path()), tar);
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        for (seconds, nanoseconds, expected) in
            [(0, 1, "0.000000001"), (5, 250_000_000, "5.25"), (-2, 750_000_000, "-1.25"), (-3, 0, "-3")]
        {
            assert_eq!(time(seconds, nanoseconds), expected);
        }
    }
}
