//! Deltas: the layer that makes a snapshot over an older source show a newer one.
//!
//! The result is the same as stacking the changes between the two sources on top of the snapshot: edits and
//! deletions override a step's copy of a file, and everything else that a step wrote stays. The newer source
//! is at the bottom already. The delta contains every change, because each gets a time later than everything
//! in the snapshot: build tools compare times, and would overlook an edit that is older than what they built.
//!
//! With [real](SourceTimes::Real) times, the delta contains only those changes that a layer of the snapshot
//! would hide. Usually there are none. In either case a file that differs only in its time does not count as
//! edited: on another machine all times differ, and a step's own copy stays.

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
    FrozenSource, HiddenFiles, SourceTimes,
    frozen::record_manifest,
    manifest::{EntryKind, Manifest, ManifestChange, ManifestEntry, Time, Times},
    read::in_parallel,
    shown_times::ShownTimes,
    times::let_pass,
    touched::Touched,
    write::{put_mtime, put_symlink},
};
use crate::{
    store::{
        CacheDir, LayerId, Snapshot, SourceId, Store, StoreError, error::IoContext, files::stat, staging::imitate,
    },
    tree,
};

/// Returns the layer to put over those of a snapshot so that a step sees the source `new`, or `None` if
/// none is needed. The layer is made once for the same layers and sources. Blocks while two manifests are
/// read, and, if the layer is new, while the snapshot's layers are walked and the changed files copied. If
/// the snapshot was made less than a second ago, blocks until the second is over.
///
/// # Errors
/// Returns an error if a manifest cannot be read, or if the layer cannot be written.
pub fn delta(store: &Arc<Store>, old: &Snapshot, new: &FrozenSource) -> Result<Option<LayerId>, StoreError> {
    Ok(delta_with_caches(store, Some(old), &[], new)?.layer)
}

/// Does the same as [`delta`] for a step that does not see the `hidden` files of its source: nothing about
/// these is in the layer.
///
/// # Errors
/// Returns the errors of [`delta`].
pub(crate) fn delta_of_shown(
    store: &Arc<Store>,
    old: &Snapshot,
    new: &FrozenSource,
    hidden: &HiddenFiles,
) -> Result<Option<LayerId>, StoreError> {
    Ok(delta_between(store, (Some(old), new), &[], Some(hidden))?.layer)
}

/// What a step sees of its source, beyond the source's own layers.
#[derive(Debug, Clone)]
pub(crate) struct SourceDelta {
    /// The layer to put over those of the parent, if one is needed.
    pub(crate) layer: Option<LayerId>,
    /// The source with the times that the step sees because of its cache directories: a manifest.
    pub(crate) seen: SourceId,
    /// The latest time that was chosen, or zero.
    pub(crate) latest: Time,
}

/// Does the same as [`delta`] for a step that may have no parent, and that has cache directories. What
/// differs from the source that one of those was made from has a time later than everything in it. What is
/// the same keeps the time that it had there.
///
/// # Errors
/// Returns the errors of [`delta`].
pub(crate) fn delta_with_caches(
    store: &Arc<Store>,
    parent: Option<&Snapshot>,
    caches: &[CacheDir],
    new: &FrozenSource,
) -> Result<SourceDelta, StoreError> {
    delta_between(store, (parent, new), caches, None)
}

