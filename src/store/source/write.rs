//! Writing one layer of a source: what a newer tree has that an older one has not, and marks for what it lacks.
//!
//! The older one is what the layers below show: nothing for the first layer of a stack, which so has the whole tree.
//! Opaque directories, whose mark depends on the steps' user ids, are never needed: a directory over a whiteout or a file
//! hides what was there, and whatever else goes is hidden name by name.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use rustix::io::Errno;

use super::{
    FrozenSource, StoreError,
    read::{Reader, in_parallel},
};
use crate::store::{
    error::Doing,
    layout::make_dir,
    manifest::{Change, Entry, Kind, Manifest, Times},
    tree,
};

/// A layer to be written.
#[derive(Debug)]
pub(super) struct LayerWriter<'a> {
    pub(super) reader: &'a Reader<'a>,
    pub(super) new: &'a Manifest,
    /// A source that the store has, with its manifest. Files that are the same are links to its own.
    pub(super) stored: Option<(&'a FrozenSource, &'a Manifest)>,
}

/// Whether a layer could be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Written {
    Whole,
    /// This filesystem, or who we are, can't mark what is removed.
    NoMarks,
}

impl LayerWriter<'_> {
    /// Writes to `root`, which must not exist, what turns a tree of which `changes` tell the difference into the new one.
    pub(super) fn write(&self, changes: &[Change<'_>], root: &Path) -> Result<Written, StoreError> {
        let workspace = root.join("workspace");
        make_dir(root)?;
        let (mut dirs, mut files) = (BTreeSet::new(), Vec::new());
        for change in changes {
            self.reader.check()?;
            let (entry, removed) = match change {
                Change::Removed(entry) => (entry, true),
                Change::Added(entry) | Change::Changed(entry) => (entry, false),
            };
            if removed && !self.new.find(parent(entry.path)).is_some_and(|dir| dir.is_dir()) {
                // Gone with its directory.
                continue;
            }
            self.make_dirs(parent(entry.path), &workspace, &mut dirs)?;
            let place = workspace.join(entry.as_path());
            match entry.kind {
                _ if removed => match tree::whiteout(&place) {
                    Ok(()) => {}
                    Err(error) if cannot_mark(&error) => return Ok(Written::NoMarks),
                    Err(error) => return Err(StoreError::io("hide", place, error)),
                },
                Kind::Directory => self.make_dirs(entry.path, &workspace, &mut dirs)?,
                Kind::Symlink { target } => put_symlink(entry, target, &place)?,
                Kind::File { .. } => files.push(*entry),
            }
        }
        in_parallel(&files, |entry, buffer| {
            let place = workspace.join(entry.as_path());
            if self.link(entry, &place) { Ok(()) } else { self.reader.copy(entry, &place, buffer) }
        })?;
        // What is in a directory comes after it, and so gets its time first.
        for path in dirs.iter().rev() {
            if let Some(entry) = self.new.find(path) {
                entry.put_attributes(&workspace.join(entry.as_path()))?;
            }
        }
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).doing("set the mode of", root)?;
        Ok(Written::Whole)
    }

    /// Makes a directory of the layer, and those above it.
    fn make_dirs<'p>(&self, path: &'p [u8], workspace: &Path, made: &mut BTreeSet<&'p [u8]>) -> Result<(), StoreError> {
        if made.contains(path) {
            return Ok(());
        }
        let mut missing = vec![path];
        let mut at = path;
        while !at.is_empty() {
            at = parent(at);
            if made.contains(at) {
                break;
            }
            missing.push(at);
        }
        for path in missing.into_iter().rev() {
            let place = workspace.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path));
            DirBuilder::new().mode(0o700).create(&place).doing("make the directory", &place)?;
            made.insert(path);
        }
        Ok(())
    }

    /// Links a file of the stored source, if that has the same one. False where it must be copied.
    fn link(&self, entry: &Entry<'_>, place: &Path) -> bool {
        let Some((frozen, manifest)) = self.stored else { return false };
        let is_same = manifest.find(entry.path).is_some_and(|it| it.is_same(entry, Times::Count));
        // A file may have too many links, or its layer be lost.
        is_same && fs::hard_link(frozen.locate(entry.as_path()), place).is_ok()
    }
}

impl Entry<'_> {
    /// Sets mode and time.
    pub(in crate::store) fn put_attributes(&self, path: &Path) -> Result<(), StoreError> {
        fs::set_permissions(path, fs::Permissions::from_mode(self.mode)).doing("set the mode of", path)?;
        self.put_mtime(path)
    }

    fn put_mtime(&self, path: &Path) -> Result<(), StoreError> {
        let times = tree::mtime(self.mtime.0, self.mtime.1.into());
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .doing("set the time of", path)
    }
}

/// Makes a symbolic link, with its time.
pub(in crate::store) fn put_symlink(entry: &Entry<'_>, target: &[u8], path: &Path) -> Result<(), StoreError> {
    let target: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(target);
    std::os::unix::fs::symlink(target, path).doing("make the link", path)?;
    entry.put_mtime(path)
}

/// The directory of a path; that of the root's is the root's.
fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |end| &path[..end])
}

fn cannot_mark(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::NOTSUP | Errno::INVAL))
}
