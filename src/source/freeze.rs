//! Freezes a source tree: walks it, names it by its content, and stores what changed.
//!
//! Whether the layers of an older source are intact is known after a walk over them, which takes as long as
//! that over the tree. Keys of cached steps need the name alone, so [`LayerState::Recorded`] leaves
//! that walk out, and it is made up for before something mounts the layers.
//!
//! ```text
//! walk   the status of every path that the rules admit; no file is read
//! read   unchanged files are taken from the stat cache, the others are read and hashed: this yields the
//!        manifest, and with it the name
//! write  a tree that is not in the store becomes one layer over those of the directory's last source, or a
//!        stack of its own; every byte is compared with the manifest, so that concurrent edits are noticed
//! ```

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use super::{
    FrozenSource, HiddenFiles, SourceOptions,
    freeze_progress::FreezeProgress,
    in_same_log,
    manifest::{Manifest, ManifestChange, Times},
    read::{ATTEMPTS, Known, SourceReader},
    stat_cache::{StatCache, now},
    times::SourceTimes,
    walk::SourceWalk,
    weight::Weight,
    write::{LayerWriter, Written},
};
use crate::store::{
    LayerId, SourceId, Store, StoreError,
    files::{make_dir, write_new},
};

/// A stack with more deltas than this is compacted, because each layer makes a step's lookup of a name
/// slower.
const MAX_DELTAS: usize = 8;

/// Stores the tree at `dir`, unless it is in the store already. Blocks while every path is examined and
/// the files that changed since the last time are read.
///
/// The following are left out: what git would ignore and what `.ignore` files name, `.git`, the pipelines
/// of `dir` itself (`.hm`), sockets, pipes, devices, and the store itself. Hidden files, empty
/// directories, symbolic links and modes are kept; `times` decides which times files get.
///
/// # Errors
/// Returns [`StoreError::Unreadable`] or [`StoreError::SourceChanged`] with the file concerned, or
/// [`StoreError::Abandoned`] if `abandoned` was set in the meantime.
pub fn freeze(
    store: &Store,
    dir: &Path,
    times: SourceTimes,
    abandoned: &AtomicBool,
) -> Result<FrozenSource, StoreError> {
    let watch = FreezeWatch { abandoned, progress: &FreezeProgress::default() };
    freeze_until_stable(store, dir, (&SourceOptions::with_times(times), LayerState::Intact), watch)
        .map(|(frozen, _)| frozen)
}

/// How a freeze is stopped and observed from other threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct FreezeWatch<'a> {
    /// Set when the freeze must end early.
    pub(super) abandoned: &'a AtomicBool,
    pub(super) progress: &'a FreezeProgress,
}

/// What is known about the layers of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerState {
    /// All are present and unchanged.
    Intact,
    /// They are in the index. The source has to be frozen once more before its files are used.
    Recorded,
}

impl LayerState {
    /// Returns a source whose layers are in this state.
    fn find(self, store: &Store, id: &SourceId, times: SourceTimes) -> Result<Option<FrozenSource>, StoreError> {
        match self {
            Self::Intact => FrozenSource::find(store, id, times),
            Self::Recorded => FrozenSource::recorded(store, id, times),
        }
    }
}

/// Freezes the tree at `dir`, and starts again if it changes in the meantime. Unless `state` requires it, no
/// layer is looked at that is in the store already. Also returns the manifest, in which times of directories
/// may be later than in the store's.
pub(super) fn freeze_until_stable(
    store: &Store,
    dir: &Path,
    (options, state): (&SourceOptions, LayerState),
    FreezeWatch { abandoned, progress }: FreezeWatch<'_>,
) -> Result<(FrozenSource, Arc<Manifest>), StoreError> {
    let no_source = || StoreError::NoSource { path: dir.into() };
    let source = dir.canonicalize().map_err(|_| no_source())?;
    if !source.is_dir() {
        return Err(no_source());
    }
    let reader = SourceReader { source: &source, times: options.times, abandoned, progress };
    let mut attempt = 1;
    loop {
        match freeze_once(store, &reader, options.ignore.as_ref(), state) {
            Err(StoreError::SourceChanged { path }) if attempt < ATTEMPTS => {
                tracing::debug!(path = %path.display(), attempt, "the source changed while it was read");
                attempt += 1;
            }
            result => return result,
        }
    }
}

