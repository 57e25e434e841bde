//! Workspaces kept whole: the snapshots of a runner that has no layers.
//!
//! A workspace is a plain directory. One step changes it in place, then it is kept by rename and copied for
//! each child. It carries the id of the source that it was made from, so that a child with a newer source
//! gets the difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, DirBuilder, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    FrozenSource, SourceTimes,
    manifest::{EntryKind, Manifest, ManifestChange, ManifestEntry, Time, Times},
    stat_cache::now,
    times::{later_than, let_pass},
    touched::{Touched, parent},
    write::{put_mtime, put_symlink},
};
use crate::{
    store::{
        LayerId, SourceId, Staging, Store, StoreError,
        error::IoContext,
        files::{stat, write_new},
    },
    tree,
};

/// Keeps the `workspace` of a staging under an id, by rename.
pub(crate) fn keep(store: &Store, staging: Staging, source: &SourceId) -> Result<LayerId, StoreError> {
    let path = staging.home().join("source");
    write_new(&path, source.as_str().as_bytes())?;
    let id = store.instance().new_layer_id()?;
    let place = home(store, &id);
    fs::rename(staging.home(), &place).doing("keep the workspace", &place)?;
    drop(staging);
    Ok(id)
}

/// Copies a source to `into`, which must not exist, until `abandoned` is set.
pub(crate) fn copy_source(source: &FrozenSource, into: &Path, abandoned: &AtomicBool) -> Result<(), StoreError> {
    let manifest = source.manifest()?;
    for entry in manifest.entries() {
        if abandoned.load(Ordering::Relaxed) {
            return Err(StoreError::Abandoned);
        }
        let path = into.join(entry.as_path());
        match entry.kind {
            EntryKind::Directory => DirBuilder::new().mode(0o700).create(&path).doing("make the directory", &path)?,
            EntryKind::Symlink { target } => put_symlink(&entry, target, &path)?,
            EntryKind::File { .. } => {
                tree::copy_file(&source.locate(entry.as_path()), &path).doing("write", &path)?;
                entry.put_attributes(&path)?;
            }
        }
    }
    let mut dirs = manifest.entries().rev().filter(ManifestEntry::is_dir);
    dirs.try_for_each(|entry| entry.put_attributes(&into.join(entry.as_path())))
}

/// Copies a kept workspace to `into`, which must not exist, and updates it to `source`. Returns `None` if
/// there is no such workspace. Takes as long as copying the workspace.
pub(crate) fn copy(store: &Store, id: &LayerId, into: &Path, source: &FrozenSource) -> Result<Option<()>, StoreError> {
    let home = home(store, id);
    let path = home.join("source");
    let saw = match fs::read_to_string(&path) {
        Ok(text) => SourceId::parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("read", path, error)),
    };
    let saw = saw.ok_or_else(|| StoreError::Corrupt { path, reason: "it does not name a source".into() })?;
    let from = home.join("root/workspace");
    tree::copy_tree(&from, into).doing("copy", &from)?;
    if saw != source.id {
        update(store, into, &saw, source)?;
    }
    Ok(Some(()))
}

/// Removes a kept workspace. Succeeds if there is none.
pub(crate) fn remove(store: &Store, id: &LayerId) -> Result<(), StoreError> {
    store.trash().discard_from(&home(store, id))
}

