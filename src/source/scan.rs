//! What a source consists of, to notice edits: names and statuses, by the same rules as a frozen source. No
//! file is read.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use super::walk::{FileKind, FileStatus, SourceWalk};
use crate::store::StoreError;

/// The names and statuses of what is in a directory and not ignored.
#[derive(Debug, Default)]
pub struct SourceScan {
    entries: BTreeMap<PathBuf, FileStatus>,
}

impl SourceScan {
    /// Lists the tree in `dir`, except for its pipelines, what is ignored, and the directory `store`. Blocks.
    ///
    /// # Errors
    /// Returns an error if the tree cannot be read, or if it changes in the meantime.
    pub fn of(dir: &Path, store: &Path) -> Result<Self, StoreError> {
        let unreadable = |source| StoreError::Unreadable { path: dir.into(), source };
        let source = dir.canonicalize().map_err(unreadable)?;
        let abandoned = AtomicBool::new(false);
        let tree = SourceWalk { source: &source, store, hidden: None, abandoned: &abandoned }.run()?;
        let path = |index| source.join(OsStr::from_bytes(tree.path(index)));
        Ok(Self { entries: (0..tree.len()).map(|index| (path(index), *tree.status(index))).collect() })
    }

    /// Adds what another scan has.
    pub fn extend(&mut self, other: Self) {
        self.entries.extend(other.entries);
    }

    /// Returns the absolute paths of the directories.
    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        let dirs = self.entries.iter().filter(|(_, status)| status.kind == FileKind::Directory);
        dirs.map(|(path, _)| path.as_path())
    }

    /// Returns the absolute paths of what was added, removed or changed since an `older` scan. A directory
    /// changes if its mode does.
    #[must_use]
    pub fn edits_since(&self, older: &Self) -> Vec<PathBuf> {
        let is_edited = |path: &Path, status: &FileStatus| match older.entries.get(path) {
            Some(other) => !is_same(status, other),
            None => true,
        };
        let new = self.entries.iter().filter(|(path, status)| is_edited(path, status));
        let removed = older.entries.keys().filter(|path| !self.entries.contains_key(*path));
        let mut edits: Vec<PathBuf> = new.map(|(path, _)| path).chain(removed).cloned().collect();
        edits.sort();
        edits
    }
}

/// Returns whether nothing was edited. What is ignored changes the times of directories, too.
fn is_same(status: &FileStatus, other: &FileStatus) -> bool {
    match status.kind {
        FileKind::Directory => (other.kind, other.mode) == (FileKind::Directory, status.mode),
        FileKind::File | FileKind::Symlink => status == other,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn edits_are_noticed_and_what_is_ignored_is_not() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().canonicalize().unwrap();
        fs::create_dir_all(dir.join("src/deep")).unwrap();
        fs::create_dir(dir.join("target")).unwrap();
        fs::write(dir.join(".ignore"), "target\n*.log\n").unwrap();
        fs::write(dir.join("src/a"), "one").unwrap();
        fs::write(dir.join("src/b"), "one").unwrap();
        let scan = || SourceScan::of(&dir, Path::new("/nowhere")).unwrap();
        let first = scan();
        let dirs: Vec<&Path> = first.dirs().collect();
        assert_eq!(dirs, [dir.clone(), dir.join("src"), dir.join("src/deep")]);
        fs::write(dir.join("target/out"), "").unwrap();
        fs::write(dir.join("src/run.log"), "").unwrap();
        assert_eq!(scan().edits_since(&first), Vec::<PathBuf>::new());

        // One edit of each kind; the second leaves the size as it was.
        fs::write(dir.join("src/a"), "three").unwrap();
        fs::write(dir.join("src/b.new"), "two").unwrap();
        fs::rename(dir.join("src/b.new"), dir.join("src/b")).unwrap();
        fs::write(dir.join("src/deep/c"), "").unwrap();
        fs::set_permissions(dir.join("src/deep"), fs::Permissions::from_mode(0o700)).unwrap();
        let names = ["src/a", "src/b", "src/deep", "src/deep/c"].map(|name| dir.join(name));
        let second = scan();
        assert_eq!(second.edits_since(&first), names);
        fs::remove_dir_all(dir.join("src/deep")).unwrap();
        assert_eq!(scan().edits_since(&second), names[2..]);
    }
}
