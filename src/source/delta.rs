//! Deltas: the layer that makes a snapshot over an older source show a newer one.
//!
//! The result is the same as stacking the changes between the two sources on top of the snapshot: edits and
//! deletions override a step's copy of a file, and everything else that a step wrote stays. The newer source
//! is at the bottom already, so the delta contains only those changes that a layer of the snapshot would
//! hide. Usually there are none. A file that differs only in its time does not count as edited: on another
//! machine all times differ, and a step's own copy stays.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, Metadata},
    io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    FrozenSource,
    manifest::{EntryKind, Manifest, ManifestChange, ManifestEntry, Times},
    write::put_symlink,
};
use crate::{
    store::{LayerId, Snapshot, Store, StoreError, error::IoContext, files::stat, staging::imitate},
    tree,
};

/// Returns the layer to put over those of a snapshot so that a step sees the source `new`, or `None` if
/// none is needed. The layer is made once for the same layers and sources. Takes as long as reading two
/// manifests.
///
/// # Errors
/// Returns an error if a manifest cannot be read, or if the layer cannot be written.
pub fn delta(store: &Arc<Store>, old: &Snapshot, new: &FrozenSource) -> Result<Option<LayerId>, StoreError> {
    if old.source == new.id || old.layers.is_empty() {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("hm-exec delta 2\n{}\n{}\n", old.source, new.id).as_bytes());
    for layer in &old.layers {
        hasher.update(format!("{layer}\n").as_bytes());
    }
    let id = LayerId::of_delta(hasher.finalize());
    let home = store.layers().home(&id);
    if store.layers().find(&id)? {
        return Ok(Some(id));
    }
    let (before, after) = (Manifest::of(store, &old.source)?, Manifest::of(store, &new.id)?);
    let layers =
        SnapshotLayers { roots: old.layers.iter().map(|layer| store.layers().dir(layer).join("workspace")).collect() };
    let plan = layers.plan(&before.changes(&after, Times::PassOver))?;
    if plan.is_empty() {
        return Ok(None);
    }
    let staging = store.stage()?;
    let mut delta = Delta { layers: &layers, source: new, root: staging.upper().join("workspace"), made: Vec::new() };
    for (path, action) in &plan {
        delta.write(Path::new(OsStr::from_bytes(path)), *action)?;
    }
    delta.finish()?;
    match fs::rename(staging.home(), &home) {
        // Another process made the same delta first.
        Err(_) if home.is_dir() => {}
        renamed => renamed.doing("make the layer", &home)?,
    }
    Ok(Some(id))
}

/// The `workspace` directories of a snapshot's layers, topmost first.
struct SnapshotLayers {
    roots: Vec<PathBuf>,
}

/// What the layers contain at a path.
enum Seen {
    /// No entry. The source is visible, unless it is `hidden` by an entry of the layers at a parent path.
    Nothing { hidden: bool },
    /// The mark of a removed entry.
    Whiteout,
    /// A file or a link.
    Leaf,
    /// A directory, merged from those of these layers.
    Dir(Vec<usize>),
}

/// The change to write at a path.
#[derive(Clone, Copy)]
enum DeltaAction<'a> {
    Put(ManifestEntry<'a>),
    Hide,
}

type DeltaPlan<'a> = BTreeMap<&'a [u8], DeltaAction<'a>>;

