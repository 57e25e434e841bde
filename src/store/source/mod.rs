//! Freezing a source tree: look at it by the rules of ignore files, name it by its content, keep what
//! changed.
//!
//! ```text
//! walk (by rules)  every path and its status, no file read
//! read             the stat cache vouches for what is as it was; the rest is read and hashed: a manifest, and so the name
//! write            a tree that the store does not have becomes one layer over those of the directory's last source, or a
//!                  stack of its own; every byte is compared with the manifest, so that what was edited meanwhile is noticed
//! ```
//!
//! Knows nothing of steps; [`Store::delta`] brings snapshots made over an older source up to date.

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

/// A stack with more deltas than this is compacted: each is one more place where a step's lookup of a name asks.
const MAX_DELTAS: usize = 8;

/// Deltas of no more than this never outweigh their base.
const LIGHT: Weight = Weight { entries: 1000, bytes: 16 << 20 };

/// A source tree in the store: a stack of layers, which nobody writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrozenSource {
    /// Its name: equal content, modes and times give equal ids.
    pub id: SourceId,
    /// The layers that it is made of, topmost first: what changed since, over a whole tree.
    pub layers: Vec<LayerId>,
    /// Where these layers are. Each has its part of the tree at `workspace`, and marks what it removes as overlayfs does
    /// (whiteouts, never opaque directories): fit to be an overlay's lower directories, whatever the steps' user ids.
    pub roots: Vec<PathBuf>,
}

impl FrozenSource {
    /// Where a file of this source lies; `path` is relative to the tree.
    pub(crate) fn locate(&self, path: &Path) -> PathBuf {
        let within = Path::new("workspace").join(path);
        let has_it = |root: &&PathBuf| root.join(&within).symlink_metadata().is_ok();
        let root = self.roots.iter().find(has_it).or(self.roots.last());
        root.map_or_else(|| within.clone(), |root| root.join(&within))
    }
}

impl Store {
    /// Brings the tree at `dir` into the store, unless it is there already. Blocks for as long as looking at every path
    /// takes, and reading those files that changed since the last time.
    ///
    /// Left out: what git would ignore and what `.ignore` files name, `.git`, the pipelines of `dir` itself
    /// (`.hm`), sockets, pipes, devices, and the store itself. Hidden files, empty directories, symbolic
    /// links, modes and times are kept.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] and [`StoreError::SourceChanged`] name the file; [`StoreError::Abandoned`] where
    /// `abandoned` was set meanwhile.
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
        // Checking that the last source's layers are whole takes as long as the walk.
        let (tree, last) = thread::scope(|scope| {
            let last = cache.as_ref().map(|cache| scope.spawn(|| self.frozen_source(&cache.last)));
            (walk.run(), last.map(|last| last.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
        });
        let (tree, last) = (tree?, last.transpose()?.flatten());
        // Where the clock went backwards, times tell nothing.
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
            tracing::warn!(%error, "the next run must read the whole source again");
        }
        Ok(frozen)
    }

    /// Makes a source that the store does not have.
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

    /// What a directory was frozen as the last time, with its manifest, if that can be read.
    fn last_source(&self, frozen: FrozenSource, weight: Weight) -> Option<LastSource> {
        match self.manifest(&frozen.id) {
            Ok(manifest) => Some(LastSource { frozen, manifest, weight }),
            Err(error) => {
                tracing::warn!(%error, "the source is copied as a whole");
                None
            }
        }
    }

    /// Writes a layer and puts it in its place; `None` where what is removed can't be marked. One that has a whole tree
    /// keeps that tree's manifest beside it, so that deltas over it can be compacted when its source is gone.
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

/// What a directory was frozen as the last time.
struct LastSource {
    frozen: FrozenSource,
    manifest: Manifest,
    /// How much the deltas of its stack have.
    weight: Weight,
}

impl Weight {
    /// How much a layer made of these changes has.
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

    /// Whether this is more than a quarter of a tree.
    fn outweighs(self, tree: &Manifest) -> bool {
        let bytes: u64 = tree
            .entries()
            .map(|entry| if let Kind::File { size_bytes, .. } = entry.kind { size_bytes } else { 0 })
            .sum();
        self.outnumbers(tree) || self.bytes > LIGHT.bytes.max(bytes / 4)
    }

    /// Whether these are more entries than a quarter of a tree's.
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
