//! Writes one layer of a source: the entries that a newer tree has and an older one lacks, and marks for
//! those that it removes.
//!
//! The older tree is what the layers below show. For the first layer of a stack it is empty, so that layer
//! contains the whole tree. Opaque directories, whose mark depends on the steps' user ids, are never needed:
//! a directory over a whiteout or a file hides what was there, and everything else that is removed is hidden
//! name by name.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use rustix::io::Errno;

use super::{
    FrozenSource,
    manifest::{EntryKind, Manifest, ManifestChange, ManifestEntry, Time, Times},
    read::{SourceReader, in_parallel},
    touched::parent,
};
use crate::{
    store::{StoreError, error::IoContext, files::make_dir},
    tree,
};

/// A layer to write.
#[derive(Debug)]
pub(super) struct LayerWriter<'a> {
    pub(super) reader: &'a SourceReader<'a>,
    pub(super) new: &'a Manifest,
    /// A source in the store, with its manifest. Equal files become hard links to its files.
    pub(super) stored: Option<(&'a FrozenSource, &'a Manifest)>,
}

/// Whether a layer could be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Written {
    Whole,
    /// This filesystem, or this user's privileges, do not allow marking removed entries.
    NoMarks,
}

impl LayerWriter<'_> {
    /// Writes the layer that turns an older tree into the new one to `root`, which must not exist. `changes`
    /// are the differences between the two.
    pub(super) fn write(&self, changes: &[ManifestChange<'_>], root: &Path) -> Result<Written, StoreError> {
        let workspace = root.join("workspace");
        make_dir(root)?;
        let (mut dirs, mut files) = (BTreeSet::new(), Vec::new());
        for change in changes {
            self.reader.check()?;
            let (entry, removed) = match change {
                ManifestChange::Removed(entry) => (entry, true),
                ManifestChange::Added(entry) | ManifestChange::Changed(entry) => (entry, false),
            };
            if removed && !self.new.find(parent(entry.path)).is_some_and(|dir| dir.is_dir()) {
                // Removed together with its directory.
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
                EntryKind::Directory => self.make_dirs(entry.path, &workspace, &mut dirs)?,
                EntryKind::Symlink { target } => put_symlink(entry, target, &place)?,
                EntryKind::File { .. } => files.push(*entry),
            }
        }
        let progress = self.reader.progress;
        progress.begin_copying(files.len());
        in_parallel(&files, |entry, buffer| {
            let place = workspace.join(entry.as_path());
            if !self.link(entry, &place) {
                self.reader.copy(entry, &place, buffer)?;
            }
            progress.file_copied();
            Ok(())
        })?;
        // The contents of a directory come after it, and so get their times first.
        for path in dirs.iter().rev() {
            if let Some(entry) = self.new.find(path) {
                entry.put_attributes(&workspace.join(entry.as_path()))?;
            }
        }
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).doing("set the mode of", root)?;
        Ok(Written::Whole)
    }

    /// Creates a directory of the layer and its parents.
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

    /// Creates a hard link to a file of the stored source, if it has the same file. Returns false if the file
    /// has to be copied.
    fn link(&self, entry: &ManifestEntry<'_>, place: &Path) -> bool {
        let Some((frozen, manifest)) = self.stored else { return false };
        let is_same = manifest.find(entry.path).is_some_and(|it| it.is_same(entry, Times::Count));
        // A file may have too many links, or its layer may be lost.
        is_same && fs::hard_link(frozen.locate(entry.as_path()), place).is_ok()
    }
}

impl ManifestEntry<'_> {
    /// Sets the mode and the time.
    pub(super) fn put_attributes(&self, path: &Path) -> Result<(), StoreError> {
        fs::set_permissions(path, fs::Permissions::from_mode(self.mode)).doing("set the mode of", path)?;
        put_mtime(path, self.mtime)
    }
}

/// Sets the modification time of a file, a directory or a link itself.
pub(super) fn put_mtime(path: &Path, (seconds, nanoseconds): Time) -> Result<(), StoreError> {
    let times = tree::mtime(seconds, nanoseconds.into());
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .doing("set the time of", path)
}

/// Creates a symbolic link, with its time.
pub(super) fn put_symlink(entry: &ManifestEntry<'_>, target: &[u8], path: &Path) -> Result<(), StoreError> {
    let target: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(target);
    std::os::unix::fs::symlink(target, path).doing("make the link", path)?;
    put_mtime(path, entry.mtime)
}

fn cannot_mark(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::NOTSUP | Errno::INVAL))
}
