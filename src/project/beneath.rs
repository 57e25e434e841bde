//! Opening what lies below a directory, and nothing else.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path},
};

use rustix::{
    fs::{self, FileType, Mode, OFlags},
    io::Errno,
};

/// How often a lookup is repeated that the kernel gave up because something was renamed meanwhile.
#[cfg(target_os = "linux")]
const RACES: u32 = 64;

/// Opens `path` below `dir`. A path that leads out of it is `XDEV`, also through a symbolic link.
pub(super) fn open(dir: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::ResolveFlags;

        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..RACES {
            match fs::openat2(&dir, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                // Before Linux 5.6, or refused by a filter of system calls that does not know it.
                Err(Errno::NOSYS | Errno::PERM) => return walk(dir, path, flags),
                opened => return opened,
            }
        }
        Err(Errno::AGAIN)
    }
    #[cfg(not(target_os = "linux"))]
    walk(dir, path, flags)
}

/// Opens like [`open`], a name at a time. Symbolic links are not followed at all: that they stay inside could
/// not be known.
pub(super) fn walk(dir: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            // `a/..` is another place than `.` if `a` is a link, which is refused below; `..` at the top
            // leads out.
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

/// Returns the error of an open that failed: `XDEV` for a link that was not followed, else `errno`.
fn refused(dir: impl AsFd, name: &std::ffi::OsStr, errno: Errno) -> Errno {
    match fs::statat(dir, name, fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => Errno::XDEV,
        _ => errno,
    }
}
