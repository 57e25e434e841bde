//! Opens files below a directory, and nowhere else.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path},
};

use rustix::{
    fs::{self, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

/// The number of retries of a lookup that failed because of a concurrent rename.
const RACES: u32 = 64;

/// Opens `path` below `dir`. If `path` leads out of it, also through a symbolic link, the error is `XDEV`.
pub(super) fn open(dir: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RACES {
        match fs::openat2(&dir, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            // Linux before 5.6, or a system call filter that does not know the call and refuses it.
            Err(Errno::NOSYS | Errno::PERM) => return walk(dir, path, flags),
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

/// Does the same as [`open`], one name at a time. Symbolic links are not followed at all, because there would
/// be no check that they stay inside.
pub(super) fn walk(dir: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            // `a/..` is not the same as `.` if `a` is a link, which is refused below. `..` at the top leads
            // out.
            Component::ParentDir => {
                names.pop().ok_or(Errno::XDEV)?;
            }
            Component::RootDir | Component::Prefix(_) => return Err(Errno::XDEV),
        }
    }
    let Some((last, parents)) = names.split_last() else {
        return fs::openat(dir, ".", flags, Mode::empty());
    };
    let step = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    for name in parents {
        let dir = at.as_ref().map_or_else(|| dir.as_fd(), AsFd::as_fd);
        let next = fs::openat(dir, *name, step, Mode::empty()).map_err(|errno| refused(dir, name, errno))?;
        at = Some(next);
    }
    let dir = at.as_ref().map_or_else(|| dir.as_fd(), AsFd::as_fd);
    fs::openat(dir, *last, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(|errno| refused(dir, last, errno))
}

/// Returns the error of a failed open: `XDEV` for a link that was not followed, otherwise `errno`.
fn refused(dir: impl AsFd, name: &std::ffi::OsStr, errno: Errno) -> Errno {
    match fs::statat(dir, name, fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => Errno::XDEV,
        _ => errno,
    }
}
