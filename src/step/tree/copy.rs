//! Copying a tree.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{self, AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use super::{
    at::{copy_xattrs, entries, open_dir, stat_at, timestamps},
    descent::Descent,
    filesystem::reflink,
    hard_links::{HardLinks, Linked},
};

/// Copies the directory `from` to `to`, which must not exist.
///
/// Keeps modes, modification times, symbolic links, extended attributes and hard links within the tree, and
/// owners if the caller is root. Sockets and devices are left out. Data is shared with the original if the
/// filesystem supports that (reflinks), never by hard links.
///
/// # Errors
/// Returns the first error; `to` is then an incomplete copy.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let source = open_dir(from)?;
    fs::mkdir(to, Mode::RWXU)?;
    let root = open_dir(to)?;
    let (mut source, mut target) = (Descent::new(source), Descent::new(root.try_clone()?));
    let mut copy = Copy { as_root: rustix::process::geteuid().is_root(), links: HardLinks::new(root) };
    let mut work = copy.fill(&source, &target)?;
    while let Some(next) = work.pop() {
        match next {
            Work::Enter(name) => {
                source.enter(&name)?;
                target.enter(&name)?;
                work.append(&mut copy.fill(&source, &target)?);
            }
            Work::Leave => {
                let (from, to) = (source.leave()?, target.leave()?);
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
    /// Copy the directory of this name.
    Enter(CString),
    /// Set the attributes of the filled directory.
    Leave,
}

struct Copy {
    as_root: bool,
    links: HardLinks,
}

impl Copy {
    /// Copies the content of a directory. Returns the remaining work there.
    fn fill(&mut self, from: &Descent, to: &Descent) -> io::Result<Vec<Work>> {
        let mut work = vec![Work::Leave];
        for (name, _) in entries(from.dir())? {
            let Some(stat) = stat_at(from.dir(), &name)? else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                fs::mkdirat(to.dir(), &name, Mode::RWXU)?;
                work.push(Work::Enter(name));
            } else {
                self.entry(from.dir(), to.dir(), &name, &stat, from.path())?;
            }
        }
        Ok(work)
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CString,
        stat: &Stat,
        parent: &[u8],
    ) -> io::Result<()> {
        if self.links.link(to, name, stat, parent)? == Linked::Done {
            return Ok(());
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

/// Creates a file that only its owner may access. It gets its mode when it is complete.
pub(super) fn create(dir: impl AsFd, name: &CStr) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?))
}

/// Copies the content of a file to a new one, which only its owner may access.
pub fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;

    let to = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    copy_data(&File::open(from)?, &to)
}

/// Fills an empty file with the data of another one. Holes are preserved.
pub(super) fn copy_data(from: &File, to: &File) -> io::Result<()> {
    if reflink(from, to) {
        return Ok(());
    }
    let size = from.metadata()?.len();
    let mut at = 0;
    while let Some((start, end)) = next_data(from, at)? {
        copy_range(from, to, start, end)?;
        at = end;
    }
    // A hole at the end was never written. If the file grew meanwhile, the copy keeps the size found at the
    // start.
    if at < size {
        to.set_len(size)?;
    }
    Ok(())
}

/// Returns the next part of a file that has data, from `at` on. Returns `None` if only a hole is left.
fn next_data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match fs::seek(file, fs::SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A filesystem without support for holes: everything is data.
        Err(Errno::INVAL | Errno::NOTSUP) => {
            let size = file.metadata()?.len();
            return Ok((at < size).then_some((at, size)));
        }
        Err(error) => return Err(error.into()),
    };
    Ok(Some((start, fs::seek(file, fs::SeekFrom::Hole(start))?)))
}

fn copy_range(mut from: &File, mut to: &File, start: u64, end: u64) -> io::Result<()> {
    from.seek(SeekFrom::Start(start))?;
    to.seek(SeekFrom::Start(start))?;
    io::copy(&mut from.take(end - start), &mut to).map(drop)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    };

    use super::*;

    #[test]
    fn holes_stay_holes() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        fs::create_dir(path("from")).unwrap();
        for (name, size, data) in [
            ("sparse", 1_u64 << 30, Some(1_u64 << 20)),
            ("empty", 0, None),
            ("hole", 1 << 30, None),
            ("end", 5, Some(0)),
        ] {
            let file = File::create(path("from").join(name)).unwrap();
            file.set_len(size).unwrap();
            if let Some(at) = data {
                file.write_all_at(b"data!", at).unwrap();
            }
        }
        copy_tree(&path("from"), &path("to")).unwrap();
        for name in ["sparse", "empty", "hole", "end"] {
            let (from, to) = (path("from").join(name), path("to").join(name));
            let (a, b) = (fs::metadata(&from).unwrap(), fs::metadata(&to).unwrap());
            assert!(a.len() == b.len() && b.blocks() <= a.blocks().max(64), "{name}: {} blocks", b.blocks());
            for at in [0, 1 << 20] {
                let read = |path| File::open(path).unwrap().read_at(&mut [0; 8], at).unwrap();
                assert_eq!(read(&from), read(&to), "{name}");
            }
        }
        let mut data = [0; 5];
        File::open(path("to/sparse")).unwrap().read_exact_at(&mut data, 1 << 20).unwrap();
        assert_eq!(&data, b"data!");
    }

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
