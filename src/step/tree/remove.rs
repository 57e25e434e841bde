//! Removes a tree of any shape.

use std::{
    ffi::{CString, OsStr},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{self, AtFlags, FileType, Mode},
    io::Errno,
};

use super::at::{entries_once, join, open_below, open_dir_at};

/// The path length, in bytes, above which a directory is first moved up to the root. So every operation costs
/// the same at any depth of the tree.
const DEEP_BYTES: usize = 128;

/// Removes the file or tree at `path`. Succeeds if nothing is there.
///
/// Directories that the owner may not read or write get these permissions first. Symbolic links are not
/// followed. The removal is limited by the caller's permissions: to remove files of other user ids, the
/// caller must have privileges over those ids.
///
/// # Errors
/// Returns the first error. Everything else that can be removed is removed: an immutable file, or a mount
/// point, stays with the directories above it, and nothing else stays.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    if is_removed(fs::rmdir(path)) {
        return Ok(());
    }
    let root = match open_unlocked(fs::CWD, path.as_os_str().as_bytes()) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(fs::unlink(path)?),
        Err(error) => return Err(error.into()),
    };
    let mut removal = Removal { root, moved: 0, failure: None };
    let mut work = vec![Work::Empty(Vec::new())];
    while let Some(next) = work.pop() {
        match next {
            Work::Empty(path) => {
                let emptied = removal.empty(&path, &mut work);
                removal.note(emptied);
            }
            Work::Remove(path) => {
                let removed = fs::unlinkat(&removal.root, OsStr::from_bytes(&path), AtFlags::REMOVEDIR);
                removal.note(removed);
            }
        }
    }
    if let Some(failure) = removal.failure {
        return Err(failure.into());
    }
    drop(removal);
    match fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

struct Removal {
    root: OwnedFd,
    /// The number of directories that were moved up.
    moved: u64,
    /// The first error.
    failure: Option<Errno>,
}

impl Removal {
    fn note(&mut self, done: Result<(), Errno>) {
        if let Err(error) = done
            && error != Errno::NOENT
        {
            self.failure.get_or_insert(error);
        }
    }

    /// Removes the files of the directory at `path`, and adds the rest to `work`.
    fn empty(&mut self, path: &[u8], work: &mut Vec<Work>) -> Result<(), Errno> {
        let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let dir = open_below(self.root.as_fd(), path).map_err(errno)?;
        if !path.is_empty() {
            work.push(Work::Remove(path.to_vec()));
        }
        for (name, kind) in entries_once(&dir).map_err(errno)? {
            let below = self.entry(&dir, path, &name, kind);
            match below {
                Ok(below) => work.extend(below.map(Work::Empty)),
                Err(error) => self.note(Err(error)),
            }
        }
        Ok(())
    }

    /// Removes an entry. If it is a directory, returns its path; it must be emptied first.
    fn entry(&mut self, dir: &OwnedFd, path: &[u8], name: &CString, kind: FileType) -> Result<Option<Vec<u8>>, Errno> {
        if kind != FileType::Directory {
            match fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(None),
                Err(Errno::ISDIR) => {}
                // Some systems return this error for a directory.
                Err(error @ Errno::PERM) if !is_dir(dir, name) => return Err(error),
                Err(Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
        if is_removed(fs::unlinkat(dir, name, AtFlags::REMOVEDIR)) {
            return Ok(None);
        }
        drop(open_unlocked(dir.as_fd(), name.to_bytes())?);
        let below = join(path, name.to_bytes());
        if below.len() <= DEEP_BYTES {
            return Ok(Some(below));
        }
        match move_up(self.root.as_fd(), dir.as_fd(), name, &mut self.moved) {
            Ok(up) => Ok(Some(up)),
            // It can be neither moved nor removed, but it can be emptied.
            Err(Errno::PERM | Errno::BUSY) => Ok(Some(below)),
            Err(error) => Err(error),
        }
    }
}

/// Returns whether a directory is gone. If it is not empty, or cannot be removed yet, it is emptied first.
fn is_removed(removed: Result<(), Errno>) -> bool {
    matches!(removed, Ok(()) | Err(Errno::NOENT))
}

fn is_dir(dir: &OwnedFd, name: &CString) -> bool {
    fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

enum Work {
    Empty(Vec<u8>),
    Remove(Vec<u8>),
}

/// Opens a directory and gives its owner every permission on it.
fn open_unlocked(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let name = OsStr::from_bytes(name);
    let open = || open_dir_at(parent, name).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
    let dir = match open() {
        Ok(dir) => dir,
        Err(Errno::ACCESS) => {
            fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            return open();
        }
        Err(error) => return Err(error),
    };
    let mode = Mode::from_raw_mode(fs::fstat(&dir)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        fs::fchmod(&dir, Mode::RWXU)?;
    }
    Ok(dir)
}

/// Moves a directory up to the root of the tree, under an unused name.
fn move_up(root: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CString, moved: &mut u64) -> Result<Vec<u8>, Errno> {
    loop {
        *moved += 1;
        let up = format!(".hm-removing-{moved}");
        match fs::renameat(dir, name, root, &up) {
            Ok(()) => return Ok(up.into_bytes()),
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::{super::at::open_dir, *};

    #[test]
    fn removes_directories_that_nobody_may_enter() {
        let top = tempfile::tempdir().unwrap();
        let tree = top.path().join("tree");
        fs::create_dir_all(tree.join("locked/inner")).unwrap();
        fs::write(tree.join("locked/inner/file"), "x").unwrap();
        fs::set_permissions(tree.join("locked/inner"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(tree.join("locked"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o500)).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn removes_trees_deeper_than_any_path() {
        let top = tempfile::tempdir().unwrap();
        let tree = top.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut dir = open_dir(&tree).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&dir, "deeper", Mode::RWXU).unwrap();
            dir = open_dir_at(&dir, "deeper").unwrap();
        }
        drop(dir);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn follows_no_link() {
        let top = tempfile::tempdir().unwrap();
        let (tree, kept) = (top.path().join("tree"), top.path().join("kept"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("link")).unwrap();
        std::os::unix::fs::symlink(&kept, top.path().join("top-link")).unwrap();
        remove_tree(&tree).unwrap();
        remove_tree(&top.path().join("top-link")).unwrap();
        remove_tree(&top.path().join("nothing")).unwrap();
        assert!(kept.join("file").exists());
        assert!(!top.path().join("top-link").is_symlink());
    }
}
