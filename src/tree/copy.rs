//! Copying a tree.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, OsStr},
    fs::File,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{self, AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use super::at::{copy_xattrs, entries, join, open_below, open_dir, stat_at, timestamps};

/// Copies the directory `from` to `to`, which must not exist.
///
/// Modes, modification times, symbolic links, extended attributes and hard links within the tree are kept, and owners
/// where the caller is root; sockets and devices are left out. Data is shared with the original where the filesystem can
/// do that (reflinks), never by hard links.
///
/// # Errors
/// The first failure; `to` is then half a copy.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let source = open_dir(from)?;
    fs::mkdir(to, Mode::RWXU)?;
    let target = open_dir(to)?;
    let mut copy = Copy { as_root: rustix::process::geteuid().is_root(), links: HashMap::new() };
    let mut work = vec![Work::Fill(Vec::new())];
    while let Some(next) = work.pop() {
        match next {
            Work::Fill(path) => {
                let (from, to) = (open_below(source.as_fd(), &path)?, open_below(target.as_fd(), &path)?);
                work.push(Work::Finish(path.clone()));
                for (name, _) in entries(&from)? {
                    let Some(stat) = stat_at(&from, &name)? else { continue };
                    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                        fs::mkdirat(&to, &name, Mode::RWXU)?;
                        work.push(Work::Fill(join(&path, name.to_bytes())));
                    } else {
                        copy.entry(from.as_fd(), to.as_fd(), target.as_fd(), &name, &stat, &path)?;
                    }
                }
            }
            Work::Finish(path) => {
                let (from, to) = (open_below(source.as_fd(), &path)?, open_below(target.as_fd(), &path)?);
                let stat = fs::fstat(&from)?;
                copy_xattrs(&from, &to)?;
                copy.own(&to, &stat)?;
                fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode))?;
                fs::futimens(&to, &timestamps(&stat))?;
            }
        }
    }
    Ok(())
}

enum Work {
    Fill(Vec<u8>),
    Finish(Vec<u8>),
}

/// Device and inode; not of the same types on every system.
type Identity = (rustix::fs::Dev, u64);

struct Copy {
    as_root: bool,
    /// Where the first name of each file with several names went.
    links: HashMap<Identity, Vec<u8>>,
}

impl Copy {
    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        root: BorrowedFd<'_>,
        name: &CString,
        stat: &Stat,
        parent: &[u8],
    ) -> io::Result<()> {
        let identity = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&identity) {
                match fs::linkat(root, OsStr::from_bytes(first), to, name, AtFlags::empty()) {
                    Ok(()) => return Ok(()),
                    Err(Errno::MLINK | Errno::NAMETOOLONG) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            self.links.insert(identity, join(parent, name.to_bytes()));
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let source = File::from(fs::openat(from, name, flags, Mode::empty())?);
                let target = create(to, name)?;
                copy_data(&source, &target)?;
                copy_xattrs(&source, &target)?;
                self.own(&target, stat)?;
                fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode))?;
                fs::futimens(&target, &timestamps(stat))?;
            }
            FileType::Symlink => {
                fs::symlinkat(fs::readlinkat(from, name, Vec::new())?, to, name)?;
                if self.as_root {
                    let (owner, group) = (fs::Uid::from_raw(stat.st_uid), fs::Gid::from_raw(stat.st_gid));
                    fs::chownat(to, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
                }
                fs::utimensat(to, name, &timestamps(stat), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            FileType::Fifo => {
                fs::mkfifoat(to, name, Mode::RUSR | Mode::WUSR)?;
                fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
            }
            _ => {}
        }
        Ok(())
    }

    fn own(&self, file: impl AsFd, stat: &Stat) -> io::Result<()> {
        if self.as_root {
            fs::fchown(file, Some(fs::Uid::from_raw(stat.st_uid)), Some(fs::Gid::from_raw(stat.st_gid)))?;
        }
        Ok(())
    }
}

/// Creates a file for its owner alone, to get its mode when it is whole.
pub(super) fn create(dir: impl AsFd, name: &CStr) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?))
}

/// Fills an empty file with the data of another one.
pub(super) fn copy_data(mut from: &File, mut to: &File) -> io::Result<()> {
    if reflink(from, to) {
        return Ok(());
    }
    io::copy(&mut from, &mut to).map(drop)
}

/// Shares the data of one file with another, empty one. False where that can't be, for any reason.
#[cfg(target_os = "linux")]
pub(crate) fn reflink(from: &File, to: &File) -> bool {
    fs::ioctl_ficlone(to, from).is_ok()
}

/// Shares the data of one file with another, empty one. False where that can't be, for any reason.
#[cfg(not(target_os = "linux"))]
pub(crate) fn reflink(_: &File, _: &File) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt},
    };

    use super::*;

    #[test]
    fn a_copy_has_modes_times_links_and_nothing_of_the_original_inodes() {
        let top = tempfile::tempdir().unwrap();
        let (from, to) = (top.path().join("from"), top.path().join("to"));
        fs::create_dir_all(from.join("dir/empty")).unwrap();
        fs::write(from.join("dir/file"), "data").unwrap();
        fs::hard_link(from.join("dir/file"), from.join("again")).unwrap();
        std::os::unix::fs::symlink("dir/nowhere", from.join("link")).unwrap();
        fs::set_permissions(from.join("dir/file"), fs::Permissions::from_mode(0o4750)).unwrap();
        fs::set_permissions(from.join("dir"), fs::Permissions::from_mode(0o555)).unwrap();
        copy_tree(&from, &to).unwrap();
        for path in ["", "dir", "dir/empty", "dir/file", "again", "link"] {
            let (a, b) = (from.join(path).symlink_metadata().unwrap(), to.join(path).symlink_metadata().unwrap());
            assert_eq!((a.mode(), a.mtime(), a.mtime_nsec()), (b.mode(), b.mtime(), b.mtime_nsec()), "{path}");
            assert_ne!(a.ino(), b.ino());
        }
        assert_eq!(fs::read(to.join("again")).unwrap(), b"data");
        assert_eq!(fs::metadata(to.join("again")).unwrap().ino(), fs::metadata(to.join("dir/file")).unwrap().ino());
        assert_eq!(fs::read_link(to.join("link")).unwrap().to_str(), Some("dir/nowhere"));
        fs::set_permissions(from.join("dir"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(to.join("dir"), fs::Permissions::from_mode(0o755)).unwrap();
    }
}
