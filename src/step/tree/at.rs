//! Directory entries, extended attributes and times relative to open directories.

use std::{
    ffi::{CString, OsStr},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{self, AtFlags, Dir, FileType, Mode, OFlags, RawDir, Stat, Timespec, Timestamps},
};

/// The two names of overlayfs' opaque mark: lower layers are hidden in the directory.
const OPAQUE_XATTRS: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// The length above which paths are opened in parts, in bytes; the kernel refuses 4096 bytes.
const PART_BYTES: usize = 3500;

/// The size of the buffer for directory entries, in bytes.
const ENTRIES_BYTES: usize = 8 << 10;

const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// Opens a directory.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(fs::open(path, DIR_FLAGS, Mode::empty())?)
}

/// Opens the entry `name` of a directory. The entry must be a directory itself.
pub fn open_dir_at(dir: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    Ok(fs::openat(dir, name, DIR_FLAGS, Mode::empty())?)
}

/// Opens the directory at `path` below `root`. `path` may have any length; an empty path is `root` itself.
pub fn open_below(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    if !path.is_empty() && path.len() <= PART_BYTES {
        return open_dir_at(root, OsStr::from_bytes(path));
    }
    let mut rest = path;
    let mut dir = open_dir_at(root, ".")?;
    while !rest.is_empty() {
        let end = if rest.len() <= PART_BYTES {
            rest.len()
        } else {
            rest[..PART_BYTES].iter().rposition(|byte| *byte == b'/').unwrap_or(PART_BYTES)
        };
        dir = open_dir_at(&dir, OsStr::from_bytes(&rest[..end]))?;
        rest = rest[end..].strip_prefix(b"/").unwrap_or(&rest[end..]);
    }
    Ok(dir)
}

/// Returns `parent/name`, or `name` if `parent` is empty.
pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(parent.len() + 1 + name.len());
    if !parent.is_empty() {
        path.extend_from_slice(parent);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Returns the entries of a directory without `.` and `..`. The type is a hint: `Unknown` on some
/// filesystems.
pub fn entries(dir: impl AsFd) -> io::Result<Vec<(CString, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() != b"." && name.to_bytes() != b".." {
            found.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(found)
}

/// Returns the same as [`entries`] by reading the descriptor itself, instead of opening the directory
/// again. So it returns everything only once.
pub(super) fn entries_once(dir: impl AsFd) -> io::Result<Vec<(CString, FileType)>> {
    let (mut found, mut buffer) = (Vec::new(), Vec::with_capacity(ENTRIES_BYTES));
    let mut all = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = all.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() != b"." && name.to_bytes() != b".." {
            found.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(found)
}

/// Returns the status of an entry, or `None` if there is none. Symbolic links are not followed.
pub fn stat_at(dir: impl AsFd, name: impl rustix::path::Arg) -> io::Result<Option<Stat>> {
    match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether an entry is overlayfs' mark for "removed": a character device 0:0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Returns whether a directory hides the lower layers' content at its path.
pub(crate) fn is_opaque(dir: impl AsFd) -> io::Result<bool> {
    let dir = dir.as_fd();
    for name in OPAQUE_XATTRS {
        let mut value = [0_u8; 4];
        match fs::fgetxattr(dir, name, &mut value[..]) {
            Ok(1) if value[0] == b'y' => return Ok(true),
            Ok(_) => {}
            Err(
                rustix::io::Errno::NODATA
                | rustix::io::Errno::NOTSUP
                | rustix::io::Errno::PERM
                | rustix::io::Errno::RANGE,
            ) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Returns the names of a file's extended attributes.
fn xattr_names(file: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = vec![0_u8; 1024];
    let length = loop {
        match fs::flistxattr(file, &mut names[..]) {
            Ok(length) => break length,
            Err(rustix::io::Errno::RANGE) => names.resize(names.len() * 4, 0),
            Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    };
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.filter_map(|name| CString::new(name).ok()).collect())
}

/// Copies extended attributes, except those that are private to overlayfs and security modules.
pub(crate) fn copy_xattrs(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    for (name, value) in shared_xattrs(from.as_fd())? {
        fs::fsetxattr(&to, &name, &value, fs::XattrFlags::empty())?;
    }
    Ok(())
}

/// Returns a file's extended attributes by name, except those that are private to overlayfs and security
/// modules.
pub(crate) fn shared_xattrs(from: BorrowedFd<'_>) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut names = xattr_names(from)?;
    names.sort_unstable();
    let mut value = Vec::new();
    for name in names {
        let private =
            [&b"trusted.overlay."[..], b"user.overlay.", b"security.selinux", b"security.ima", b"security.evm"];
        if private.iter().any(|prefix| name.to_bytes().starts_with(prefix)) {
            continue;
        }
        value.resize(1 << 16, 0);
        let length = match fs::fgetxattr(from, &name, &mut value[..]) {
            Ok(length) => length,
            Err(rustix::io::Errno::NODATA) => continue,
            Err(error) => return Err(error.into()),
        };
        found.push((name, value[..length].to_vec()));
    }
    Ok(found)
}

/// Returns the hash of what [`shared_xattrs`] returns; zeros if that is nothing.
pub(crate) fn shared_xattrs_hash(from: BorrowedFd<'_>) -> io::Result<[u8; 32]> {
    let found = shared_xattrs(from)?;
    if found.is_empty() {
        return Ok([0; 32]);
    }
    let mut hasher = blake3::Hasher::new();
    for (name, value) in found {
        for part in [name.as_bytes(), &value] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Returns the modification time of a file, for [`rustix::fs::utimensat`]. The access time is left unchanged.
pub(crate) fn timestamps(stat: &Stat) -> Timestamps {
    mtime(stat.st_mtime, stat.st_mtime_nsec as i64)
}

/// Returns a modification time for [`utimensat`](rustix::fs::utimensat), without an access time.
pub fn mtime(seconds: i64, nanoseconds: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    }
}
