//! Freezing a source tree: walks it by the rules of ignore files, names it by its content, and stores what
//! changed.
//!
//! ```text
//! walk   the status of every path that the rules admit; no file is read
//! read   unchanged files are taken from the stat cache, the others are read and hashed: this yields the
//!        manifest, and with it the name
//! write  a tree that is not in the store becomes one layer over those of the directory's last source, or a
//!        stack of its own; every byte is compared with the manifest, so that concurrent edits are noticed
//! ```
//!
//! This module knows nothing about steps. [`Store::delta`] updates snapshots made over an older source.

mod read;
mod rules;
mod stat_cache;
#[cfg(feature = "vm")]
mod tar;
mod walk;
mod watched;
mod write;

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    thread,
};

use self::{
    read::{ATTEMPTS, Known, Reader},
    stat_cache::{StatCache, Weight, now},
    walk::Walk,
    write::{LayerWriter, Written},
};
use super::{
    LayerId, SourceId, Store, StoreError,
    layout::{make_dir, write_new},
    manifest::{Change, Kind, Manifest, Times},
};

pub(super) use write::put_symlink;

/// A stack with more deltas than this is compacted, because each layer makes a step's lookup of a name
/// slower.
const MAX_DELTAS: usize = 8;

/// Deltas up to this size never outweigh their base.
const LIGHT: Weight = Weight { entries: 1000, bytes: 16 << 20 };

/// A source tree in the store: a stack of read-only layers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrozenSource {
    /// The name. Equal content, modes and times give equal ids.
    pub id: SourceId,
    /// The layers of the source, topmost first: later changes, over a whole tree.
    pub layers: Vec<LayerId>,
    /// The directories of these layers. Each contains its part of the tree at `workspace`, and marks removed
    /// entries as overlayfs does (with whiteouts, never with opaque directories). They can be an overlay's
    /// lower directories for any user ids of the steps.
    pub roots: Vec<PathBuf>,
}

impl FrozenSource {
    /// Returns the path of a file of this source in the store. `path` is relative to the tree.
    pub(crate) fn locate(&self, path: &Path) -> PathBuf {
        let within = Path::new("workspace").join(path);
        let has_it = |root: &&PathBuf| root.join(&within).symlink_metadata().is_ok();
        let root = self.roots.iter().find(has_it).or(self.roots.last());
        root.map_or_else(|| within.clone(), |root| root.join(&within))
    }
}

