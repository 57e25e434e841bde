//! The layers on disk: put in their places, checked before they are used, and protected from removal.
//!
//! A layer without a row in the index belongs to the process that made it. Keeping it gives it a row with a
//! seal, which later tells whether its files are unchanged.

use std::{
    cmp::Reverse,
    collections::HashSet,
    fs::{self, File},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::SystemTime,
};

use rusqlite::{Connection, Transaction};

use super::files::stat;
use super::{
    LayerId, StoreError,
    error::IoContext,
    index::{self, LayerKind, LayerRow},
    shared::Shared,
    tree,
};
use crate::sync::Mutex;

/// The number of files and directories that one thread walks over in the time that another needs to start.
const FEW_ENTRIES: u64 = 1024;

/// The layers of a store.
#[derive(Debug)]
pub struct Layers {
    shared: Arc<Shared>,
    /// Layers that were found intact since the store was opened.
    intact: Mutex<HashSet<LayerId>>,
    /// Whether this process has kept anything.
    kept_new: AtomicBool,
    /// Held while a delta is made.
    making_delta: Mutex<()>,
}

/// A layer, and its seal if it has a row.
pub(super) type SealedLayer = (LayerId, Option<tree::Seal>);

/// The result of checking layers.
pub(super) enum LayerCheck {
    /// All of them are present and unchanged.
    Intact,
    /// The reason why one of them cannot be used.
    Damaged(String),
    /// The check would take too long.
    TooMany,
}