/// Makes the delta to a source for a step that does not see the `hidden` files of it.
fn delta_between(
    store: &Arc<Store>,
    (parent, new): (Option<&Snapshot>, &FrozenSource),
    caches: &[CacheDir],
    hidden: Option<&HiddenFiles>,
) -> Result<SourceDelta, StoreError> {
    let mut result = SourceDelta { layer: None, seen: new.id.clone(), latest: (0, 0) };
    let old = parent.filter(|old| old.source != new.id && !old.layers.is_empty());
    let differs = |cache: &&CacheDir| new.times == SourceTimes::Normal && cache.source != new.id;
    let caches: Vec<&CacheDir> = caches.iter().filter(differs).collect();
    if old.is_none() && caches.is_empty() {
        return Ok(result);
    }
    let parent_layers: &[LayerId] = parent.map_or(&[], |parent| &parent.layers);
    let version = match new.times {
        SourceTimes::Normal => 3,
        SourceTimes::Real => 2,
    };
    let mut hasher = blake3::Hasher::new();
    let seen = old.map_or(&new.id, |old| &old.source);
    hasher.update(format!("hm-exec delta {version}\n{seen}\n{}\n", new.id).as_bytes());
    for layer in parent_layers {
        hasher.update(format!("{layer}\n").as_bytes());
    }
    if let Some(hidden) = hidden {
        hasher.update(b"without ").update(&hidden.digest());
    }
    // Steps that start at once often need the same delta.
    let _turn = store.layers().delta_turn();
    if caches.is_empty() {
        let id = LayerId::of_delta(hasher.finalize());
        if store.layers().find(&id)? {
            return Ok(SourceDelta { layer: Some(id), ..result });
        }
    }
    let shown = |id: &SourceId| {
        let manifest = Manifest::of(store, id)?;
        Ok::<_, StoreError>(match hidden {
            Some(hidden) => hidden.split(&manifest).0,
            None => manifest,
        })
    };
    let after = shown(&new.id)?;
    let before = old.map(|old| shown(&old.source)).transpose()?;
    // If it is not known what a cache was made from, everything counts as different.
    let of_caches: Vec<Manifest> =
        caches.iter().map(|cache| Manifest::of(store, &cache.source).unwrap_or_default()).collect();
    let layers = SnapshotLayers {
        roots: parent_layers.iter().map(|layer| store.layers().dir(layer).join("workspace")).collect(),
    };
    let changes = before.as_ref().map(|before| before.changes(&after, Times::PassOver)).unwrap_or_default();
    let mut plan = layers.plan(&changes, new.times)?;
    let mut times = ShownTimes::default();
    if new.times == SourceTimes::Normal {
        let touched = Touched::by(&changes, &after);
        layers.touch(&touched, &mut plan)?;
        times.by_parent = plan.keys().copied().chain(touched.dirs).collect();
        times.compare_caches(&of_caches, &after);
        layers.renew(&times, &after, &mut plan)?;
        let mut in_parent = (0, 0);
        if !plan.is_empty() {
            in_parent = newest(store, parent_layers.iter(), in_parent)?;
        }
        let mut in_caches = caches.iter().map(|cache| cache.latest).max().unwrap_or_default();
        if !times.by_caches.is_empty() {
            in_caches = newest(store, caches.iter().flat_map(|cache| &cache.layers), in_caches)?;
        }
        let lineage: Vec<&Manifest> = before.iter().chain([&after]).collect();
        times.choose(in_parent, in_caches, (&lineage, &of_caches));
        if !times.by_parent.is_empty() {
            result.latest = times.after_parent;
        }
        if !times.by_caches.is_empty() {
            result.latest = times.after_caches;
        }
    }
    if !caches.is_empty() {
        let differs = |entry: ManifestEntry<'_>| times.of(entry.path).is_some_and(|time| time != entry.mtime);
        if after.entries().any(differs) {
            let encoded = times.applied_to(&after).encode();
            // Not the id of a source, which does not tell the times of directories.
            result.seen = SourceId::of(blake3::hash(&encoded));
            if caches.iter().all(|cache| cache.source != result.seen) {
                record_manifest(store, &result.seen, &encoded)?;
            }
        }
        hasher.update(format!("as seen {} {:?}\n", result.seen, result.latest).as_bytes());
    }
    if plan.is_empty() {
        return Ok(result);
    }
    let id = LayerId::of_delta(hasher.finalize());
    let home = store.layers().home(&id);
    if caches.is_empty() || !store.layers().find(&id)? {
        let staging = store.stage()?;
        let root = staging.upper().join("workspace");
        let shown = (new.times == SourceTimes::Normal).then_some(&times);
        let mut delta = Delta { layers: &layers, source: new, times: shown, root, made: Vec::new() };
        delta.write(&plan)?;
        match fs::rename(staging.home(), &home) {
            // Another process made the same delta first.
            Err(_) if home.is_dir() => {}
            renamed => renamed.doing("make the layer", &home)?,
        }
        if new.times == SourceTimes::Normal {
            let_pass(result.latest);
        }
    }
    Ok(SourceDelta { layer: Some(id), ..result })
}

/// Returns the latest time in some layers, and at least `least`.
fn newest<'a>(store: &Store, mut layers: impl Iterator<Item = &'a LayerId>, least: Time) -> Result<Time, StoreError> {
    layers.try_fold(least, |latest, layer| Ok(latest.max(store.layers().newest(layer)?)))
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
    /// Show the directory that was visible so far, with a new time.
    Touch,
    /// Show the file that was visible so far, with a new time: an earlier step's.
    Renew,
    Hide,
}

type DeltaPlan<'a> = BTreeMap<&'a [u8], DeltaAction<'a>>;

