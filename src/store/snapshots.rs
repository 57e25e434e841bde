//! Snapshots: the layers, the source and the image that a child boots from.
//!
//! A snapshot exists only in the process that made it until it is [kept](super::Store::keep). A snapshot that
//! only one run needs thus takes no record on disk, and goes away with the process.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, MutexGuard},
};

use rusqlite::Transaction;
use serde::{Deserialize, Serialize};

use super::{
    Base, IdMap, LayerId, SnapshotConfig, SourceId, StoreError,
    index::{self, LayerKind, LayerRow},
    layers::Layers,
    shared::Shared,
};
use crate::{model::SnapshotRef, sync::Mutex};

/// The scheme of [`SnapshotRef`]s that refer to layers of the store.
const SCHEME: &str = "hm1";

/// A filesystem to boot from: the image, the source on top of it, and the layers on top of that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The base image.
    pub base: Base,
    /// The source that its steps saw last.
    pub source: SourceId,
    /// The changes of its steps, topmost first.
    pub layers: Vec<LayerId>,
    /// How to interpret the owners of files in the layers.
    pub id_map: IdMap,
}

/// The snapshots of a store: those that this process made, and those that are kept.
#[derive(Debug)]
pub struct Snapshots {
    shared: Arc<Shared>,
    layers: Arc<Layers>,
    own: Mutex<OwnSnapshots>,
}

/// The snapshots that this process made.
#[derive(Debug, Default)]
struct OwnSnapshots {
    snapshots: HashMap<String, Arc<Snapshot>>,
    configs: HashMap<String, Arc<SnapshotConfig>>,
    /// The number of these snapshots that contain each layer. A kept layer counts once more.
    uses: HashMap<LayerId, usize>,
}

impl Snapshots {
    pub(super) fn new(shared: Arc<Shared>, layers: Arc<Layers>) -> Self {
        Self { shared, layers, own: Mutex::default() }
    }