impl Layers {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, intact: Mutex::default(), kept_new: AtomicBool::new(false), making_delta: Mutex::default() }
    }

    /// Returns the directory of a layer, with its files in `root`.
    pub(crate) fn home(&self, layer: &LayerId) -> PathBuf {
        self.shared.paths.layer(layer)
    }

    /// Returns the directory of a layer's files, which corresponds to the root of a step's filesystem.
    #[must_use]
    pub fn dir(&self, layer: &LayerId) -> PathBuf {
        self.shared.paths.layer_root(layer)
    }

    /// Returns whether a layer has a directory at `path`.
    ///
    /// # Errors
    /// Returns an error if the path cannot be examined: the step that wrote the layer may have made a
    /// directory above it inaccessible to this user.
    pub(crate) fn has_dir(&self, layer: &LayerId, path: &Path) -> Result<bool, StoreError> {
        Ok(stat(&self.dir(layer).join(path))?.is_some_and(|metadata| metadata.is_dir()))
    }

    /// Waits until no other thread of this process makes a delta.
    pub(crate) fn delta_turn(&self) -> MutexGuard<'_, ()> {
        self.making_delta.lock()
    }

    /// Returns the latest modification time in a layer, which must be in its place, in seconds since the Unix
    /// epoch and nanoseconds. A directory that cannot be listed counts as written now. The first call for a
    /// layer takes a walk over it; the result is kept beside the layer.
    pub(crate) fn newest(&self, layer: &LayerId) -> Result<(i64, u32), StoreError> {
        let path = self.home(layer).join("newest");
        let known = fs::read_to_string(&path).ok();
        let parse = |text: &str| {
            let (seconds, nanoseconds) = text.strip_suffix('\n')?.split_once(' ')?;
            Some((seconds.parse().ok()?, nanoseconds.parse().ok()?))
        };
        if let Some(known) = known.as_deref().and_then(parse) {
            return Ok(known);
        }
        let root = self.dir(layer);
        let found = tree::newest(&root).doing("read", &root)?;
        let mut newest = found.mtime;
        if !found.is_complete {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            newest = newest.max((i64::try_from(now.as_secs()).unwrap_or(i64::MAX), now.subsec_nanos()));
        }
        if let Err(error) = self.shared.instance.write_file(&path, format!("{} {}\n", newest.0, newest.1).as_bytes()) {
            tracing::debug!(%error, %layer, "failed to keep the latest time of a layer");
        }
        Ok(newest)
    }

    /// Puts a finished layer in its place.
    pub(crate) fn place(&self, home: &Path) -> Result<LayerId, StoreError> {
        let layer = self.shared.instance.new_layer_id()?;
        let place = self.home(&layer);
        fs::rename(home, &place).doing("make the layer", &place)?;
        Ok(layer)
    }

    /// Returns which part of a kept stack of layers is missing or changed, if any. Takes a walk over each
    /// layer that was not checked before.
    pub(crate) fn damage(&self, layers: &[LayerId]) -> Result<Option<String>, StoreError> {
        let unchecked = self.shared.index.read_at_once(|connection| self.unchecked(connection, layers))?;
        // No walk is longer.
        Ok(match self.check(unchecked, u64::MAX) {
            LayerCheck::Damaged(reason) => Some(reason),
            LayerCheck::Intact | LayerCheck::TooMany => None,
        })
    }

    /// Returns those of some layers that were not checked since the store was opened, with the seals recorded
    /// when they were made.
    pub(super) fn unchecked(&self, connection: &Connection, layers: &[LayerId]) -> rusqlite::Result<Vec<SealedLayer>> {
        let intact = self.intact.lock();
        let unchecked = layers.iter().filter(|layer| !intact.contains(layer));
        unchecked.map(|layer| Ok((layer.clone(), index::layers::seal(connection, layer)?))).collect()
    }

    /// Checks layers by a walk over at most `entries` files and directories, several of them at once if they
    /// are large.
    pub(super) fn check(&self, layers: Vec<SealedLayer>, entries: u64) -> LayerCheck {
        let (mut sealed, mut total) = (Vec::with_capacity(layers.len()), 0_u64);
        for (layer, made) in layers {
            let Some(made) = made else { return LayerCheck::Damaged(format!("its layer {layer} is missing")) };
            total = total.saturating_add(made.entries);
            sealed.push((layer, made));
        }
        if total > entries {
            return LayerCheck::TooMany;
        }
        // The largest one first, because it takes longest.
        sealed.sort_by_key(|(_, made)| Reverse(made.entries));
        let most = if total > FEW_ENTRIES { thread::available_parallelism().map_or(1, NonZeroUsize::get) } else { 1 };
        let (next, damage) = (AtomicUsize::new(0), Mutex::new(None));
        let walk = || {
            while let Some((layer, made)) = sealed.get(next.fetch_add(1, Ordering::Relaxed)) {
                // A layer that is most of the work gets most of the threads.
                let threads = u64::try_from(most).unwrap_or(1).saturating_mul(made.entries).div_ceil(total.max(1));
                match self.damage_of(layer, made, usize::try_from(threads).unwrap_or(most)) {
                    None => drop(self.intact.lock().insert(layer.clone())),
                    Some(reason) => {
                        next.store(sealed.len(), Ordering::Relaxed);
                        damage.lock().get_or_insert(reason);
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..most.min(sealed.len()) {
                // If there can be no other thread, this one does it all.
                if thread::Builder::new().spawn_scoped(scope, walk).is_err() {
                    break;
                }
            }
            walk();
        });
        damage.into_inner().map_or(LayerCheck::Intact, LayerCheck::Damaged)
    }

    /// Returns how a layer differs from the one that was sealed, if it does.
    fn damage_of(&self, layer: &LayerId, made: &tree::Seal, threads: usize) -> Option<String> {
        let dir = self.dir(layer);
        let found = if threads > 1 { tree::seal_on_threads(&dir, threads) } else { tree::seal(&dir) };
        match found {
            Ok(found) if found.hash == made.hash => None,
            Ok(_) => Some(format!("its layer {layer} was modified")),
            Err(error) => Some(format!("failed to read its layer {layer}: {error}")),
        }
    }

    /// Returns whether a layer with a known name is in its place and either unchanged, or just made and not
    /// kept yet. Layers that were written during another boot and not kept were removed when the store was
    /// opened.
    pub(crate) fn is_intact(&self, layer: &LayerId) -> Result<bool, StoreError> {
        if !self.dir(layer).is_dir() {
            return Ok(false);
        }
        let is_kept = self.shared.index.read(|connection| index::layers::seal(connection, layer))?.is_some();
        Ok(!is_kept || (self.damage(std::slice::from_ref(layer))?.is_none() && self.spare(layer)?))
    }

    /// Returns whether a layer is in its place, and protects it from removal if it is.
    pub(crate) fn find(&self, id: &LayerId) -> Result<bool, StoreError> {
        Ok(self.home(id).is_dir() && self.spare(id)?)
    }

    /// Cancels the doom of a layer that was found in its place. Returns false if the layer was already
    /// removed.
    fn spare(&self, id: &LayerId) -> Result<bool, StoreError> {
        if !self.shared.index.read(|connection| index::layers::is_doomed(connection, id))? {
            return Ok(true);
        }
        self.shared.index.write(|transaction| index::layers::spare(transaction, id))?;
        Ok(self.home(id).is_dir())
    }

    /// Keeps a stack of layers: those without a row get one, after a walk over them, and in the same
    /// transaction `name` gives the stack a name. Its second argument is false if a layer was removed in the
    /// meantime. Returns the new rows, and the result of `name`.
    pub(super) fn keep<T>(
        &self,
        layers: &[LayerId],
        kind: LayerKind,
        name: impl FnOnce(&Transaction<'_>, bool) -> rusqlite::Result<T>,
    ) -> Result<(Vec<LayerRow>, T), StoreError> {
        let rows = self.missing_rows(layers, kind)?;
        let named = self.shared.index.write(|transaction| {
            rows.iter().try_for_each(|row| index::layers::insert(transaction, self.shared.instance.boot(), row))?;
            let mut is_whole = true;
            for layer in layers {
                is_whole &= index::layers::spare(transaction, layer)?;
            }
            name(transaction, is_whole)
        })?;
        self.kept_new.store(true, Ordering::Relaxed);
        Ok((rows, named))
    }

    /// Returns rows for those of some layers that do not have one yet.
    fn missing_rows(&self, layers: &[LayerId], kind: LayerKind) -> Result<Vec<LayerRow>, StoreError> {
        let mut rows = Vec::new();
        for layer in layers {
            if self.shared.index.read(|connection| index::layers::seal(connection, layer))?.is_none() {
                let root = self.dir(layer);
                let seal = tree::seal(&root).doing("read", &root)?;
                rows.push(LayerRow { id: layer.clone(), kind, seal });
            }
        }
        Ok(rows)
    }

    /// Returns whether this process has kept anything since the store was opened.
    pub(super) fn has_kept_new(&self) -> bool {
        self.kept_new.load(Ordering::Relaxed)
    }

    /// Syncs everything that was kept since the last call to the disk. Data that is not synced may be lost in
    /// a power failure. Blocks until the disk has written all pending data, including that of other
    /// processes.
    ///
    /// # Errors
    /// Returns an error if the disk reports one, or if the index cannot be written.
    pub fn sync(&self) -> Result<(), StoreError> {
        let layers = self.shared.index.read(index::layers::unsynced)?;
        if layers.is_empty() {
            return Ok(());
        }
        let dir = File::open(self.shared.paths.dir()).doing("open", self.shared.paths.dir())?;
        rustix::fs::syncfs(&dir).doing("sync the filesystem of", self.shared.paths.dir())?;
        self.shared.index.write(|transaction| index::layers::mark_synced(transaction, &layers))
    }
}
