//! Removing a tree that may be anything.

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

use super::at::{entries, join, open_below, open_dir_at};

/// Directories whose path below the root is longer than this are first moved up to the root, so that every step of the
/// work costs the same however deep the tree is.
const DEEP_BYTES: usize = 1024;

/// Removes whatever is at `path`, and everything below it. Nothing there is success.
///
/// Directories that the owner may not read or write are made so first. Symbolic links are not followed. Only what the
/// caller may do is done: files of other user ids need a caller who may act for them.
///
/// # Errors
/// The first failure; what could be removed before it is gone.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let root = match open_unlocked(fs::CWD, path.as_os_str().as_bytes()) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(fs::unlink(path)?),
        Err(error) => return Err(error.into()),
    };
    let mut moved = 0_u64;
    let mut work = vec![Work::Empty(Vec::new())];
    while let Some(next) = work.pop() {
        match next {
            Work::Empty(path) => {
                let dir = open_below(root.as_fd(), &path)?;
                work.push(Work::Remove(path.clone()));
                for (name, kind) in entries(&dir)? {
                    if kind != FileType::Directory {
                        match fs::unlinkat(&dir, &name, AtFlags::empty()) {
                            Ok(()) | Err(Errno::NOENT) => continue,
                            Err(Errno::ISDIR | Errno::PERM) => {}
                            Err(error) => return Err(error.into()),
                        }
                    }
                    drop(open_unlocked(dir.as_fd(), name.to_bytes())?);
                    let below = join(&path, name.to_bytes());
                    if below.len() > DEEP_BYTES {
                        let up = move_up(root.as_fd(), dir.as_fd(), &name, &mut moved)?;
                        work.push(Work::Empty(up));
                    } else {
                        work.push(Work::Empty(below));
                    }
                }
            }
            Work::Remove(path) if path.is_empty() => {}
            Work::Remove(path) => match fs::unlinkat(&root, OsStr::from_bytes(&path), AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            },
        }
    }
    drop(root);
    match fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
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

/// Moves a directory up to the root of the tree, under a name that is free there.
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