impl SnapshotLayers {
    /// Finds the changes that the layers would hide.
    fn plan<'a>(&self, changes: &[ManifestChange<'a>]) -> Result<DeltaPlan<'a>, StoreError> {
        let mut plan = DeltaPlan::new();
        let mut removed_dirs = Vec::new();
        let mut replaced: Option<&[u8]> = None;
        for change in changes {
            match *change {
                ManifestChange::Added(entry) | ManifestChange::Changed(entry) => {
                    if !entry.is_dir() {
                        replaced = Some(entry.path);
                    }
                    let put = match self.look(entry.as_path())? {
                        Seen::Nothing { hidden: false } => false,
                        Seen::Dir(_) => true,
                        // A step removed a directory of which only the mode changed since.
                        _ => !(entry.is_dir() && matches!(change, ManifestChange::Changed(_))),
                    };
                    if put {
                        plan.insert(entry.path, DeltaAction::Put(entry));
                    }
                }
                // The former contents of a directory that is now a file are removed with it.
                ManifestChange::Removed(entry) if replaced.is_some_and(|dir| is_below(entry.path, dir)) => {}
                ManifestChange::Removed(entry) if entry.is_dir() => removed_dirs.push(entry),
                ManifestChange::Removed(entry) => {
                    if matches!(self.look(entry.as_path())?, Seen::Leaf) {
                        plan.insert(entry.path, DeltaAction::Hide);
                    }
                }
            }
        }
        for dir in removed_dirs.into_iter().rev() {
            if let Seen::Dir(layers) = self.look(dir.as_path())?
                && self.is_empty(dir.path, &layers, &plan)?
            {
                plan.retain(|path, _| !is_below(path, dir.path));
                plan.insert(dir.path, DeltaAction::Hide);
            }
        }
        Ok(plan)
    }

    /// Returns whether a directory is empty after the plan.
    fn is_empty(&self, path: &[u8], layers: &[usize], plan: &DeltaPlan<'_>) -> Result<bool, StoreError> {
        let mut seen: Vec<OsString> = Vec::new();
        for &layer in layers {
            let dir = self.roots[layer].join(OsStr::from_bytes(path));
            for entry in fs::read_dir(&dir).doing("list", &dir)? {
                let entry = entry.doing("list", &dir)?;
                let name = entry.file_name();
                if seen.contains(&name) {
                    continue;
                }
                let hidden = tree::is_whiteout_at(&entry.metadata().doing("read", &entry.path())?)
                    || matches!(plan.get(&tree::join(path, name.as_bytes())[..]), Some(DeltaAction::Hide));
                if !hidden {
                    return Ok(false);
                }
                seen.push(name);
            }
        }
        Ok(true)
    }

    /// Looks up a path in the layers, as overlayfs would.
    fn look(&self, path: &Path) -> Result<Seen, StoreError> {
        let mut layers: Vec<usize> = (0..self.roots.len()).collect();
        let mut hidden = false;
        let mut at = PathBuf::new();
        let mut parts = path.components();
        loop {
            let mut merged = Vec::new();
            for layer in std::mem::take(&mut layers) {
                let path = self.roots[layer].join(&at);
                let Some(metadata) = stat(&path)? else { continue };
                if metadata.is_dir() {
                    merged.push(layer);
                    if !tree::is_opaque_at(&path).doing("read", &path)? {
                        continue;
                    }
                } else if merged.is_empty() {
                    return Ok(match parts.next() {
                        Some(_) => Seen::Nothing { hidden: true },
                        None if tree::is_whiteout_at(&metadata) => Seen::Whiteout,
                        None => Seen::Leaf,
                    });
                }
                hidden = true;
                break;
            }
            if merged.is_empty() {
                return Ok(Seen::Nothing { hidden });
            }
            match parts.next() {
                Some(part) => at.push(part),
                None => return Ok(Seen::Dir(merged)),
            }
            layers = merged;
        }
    }
}

/// The layer that is being written.
struct Delta<'a> {
    layers: &'a SnapshotLayers,
    /// The newer source.
    source: &'a FrozenSource,
    root: PathBuf,
    /// The created directories, and their final attributes.
    made: Vec<(PathBuf, Option<Metadata>)>,
}

impl Delta<'_> {
    fn write(&mut self, path: &Path, action: DeltaAction<'_>) -> Result<(), StoreError> {
        let mut parents: Vec<&Path> = path.ancestors().skip(1).collect();
        while let Some(parent) = parents.pop() {
            self.dir(parent, false)?;
        }
        let place = self.root.join(path);
        match action {
            DeltaAction::Hide => tree::whiteout(&place).doing("hide", &place),
            DeltaAction::Put(entry) => match entry.kind {
                EntryKind::Directory => self.dir(path, true),
                EntryKind::Symlink { target } => put_symlink(&entry, target, &place),
                EntryKind::File { .. } => {
                    tree::copy_file(&self.source.locate(path), &place).doing("write", &place)?;
                    entry.put_attributes(&place)
                }
            },
        }
    }

    /// Creates a directory, with the attributes of the source's directory if that changed, or else of the
    /// directory that was visible so far.
    fn dir(&mut self, path: &Path, changed: bool) -> Result<(), StoreError> {
        let place = self.root.join(path);
        match DirBuilder::new().mode(0o700).create(&place) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(StoreError::io("make the directory", place, error)),
        }
        let shown = match self.layers.look(path)? {
            Seen::Dir(layers) if !changed => self.layers.roots[layers[0]].join(path),
            _ => self.source.locate(path),
        };
        self.made.push((place, stat(&shown)?));
        Ok(())
    }

    fn finish(self) -> Result<(), StoreError> {
        for (path, model) in self.made.into_iter().rev() {
            let Some(model) = model else { continue };
            imitate(&path, Some(&model)).doing("set the attributes of", &path)?;
        }
        Ok(())
    }
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}