    fn own(&self) -> MutexGuard<'_, OwnSnapshots> {
        self.own.lock()
    }

    /// Registers a snapshot as made by this process, unless it is registered already.
    pub(super) fn add(&self, id: String, snapshot: Snapshot) -> SnapshotRef {
        let name = reference(&id);
        let mut own = self.own();
        let own = &mut *own;
        if let Entry::Vacant(place) = own.snapshots.entry(id) {
            for layer in &snapshot.layers {
                *own.uses.entry(layer.clone()).or_default() += 1;
            }
            place.insert(Arc::new(snapshot));
        }
        name
    }

    /// Takes in a snapshot of another store under the id that it has there. Its layers, image and manifest
    /// must be in this store.
    ///
    /// # Errors
    /// Returns an error if `id` is not a valid id of a store.
    pub(crate) fn import(&self, id: &str, snapshot: Snapshot) -> Result<SnapshotRef, StoreError> {
        if LayerId::parse(id).is_none() {
            return Err(StoreError::Corrupt {
                path: self.shared.paths.dir().into(),
                reason: format!("`{}` is not an id", id.escape_debug()),
            });
        }
        Ok(self.add(id.to_owned(), snapshot))
    }

    /// Finds a snapshot that this process made, or one that is kept.
    ///
    /// # Errors
    /// Returns [`StoreError::UnknownSnapshot`] if there is none of that name.
    pub fn get(&self, snapshot: &SnapshotRef) -> Result<Arc<Snapshot>, StoreError> {
        let id = id_of(snapshot).ok_or_else(|| self.unknown(snapshot))?;
        if let Some(found) = self.own().snapshots.get(id) {
            return Ok(Arc::clone(found));
        }
        let kept = self.shared.index.read(|connection| index::snapshots::get(connection, id))?;
        kept.map(Arc::new).ok_or_else(|| self.unknown(snapshot))
    }

    /// Returns which part of a snapshot is missing or changed, if any. Takes a walk over each layer that was
    /// not checked before.
    ///
    /// # Errors
    /// Returns an error if there is no such snapshot, or if the index cannot be read.
    pub fn damage(&self, snapshot: &SnapshotRef) -> Result<Option<String>, StoreError> {
        self.layers.damage(&self.get(snapshot)?.layers)
    }

    /// Keeps a snapshot of this process, or one that is already kept. `name` gives the snapshot with the
    /// given id its name, in the same transaction.
    pub(super) fn keep(
        &self,
        snapshot: &SnapshotRef,
        name: impl FnOnce(&Transaction<'_>, &str) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        let id = id_of(snapshot).ok_or_else(|| self.unknown(snapshot))?;
        let found = self.get(snapshot)?;
        let config = self.own().configs.get(id).and_then(|config| serde_json::to_string(&**config).ok());
        let (rows, is_whole) = self.layers.keep(&found.layers, LayerKind::Step, |transaction, is_whole| {
            if is_whole {
                index::snapshots::insert(transaction, id, &found, config.as_deref())?;
                name(transaction, id)?;
            }
            Ok(is_whole)
        })?;
        if !is_whole {
            // The layers were collected in the meantime, which a lease prevents. The files that were kept for
            // the name have none and are collected the same way.
            return Err(self.unknown(snapshot));
        }
        self.note_kept(&rows);
        Ok(())
    }

    /// Records that layers have rows now, so that this process no longer removes them.
    fn note_kept(&self, layers: &[LayerRow]) {
        let mut own = self.own();
        for layer in layers {
            *own.uses.entry(layer.id.clone()).or_default() += 1;
        }
    }

    /// Removes snapshots that this process made, and the layers that no other snapshot uses. Kept layers
    /// stay, and unknown snapshots are ignored.
    ///
    /// # Errors
    /// Returns the first failure. Some snapshots may be gone by then.
    pub fn remove(&self, snapshots: &[SnapshotRef]) -> Result<(), StoreError> {
        let mut unused = Vec::new();
        {
            let mut own = self.own();
            for id in snapshots.iter().filter_map(id_of) {
                own.configs.remove(id);
                let Some(removed) = own.snapshots.remove(id) else { continue };
                for layer in &removed.layers {
                    let Some(uses) = own.uses.get_mut(layer) else { continue };
                    *uses -= 1;
                    if *uses == 0 {
                        own.uses.remove(layer);
                        unused.push(layer.clone());
                    }
                }
            }
        }
        // A layer that this process did not make has a row, or is a delta that another process may be about
        // to boot from.
        unused.retain(|layer| self.shared.instance.made(layer.as_str()));
        unused.iter().try_for_each(|layer| self.shared.trash.discard_from(&self.layers.home(layer)))
    }

    /// Removes snapshots that this process made and did not keep.
    pub(super) fn remove_all(&self) -> Result<(), StoreError> {
        let own: Vec<SnapshotRef> = self.own().snapshots.keys().map(|id| reference(id)).collect();
        self.remove(&own)
    }

    /// Records how the step that made a snapshot of this process ran. [Keeping](super::Store::keep)
    /// the snapshot also keeps that. The call has no effect on a snapshot that another process
    /// made.
    pub fn describe(&self, snapshot: &SnapshotRef, config: Arc<SnapshotConfig>) {
        let Some(id) = id_of(snapshot) else { return };
        let mut own = self.own();
        if own.snapshots.contains_key(id) {
            own.configs.insert(id.to_owned(), config);
        }
    }

    /// Returns how the step that made a snapshot ran, if that is known.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn config(&self, snapshot: &SnapshotRef) -> Result<Option<Arc<SnapshotConfig>>, StoreError> {
        let Some(id) = id_of(snapshot) else { return Ok(None) };
        if let Some(found) = self.own().configs.get(id) {
            return Ok(Some(Arc::clone(found)));
        }
        let text = self.shared.index.read(|connection| index::snapshots::config(connection, id))?;
        // A text in the format of a later version is treated as missing.
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()).map(Arc::new))
    }

    fn unknown(&self, snapshot: &SnapshotRef) -> StoreError {
        StoreError::UnknownSnapshot { snapshot: snapshot.clone(), store: self.shared.paths.dir().into() }
    }
}

/// Returns the name of the store's snapshot with this id.
pub(super) fn reference(id: &str) -> SnapshotRef {
    SnapshotRef::from(format!("{SCHEME}:{id}"))
}

/// Returns the id in a snapshot's name, if it is one of the store's.
pub(super) fn id_of(snapshot: &SnapshotRef) -> Option<&str> {
    let id = snapshot.0.strip_prefix(SCHEME)?.strip_prefix(':')?;
    LayerId::parse(id).map(|_| id)
}