fn freeze_once(
    store: &Store,
    reader: &SourceReader<'_>,
    hidden: Option<&HiddenFiles>,
    state: LayerState,
) -> Result<(FrozenSource, Arc<Manifest>), StoreError> {
    let cache_path = StatCache::path(store.dir(), reader.source);
    let started = now();
    let walk = SourceWalk { source: reader.source, store: store.dir(), hidden, abandoned: reader.abandoned };
    let find_last = || {
        let Some(cache) = StatCache::load(&cache_path) else { return Ok((None, None)) };
        // A source with other times has no files in common with the new one.
        let last = if cache.times == reader.times { state.find(store, &cache.last, cache.times)? } else { None };
        Ok((Some(cache), last))
    };
    let (tree, last) = thread::scope(|scope| {
        let last = scope.spawn(in_same_log(find_last));
        (walk.run(), last.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (tree, (cache, last)) = (tree?, last?);
    // If the clock went backwards, times are meaningless.
    let trusted = cache.as_ref().filter(|cache| cache.started <= started);
    let known = Known::of(&tree, trusted);
    let last = match (last, &cache) {
        (Some(last), Some(cache)) if known.is_everything() => return Ok((last, Arc::clone(&cache.manifest))),
        (last, _) => last,
    };
    let (manifest, stamps) = reader.read_unknown(&known)?;
    drop(tree);
    let (id, weight) = (manifest.id(), Weight::default());
    let new = StatCache { last: id, started, times: reader.times, manifest: Arc::new(manifest), stamps, weight };
    let find_or_add = || -> Result<(FrozenSource, Weight), StoreError> {
        let known_weight = cache.as_ref().map(|cache| cache.weight).unwrap_or_default();
        if let Some(frozen) = state.find(store, &new.last, reader.times)? {
            let is_last = cache.as_ref().is_some_and(|cache| cache.last == new.last);
            return Ok((frozen, if is_last { known_weight } else { Weight::default() }));
        }
        // A name does not tell the times of directories, so the cache may have later ones than the layers
        // show.
        let shown = last.as_ref().filter(|_| reader.times == SourceTimes::Real).map(FrozenSource::manifest);
        // Without the manifest, the tree is added as a whole.
        let last = if matches!(shown, Some(Err(_))) { None } else { last };
        let shown = shown.and_then(Result::ok);
        let last = last.zip(cache.as_ref()).map(|(frozen, cache)| {
            let manifest = shown.as_ref().unwrap_or(&*cache.manifest);
            LastSource { frozen, manifest, weight: known_weight }
        });
        add_source(store, reader, &new, last.as_ref())
    };
    // Encoding takes about as long as adding a small change.
    let (added, encoded) = thread::scope(|scope| {
        let encoded = scope.spawn(in_same_log(|| new.encode()));
        (find_or_add(), encoded.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (frozen, weight) = added?;
    if let Err(error) = encoded.save(weight, store, &cache_path) {
        tracing::warn!(%error, "failed to write the stat cache; the next run must read all files again");
    }
    Ok((frozen, new.manifest))
}

/// Adds a source that is not in the store. The layers of the last one need not be intact.
fn add_source(
    store: &Store,
    reader: &SourceReader<'_>,
    new: &StatCache,
    last: Option<&LastSource<'_>>,
) -> Result<(FrozenSource, Weight), StoreError> {
    let (id, new) = (&new.last, &new.manifest);
    let writer = LayerWriter { reader, new, stored: None };
    let encoded = new.encode();
    let record = |layers: &[LayerId]| FrozenSource::record(store, (id, reader.times), &encoded, layers);
    let mut is_heavy = false;
    if let Some(LastSource { frozen: last, manifest, weight }) = last {
        let changes = manifest.changes(new, Times::Count);
        let weight = *weight + Weight::of(&changes);
        is_heavy = last.layers.len() > MAX_DELTAS || weight.outweighs(new);
        if !is_heavy && let Some(delta) = write_layer(store, &writer, &changes, None)? {
            let layers = [&[delta], &last.layers[..]].concat();
            return Ok((record(&layers)?, weight));
        }
    }
    // Unchanged files become links to those of the last source, and then belong to a new layer.
    let is_intact = |last: &FrozenSource| Ok::<_, StoreError>(store.layers().damage(&last.layers)?.is_none());
    let last = match last {
        Some(last) if is_intact(&last.frozen)? => Some(last),
        _ => None,
    };
    let writer = LayerWriter { stored: last.map(|last| (&last.frozen, last.manifest)), ..writer };
    if is_heavy
        && let Some(base) = last.and_then(|last| last.frozen.layers.last())
        && let Ok(manifest) = Manifest::read(&base_manifest(store, base))
    {
        let changes = manifest.changes(new, Times::Count);
        let weight = Weight::of(&changes);
        if !weight.outnumbers(new)
            && let Some(delta) = write_layer(store, &writer, &changes, None)?
        {
            return Ok((record(&[delta, base.clone()])?, weight));
        }
    }
    let nothing = Manifest::default();
    let base = write_layer(store, &writer, &nothing.changes(new, Times::Count), Some(&encoded))?;
    let base = base.ok_or_else(|| StoreError::Corrupt {
        path: store.dir().into(),
        reason: "a whole tree has marks for what it lacks".into(),
    })?;
    Ok((record(&[base])?, Weight::default()))
}

/// Writes a layer and puts it in its place. Returns `None` if removed entries cannot be marked. A layer
/// that contains a whole tree keeps that tree's manifest beside it, so that deltas over it can be
/// compacted after its source is gone.
fn write_layer(
    store: &Store,
    writer: &LayerWriter<'_>,
    changes: &[ManifestChange<'_>],
    manifest: Option<&[u8]>,
) -> Result<Option<LayerId>, StoreError> {
    let home = store.instance().new_tmp();
    let write = || {
        make_dir(&home)?;
        if writer.write(changes, &home.join("root"))? == Written::NoMarks {
            return Ok(None);
        }
        if let Some(manifest) = manifest {
            let path = home.join("manifest");
            write_new(&path, manifest)?;
        }
        store.layers().place(&home).map(Some)
    };
    let written = write();
    if !matches!(written, Ok(Some(_))) {
        store.trash().discard(home);
    }
    written
}

/// Returns the path of the manifest beside a layer that contains a whole tree.
fn base_manifest(store: &Store, base: &LayerId) -> PathBuf {
    store.layers().home(base).join("manifest")
}

/// The source that a directory was last frozen as.
struct LastSource<'a> {
    frozen: FrozenSource,
    manifest: &'a Manifest,
    /// The weight of the deltas in its stack.
    weight: Weight,
}