/// Applies the difference between two sources. Edits and deletions override the step's changes, and
/// everything else stays. With [normal](SourceTimes::Normal) times, edits get a later time than everything in
/// the workspace.
fn update(store: &Store, workspace: &Path, old: &SourceId, new: &FrozenSource) -> Result<(), StoreError> {
    let (before, after) = (Manifest::of(store, old)?, Manifest::of(store, &new.id)?);
    if new.times == SourceTimes::Real {
        return apply(&before.changes(&after, Times::OfFiles), workspace, new, None);
    }
    let changes = before.changes(&after, Times::PassOver);
    let touched = Touched::by(&changes, &after);
    let newest = tree::newest(workspace).doing("read", workspace)?;
    let time = later_than(if newest.is_complete { newest.mtime } else { newest.mtime.max(now()) }, [&before, &after]);
    let at = |path: &[u8]| Path::new(OsStr::from_bytes(path)).to_owned();
    // Writing to a directory changes its time.
    let parents: BTreeSet<&[u8]> = changes.iter().map(|change| parent(change.entry().path)).collect();
    let mut times: BTreeMap<PathBuf, Time> = BTreeMap::new();
    for dir in parents {
        if let Some(path) = existing(workspace, &at(dir))
            && let Some(found) = stat(&path)?.filter(Metadata::is_dir)
        {
            times.insert(path, (found.mtime(), u32::try_from(found.mtime_nsec()).unwrap_or(0)));
        }
    }
    apply(&changes, workspace, new, Some(time))?;
    let edited = changes.iter().map(|change| change.entry().path).collect::<BTreeSet<_>>();
    for path in touched.behind_links.keys().filter(|path| !edited.contains(*path)) {
        if let Some(path) = existing(workspace, &at(path)) {
            put_mtime(&path, time)?;
        }
    }
    let edited = edited.into_iter().filter(|path| after.find(path).is_some_and(|entry| entry.is_dir()));
    let dirs = touched.dirs.iter().copied().chain(edited);
    times.extend(dirs.filter_map(|dir| Some((existing(workspace, &at(dir))?, time))));
    for (path, mtime) in &times {
        if stat(path)?.is_some_and(|found| found.is_dir()) {
            put_mtime(path, *mtime)?;
        }
    }
    let_pass(time);
    Ok(())
}

/// Applies changes. What is written gets the time `time`, or its own one if there is none.
fn apply(
    changes: &[ManifestChange<'_>],
    workspace: &Path,
    new: &FrozenSource,
    time: Option<Time>,
) -> Result<(), StoreError> {
    for change in changes {
        match *change {
            ManifestChange::Removed(entry) if entry.is_dir() => {}
            ManifestChange::Removed(entry) => {
                if let Some(path) = existing(workspace, entry.as_path())
                    && !path.is_dir()
                {
                    fs::remove_file(&path).doing("remove", &path)?;
                }
            }
            ManifestChange::Added(entry) | ManifestChange::Changed(entry) => {
                put(&ManifestEntry { mtime: time.unwrap_or(entry.mtime), ..entry }, workspace, new)?;
            }
        }
    }
    for change in changes.iter().rev() {
        if let ManifestChange::Removed(entry) = change
            && entry.is_dir()
            && let Some(path) = existing(workspace, entry.as_path())
        {
            // Stays if a step put files of its own there.
            let _ = fs::remove_dir(path);
        }
    }
    Ok(())
}

/// Returns the directory of a kept workspace.
fn home(store: &Store, id: &LayerId) -> PathBuf {
    store.paths().workspaces().join(id.as_str())
}

/// Returns the path of an entry if every parent of it is a directory of the workspace. A step may have
/// replaced parents with symbolic links.
fn existing(workspace: &Path, entry: &Path) -> Option<PathBuf> {
    let mut path = workspace.to_path_buf();
    for part in entry {
        if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            return None;
        }
        path.push(part);
    }
    fs::symlink_metadata(&path).is_ok().then_some(path)
}

/// Puts an entry of the newer source in its place, and replaces any file that a step put there or in the
/// place of its parents.
fn put(entry: &ManifestEntry<'_>, workspace: &Path, source: &FrozenSource) -> Result<(), StoreError> {
    let mut path = workspace.to_path_buf();
    let mut parts = entry.as_path().components().peekable();
    while let Some(part) = parts.next() {
        path.push(part);
        let found = fs::symlink_metadata(&path).ok();
        let wants_dir = parts.peek().is_some() || entry.is_dir();
        if found.as_ref().is_some_and(|found| found.is_dir() == wants_dir && wants_dir) {
            continue;
        }
        tree::remove_tree(&path).doing("replace", &path)?;
        if wants_dir {
            DirBuilder::new().mode(0o755).create(&path).doing("make the directory", &path)?;
        }
    }
    match entry.kind {
        EntryKind::Directory => entry.put_attributes(&path),
        EntryKind::Symlink { target } => put_symlink(entry, target, &path),
        EntryKind::File { .. } => {
            tree::copy_file(&source.locate(entry.as_path()), &path).doing("write", &path)?;
            entry.put_attributes(&path)
        }
    }
}