impl SnapshotLayers {
    /// Finds the changes that the layers would hide, and all others that need a new time.
    fn plan<'a>(&self, changes: &[ManifestChange<'a>], times: SourceTimes) -> Result<DeltaPlan<'a>, StoreError> {
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
                        Seen::Nothing { hidden: false } => times == SourceTimes::Normal,
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

    /// Adds to the plan what is touched, except what earlier steps removed or replaced.
    fn touch<'a>(&self, touched: &Touched<'a>, plan: &mut DeltaPlan<'a>) -> Result<(), StoreError> {
        for &dir in touched.dirs.iter().filter(|dir| !plan.contains_key(*dir)).collect::<Vec<_>>() {
            let at = Path::new(OsStr::from_bytes(dir));
            if matches!(self.look(at)?, Seen::Dir(_) | Seen::Nothing { hidden: false }) {
                plan.insert(dir, DeltaAction::Touch);
            }
        }
        for (path, entry) in &touched.behind_links {
            if !plan.contains_key(path) && matches!(self.look(entry.as_path())?, Seen::Nothing { hidden: false }) {
                plan.insert(path, DeltaAction::Put(*entry));
            }
        }
        Ok(())
    }

    /// Adds to the plan what has another time because of cache directories, except what earlier steps
    /// removed.
    fn renew<'a>(
        &self,
        times: &ShownTimes<'a>,
        source: &'a Manifest,
        plan: &mut DeltaPlan<'a>,
    ) -> Result<(), StoreError> {
        for path in times.decided_by_caches() {
            let Some(entry) = source.find(path).filter(|_| !plan.contains_key(path)) else { continue };
            let action = match self.look(entry.as_path())? {
                Seen::Nothing { hidden: false } if entry.is_dir() => DeltaAction::Touch,
                Seen::Nothing { hidden: false } => DeltaAction::Put(entry),
                Seen::Dir(_) => DeltaAction::Touch,
                Seen::Leaf => DeltaAction::Renew,
                Seen::Nothing { hidden: true } | Seen::Whiteout => continue,
            };
            plan.insert(path, action);
        }
        Ok(())
    }

    /// Returns the place of the file that is visible at a path, if the layers have one.
    fn visible(&self, path: &Path) -> Result<Option<(PathBuf, Metadata)>, StoreError> {
        for root in &self.roots {
            let place = root.join(path);
            if let Some(metadata) = stat(&place)? {
                return Ok(Some((place, metadata)));
            }
        }
        Ok(None)
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
    /// The times of everything that changed, or `None` if the source's own times are shown.
    times: Option<&'a ShownTimes<'a>>,
    root: PathBuf,
    /// The created directories, with their final attributes and times.
    made: Vec<(PathBuf, Option<Metadata>, Option<Time>)>,
}

impl Delta<'_> {
    fn write(&mut self, plan: &DeltaPlan<'_>) -> Result<(), StoreError> {
        let mut files = Vec::new();
        for (path, action) in plan {
            let path = Path::new(OsStr::from_bytes(path));
            let mut parents: Vec<&Path> = path.ancestors().skip(1).collect();
            while let Some(parent) = parents.pop() {
                self.dir(parent, false)?;
            }
            let place = self.root.join(path);
            match action {
                DeltaAction::Hide => tree::whiteout(&place).doing("hide", &place)?,
                DeltaAction::Touch => self.dir(path, false)?,
                DeltaAction::Renew => {
                    let time = self.time(path);
                    if let Some((from, metadata)) = self.layers.visible(path)?.filter(|(_, it)| it.is_file()) {
                        tree::copy_file(&from, &place).doing("write", &place)?;
                        imitate(&place, Some(&metadata)).doing("set the attributes of", &place)?;
                        if let Some(time) = time {
                            put_mtime(&place, time)?;
                        }
                    }
                }
                DeltaAction::Put(entry) => {
                    let entry = ManifestEntry { mtime: self.time(path).unwrap_or(entry.mtime), ..*entry };
                    match entry.kind {
                        EntryKind::Directory => self.dir(path, true)?,
                        EntryKind::Symlink { target } => put_symlink(&entry, target, &place)?,
                        EntryKind::File { .. } => files.push((entry, place)),
                    }
                }
            }
        }
        in_parallel(&files, |(entry, place), _| {
            tree::copy_file(&self.source.locate(entry.as_path()), place).doing("write", place)?;
            entry.put_attributes(place)
        })?;
        self.finish()
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
        let time = self.time(path);
        self.made.push((place, stat(&shown)?, time));
        Ok(())
    }

    /// Returns the time of a path, if it is another one than before.
    fn time(&self, path: &Path) -> Option<Time> {
        self.times?.of(path.as_os_str().as_bytes())
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        for (path, model, time) in self.made.drain(..).rev() {
            if let Some(model) = model {
                imitate(&path, Some(&model)).doing("set the attributes of", &path)?;
            }
            if let Some(time) = time {
                put_mtime(&path, time)?;
            }
        }
        Ok(())
    }
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}
