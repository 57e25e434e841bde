//! Walks down a tree and up again, one level at a time.
//!
//! To open each directory by its path from the top takes time quadratic in the depth, and paths longer than
//! `PATH_MAX` cannot be opened at once. So a walk holds one current directory, goes down by name and up by
//! `..`, and checks that it returns to the directory that it came from. A tree that changes meanwhile cannot
//! lead it elsewhere.

use std::{
    ffi::{CStr, CString},
    io,
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{self, Dev},
    io::Errno,
};

use super::at::{open_below, open_dir_at};

/// A walk with a current directory in a tree.
#[derive(Debug)]
pub struct Descent {
    /// The directory where the walk started; `None` while that is the current one.
    top: Option<OwnedFd>,
    dir: OwnedFd,
    /// The current directory's path below the top.
    path: Vec<u8>,
    /// The directories above, and the lengths of their paths.
    above: Vec<(Dev, u64, usize)>,
}

impl Descent {
    /// Returns a walk that starts at a directory.
    pub fn new(top: OwnedFd) -> Self {
        Self { top: None, dir: top, path: Vec::new(), above: Vec::new() }
    }

    /// Returns the current directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Returns the current directory's path below the top; the top's is empty.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Goes down to the directory `name`, which must not be a link. On an error the current directory stays
    /// the same.
    pub fn enter(&mut self, name: &CStr) -> io::Result<()> {
        let below = open_dir_at(&self.dir, name)?;
        let here = fs::fstat(&self.dir)?;
        self.above.push((here.st_dev, here.st_ino, self.path.len()));
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.to_bytes());
        let above = std::mem::replace(&mut self.dir, below);
        self.top.get_or_insert(above);
        Ok(())
    }

    /// Goes up one level, and returns the directory that was left. At the top the walk stays there.
    ///
    /// # Errors
    /// Returns an error if the directory was moved meanwhile.
    pub fn leave(&mut self) -> io::Result<OwnedFd> {
        let Some(&(device, inode, length)) = self.above.last() else { return self.dir.try_clone() };
        let up = match (open_dir_at(&self.dir, c".."), &self.top) {
            // `..` cannot be opened in a directory that is readable but not searchable.
            (Err(error), Some(top)) if error.kind() == io::ErrorKind::PermissionDenied => {
                open_below(top.as_fd(), &self.path[..length])?
            }
            (up, _) => up?,
        };
        let found = fs::fstat(&up)?;
        if (found.st_dev, found.st_ino) != (device, inode) {
            return Err(Errno::STALE.into());
        }
        self.above.pop();
        self.path.truncate(length);
        Ok(std::mem::replace(&mut self.dir, up))
    }

    /// Visits the current directory and all those below it, depth first. `visit` returns the names of the
    /// directories to enter from the current one, in order.
    ///
    /// # Errors
    /// Returns the first error of `visit`, or of going to a directory.
    pub fn walk(&mut self, mut visit: impl FnMut(&Self) -> io::Result<Vec<CString>>) -> io::Result<()> {
        // The names of directories to enter, the next one last; `None` means to go up again.
        let mut work: Vec<Option<CString>> = visit(self)?.into_iter().rev().map(Some).collect();
        while let Some(next) = work.pop() {
            match next {
                None => drop(self.leave()?),
                Some(name) => {
                    self.enter(&name)?;
                    work.push(None);
                    work.extend(visit(self)?.into_iter().rev().map(Some));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            IdMap,
            at::{entries, open_dir},
            copy_tree, flatten, layer_tar, pack, remove_tree,
        },
        *,
    };

    #[test]
    fn a_tree_deeper_than_any_path_is_copied_merged_measured_packed_and_removed() {
        const LEVELS: usize = 4_000;
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        std::fs::create_dir(path("tree")).unwrap();
        let mut dir = open_dir(&path("tree")).unwrap();
        for _ in 0..LEVELS {
            fs::mkdirat(&dir, c"d", fs::Mode::RWXU).unwrap();
            dir = open_dir_at(&dir, c"d").unwrap();
        }
        drop(dir);
        copy_tree(&path("tree"), &path("copy")).unwrap();
        std::fs::create_dir(path("flat")).unwrap();
        flatten(&[path("tree"), path("copy")], &path("flat"), IdMap::Single).unwrap();
        for name in ["copy", "flat"] {
            let mut walk = Descent::new(open_dir(&path(name)).unwrap());
            while walk.enter(c"d").is_ok() {}
            assert_eq!(walk.path().len(), 2 * LEVELS - 1, "{name}");
        }
        {
            let entries = super::super::seal(&path("tree")).unwrap().entries;
            assert_eq!(entries, LEVELS as u64 + 1);
            let own = |name| super::super::measure(&path(name)).unwrap().own;
            assert_eq!(own("tree"), own("flat"));
        }
        // Streams contain every path in full, so fewer levels are used here.
        let mut part = Descent::new(open_dir(&path("copy")).unwrap());
        (0..LEVELS - 1000).for_each(|_| part.enter(c"d").unwrap());
        fs::renameat(part.dir(), c"d", fs::CWD, path("part")).unwrap();
        layer_tar(&path("part"), std::io::sink(), IdMap::Single).unwrap();
        pack(&path("part"), std::io::sink()).unwrap();
        for name in ["tree", "copy", "flat", "part"] {
            remove_tree(&path(name)).unwrap();
        }
    }

    #[test]
    fn a_walk_visits_each_directory_right_before_its_content() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(top.path().join("a/b")).unwrap();
        std::fs::create_dir_all(top.path().join("c")).unwrap();
        let mut visited = Vec::new();
        let mut walk = Descent::new(open_dir(top.path()).unwrap());
        let walked = walk.walk(|walk| {
            visited.push(walk.path().to_vec());
            let mut names: Vec<CString> = entries(walk.dir())?.into_iter().map(|(name, _)| name).collect();
            names.sort_unstable();
            Ok(names)
        });
        walked.unwrap();
        assert_eq!(visited, [&b""[..], b"a", b"a/b", b"c"]);
        assert_eq!(walk.path(), b"");
    }

    #[test]
    fn the_way_up_is_the_way_down() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(top.path().join("a/b")).unwrap();
        let mut walk = Descent::new(open_dir(top.path()).unwrap());
        walk.enter(c"a").unwrap();
        walk.enter(c"b").unwrap();
        assert_eq!(walk.path(), b"a/b");
        assert!(walk.enter(c"none").is_err());
        drop(walk.leave().unwrap());
        assert_eq!(walk.path(), b"a");
        walk.enter(c"b").unwrap();
        std::fs::rename(top.path().join("a/b"), top.path().join("b")).unwrap();
        assert!(walk.leave().is_err(), "it was moved");
    }
}