impl Store {
    /// Stores the tree at `dir`, unless it is in the store already. Blocks while every path is examined and
    /// the files that changed since the last time are read.
    ///
    /// The following are left out: what git would ignore and what `.ignore` files name, `.git`, the pipelines
    /// of `dir` itself (`.hm`), sockets, pipes, devices, and the store itself. Hidden files, empty
    /// directories, symbolic links, modes and times are kept.
    ///
    /// # Errors
    /// Returns [`StoreError::Unreadable`] or [`StoreError::SourceChanged`] with the file concerned, or
    /// [`StoreError::Abandoned`] if `abandoned` was set in the meantime.
    pub fn freeze(&self, dir: &Path, abandoned: &AtomicBool) -> Result<FrozenSource, StoreError> {
        let no_source = || StoreError::NoSource { path: dir.into() };
        let source = dir.canonicalize().map_err(|_| no_source())?;
        if !source.is_dir() {
            return Err(no_source());
        }
        let mut attempt = 1;
        loop {
            match self.freeze_once(&Reader { source: &source, abandoned }) {
                Err(StoreError::SourceChanged { path }) if attempt < ATTEMPTS => {
                    tracing::debug!(path = %path.display(), attempt, "the source changed while it was read");
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    fn freeze_once(&self, reader: &Reader<'_>) -> Result<FrozenSource, StoreError> {
        let cache_path = self.stat_cache_path(reader.source);
        let cache = StatCache::load(&cache_path);
        let started = now();
        let walk = Walk { source: reader.source, store: self.dir(), abandoned: reader.abandoned };
        // Checking that the last source's layers are intact takes as long as the walk.
        let (tree, last) = thread::scope(|scope| {
            let last = cache.as_ref().map(|cache| scope.spawn(|| self.frozen_source(&cache.last)));
            (walk.run(), last.map(|last| last.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
        });
        let (tree, last) = (tree?, last.transpose()?.flatten());
        // If the clock went backwards, times are meaningless.
        let trusted = cache.as_ref().filter(|cache| cache.started <= started);
        let known = Known::of(&tree, trusted);
        let last = match last {
            Some(last) if known.is_everything() => return Ok(last),
            last => last,
        };
        let (manifest, stamps) = reader.read_unknown(&known)?;
        let id = manifest.id();
        let weight = cache.as_ref().map(|cache| cache.weight).unwrap_or_default();
        let (frozen, weight) = match self.frozen_source(&id)? {
            Some(frozen) => {
                (frozen, if cache.is_some_and(|cache| cache.last == id) { weight } else { Weight::default() })
            }
            None => {
                let last = last.and_then(|last| self.last_source(last, weight));
                self.add_source(reader, &id, &manifest, last.as_ref())?
            }
        };
        let cache = StatCache { last: id, weight, started, manifest, stamps };
        if let Err(error) = self.save_stat_cache(&cache_path, &cache) {
            tracing::warn!(%error, "failed to write the stat cache; the next run must read all files again");
        }
        Ok(frozen)
    }

    /// Adds a source that is not in the store.
    fn add_source(
        &self,
        reader: &Reader<'_>,
        id: &SourceId,
        new: &Manifest,
        last: Option<&LastSource>,
    ) -> Result<(FrozenSource, Weight), StoreError> {
        let stored = last.map(|last| (&last.frozen, &last.manifest));
        let writer = LayerWriter { reader, new, stored };
        let encoded = new.encode();
        let record = |layers: &[LayerId]| self.record_source(id, &encoded, layers);
        if let Some(LastSource { frozen: last, manifest, weight }) = last {
            let changes = manifest.changes(new, Times::Count);
            let weight = *weight + Weight::of(&changes);
            if last.layers.len() <= MAX_DELTAS && !weight.outweighs(new) {
                if let Some(delta) = self.write_layer(&writer, &changes, None)? {
                    let layers = [&[delta], &last.layers[..]].concat();
                    return Ok((record(&layers)?, weight));
                }
            } else if let Some(base) = last.layers.last()
                && let Ok(manifest) = Manifest::read(&self.base_manifest(base))
            {
                let changes = manifest.changes(new, Times::Count);
                let weight = Weight::of(&changes);
                if !weight.outnumbers(new)
                    && let Some(delta) = self.write_layer(&writer, &changes, None)?
                {
                    return Ok((record(&[delta, base.clone()])?, weight));
                }
            }
        }
        let nothing = Manifest::default();
        let base = self.write_layer(&writer, &nothing.changes(new, Times::Count), Some(&encoded))?;
        let base = base.ok_or_else(|| StoreError::Corrupt {
            path: self.dir().into(),
            reason: "a whole tree has marks for what it lacks".into(),
        })?;
        Ok((record(&[base])?, Weight::default()))
    }

    /// Returns the source that a directory was last frozen as, with its manifest if that can be read.
    fn last_source(&self, frozen: FrozenSource, weight: Weight) -> Option<LastSource> {
        match self.manifest(&frozen.id) {
            Ok(manifest) => Some(LastSource { frozen, manifest, weight }),
            Err(error) => {
                tracing::warn!(%error, "copying the whole source");
                None
            }
        }
    }

    /// Writes a layer and puts it in its place. Returns `None` if removed entries cannot be marked. A layer
    /// that contains a whole tree keeps that tree's manifest beside it, so that deltas over it can be
    /// compacted after its source is gone.
    fn write_layer(
        &self,
        writer: &LayerWriter<'_>,
        changes: &[Change<'_>],
        manifest: Option<&[u8]>,
    ) -> Result<Option<LayerId>, StoreError> {
        let aside = self.new_tmp();
        let write = || {
            make_dir(&aside)?;
            if writer.write(changes, &aside.join("root"))? == Written::NoMarks {
                return Ok(None);
            }
            if let Some(manifest) = manifest {
                let path = aside.join("manifest");
                write_new(&path, manifest)?;
            }
            self.place(&aside).map(Some)
        };
        let written = write();
        if !matches!(written, Ok(Some(_))) {
            self.discard(aside);
        }
        written
    }

    fn base_manifest(&self, base: &LayerId) -> PathBuf {
        self.layer_home(base).join("manifest")
    }
}

/// The source that a directory was last frozen as.
struct LastSource {
    frozen: FrozenSource,
    manifest: Manifest,
    /// The weight of the deltas in its stack.
    weight: Weight,
}

impl Weight {
    /// Returns the weight of a layer made of these changes.
    fn of(changes: &[Change<'_>]) -> Self {
        let bytes = changes.iter().map(|change| match change {
            Change::Removed(_) => 0,
            Change::Added(entry) | Change::Changed(entry) => match entry.kind {
                Kind::File { size_bytes, .. } => size_bytes,
                _ => 0,
            },
        });
        Self { entries: changes.len() as u64, bytes: bytes.sum() }
    }

    /// Returns whether the weight is more than a quarter of a tree.
    fn outweighs(self, tree: &Manifest) -> bool {
        let bytes: u64 = tree
            .entries()
            .map(|entry| if let Kind::File { size_bytes, .. } = entry.kind { size_bytes } else { 0 })
            .sum();
        self.outnumbers(tree) || self.bytes > LIGHT.bytes.max(bytes / 4)
    }

    /// Returns whether there are more entries than a quarter of a tree's.
    fn outnumbers(self, tree: &Manifest) -> bool {
        self.entries > LIGHT.entries.max(tree.len() as u64 / 4)
    }
}

impl std::ops::Add for Weight {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { entries: self.entries + other.entries, bytes: self.bytes + other.bytes }
    }
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(8)
}
