//! Snapshots: the layers, the source and the image that a child boots from.
//!
//! A snapshot exists only in the process that made it until it is [kept](Store::keep). A snapshot that only
//! one run needs thus takes no record on disk, and goes away with the process.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{
    Base, IdMap, LayerId, SourceId, Staging, Store, StoreError, Surroundings,
    error::Doing,
    index::{self, LayerRow},
};
use crate::model::SnapshotRef;

/// The scheme of [`SnapshotRef`]s that refer to layers of the store.
pub(super) const SCHEME: &str = "hm1";

/// The maximum number of layers in a snapshot. The lookup of a missing file has to search each layer.
pub const MAX_LAYERS: usize = 64;

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

/// The parts of a new snapshot, besides the layer just written.
#[derive(Debug)]
pub struct CommitRequest<'a> {
    /// The snapshot that the step booted from.
    pub parent: Option<&'a Snapshot>,
    /// The base image.
    pub base: Base,
    /// The source that the step saw.
    pub source: SourceId,
    /// The layer that turns the source that the parent saw into this one: see [`Store::delta`].
    pub delta: Option<LayerId>,
    /// How to interpret the owners of files in the layer.
    pub id_map: IdMap,
}

/// The snapshots that this process made.
#[derive(Debug, Default)]
pub(super) struct OwnSnapshots(Mutex<Own>);

#[derive(Debug, Default)]
struct Own {
    snapshots: HashMap<String, Arc<Snapshot>>,
    surroundings: HashMap<String, Arc<Surroundings>>,
    /// The number of these snapshots that contain each layer. A kept layer counts once more.
    uses: HashMap<LayerId, usize>,
}

impl OwnSnapshots {
    fn lock(&self) -> MutexGuard<'_, Own> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn describe(&self, id: &str, surroundings: Arc<Surroundings>) {
        let mut own = self.lock();
        if own.snapshots.contains_key(id) {
            own.surroundings.insert(id.to_owned(), surroundings);
        }
    }

    pub(super) fn surroundings(&self, id: &str) -> Option<Arc<Surroundings>> {
        self.lock().surroundings.get(id).map(Arc::clone)
    }

    /// Records that layers have rows now, so that this process no longer removes them.
    pub(super) fn note_kept(&self, layers: &[LayerRow]) {
        let mut own = self.lock();
        for layer in layers {
            *own.uses.entry(layer.id.clone()).or_default() += 1;
        }
    }
}

impl Store {
    /// Turns a step's changes into a snapshot, by rename. An untouched upper directory does not become a
    /// layer.
    ///
    /// Takes about 50 µs. If the snapshot would have more than [`MAX_LAYERS`] layers, they are merged into
    /// one, which takes as long as linking their files.
    ///
    /// # Errors
    /// Returns an error if the layer cannot be put in place. No snapshot is made then.
    #[expect(clippy::needless_pass_by_value, reason = "a committed staging is gone")]
    pub fn commit(self: &Arc<Self>, staging: Staging, request: CommitRequest<'_>) -> Result<SnapshotRef, StoreError> {
        let written = if staging.prune()? { None } else { Some(self.place(staging.home())?) };
        self.stack(written, request)
    }

    /// Makes a snapshot whose topmost layer, if the step changed anything, came from elsewhere and is already
    /// in place: see [`Store::unpack_layer`]. Takes as long as [`Store::commit`].
    ///
    /// # Errors
    /// Returns an error if layers cannot be merged. No snapshot is made then.
    pub fn commit_layer(
        self: &Arc<Self>,
        layer: Option<LayerId>,
        request: CommitRequest<'_>,
    ) -> Result<SnapshotRef, StoreError> {
        self.stack(layer, request)
    }

    fn stack(
        self: &Arc<Self>,
        written: Option<LayerId>,
        request: CommitRequest<'_>,
    ) -> Result<SnapshotRef, StoreError> {
        let mut layers: Vec<LayerId> = written.iter().cloned().collect();
        layers.extend(request.delta);
        if let Some(parent) = request.parent {
            layers.extend_from_slice(&parent.layers);
        }
        // Layers that are named by their content may occur again. Overlayfs rejects duplicates, and the lower
        // copy shows nothing that the higher one does not.
        let mut seen = HashSet::new();
        layers.retain(|layer| seen.insert(layer.clone()));
        if layers.len() > MAX_LAYERS {
            layers = vec![self.merge(&layers, request.id_map)?];
            if let Some(written) = written.filter(|it| self.made(it.as_str())) {
                self.discard_from(&self.layer_home(&written))?;
            }
        }
        let snapshot = Snapshot { base: request.base, source: request.source, layers, id_map: request.id_map };
        Ok(self.add_own(self.new_id(), snapshot))
    }

    /// Registers a snapshot as made by this process, unless it is registered already.
    pub(super) fn add_own(&self, id: String, snapshot: Snapshot) -> SnapshotRef {
        let name = SnapshotRef::from(format!("{SCHEME}:{id}"));
        let mut own = self.own.lock();
        let own = &mut *own;
        if let Entry::Vacant(place) = own.snapshots.entry(id) {
            for layer in &snapshot.layers {
                *own.uses.entry(layer.clone()).or_default() += 1;
            }
            place.insert(Arc::new(snapshot));
        }
        name
    }

    /// Finds a snapshot that this process made, or one that is kept.
    ///
    /// # Errors
    /// Returns [`StoreError::UnknownSnapshot`] if there is none of that name.
    pub fn snapshot(&self, snapshot: &SnapshotRef) -> Result<Arc<Snapshot>, StoreError> {
        let id = id_of(snapshot).ok_or_else(|| self.unknown(snapshot))?;
        if let Some(found) = self.own.lock().snapshots.get(id) {
            return Ok(Arc::clone(found));
        }
        let kept = self.index.read(|connection| index::snapshots::get(connection, id))?;
        kept.map(Arc::new).ok_or_else(|| self.unknown(snapshot))
    }

    /// Removes snapshots that this process made, and the layers that no other snapshot uses. Kept layers
    /// stay, and unknown snapshots are ignored.
    ///
    /// # Errors
    /// Returns the first failure. Some snapshots may be gone by then.
    pub fn remove_snapshots(&self, snapshots: &[SnapshotRef]) -> Result<(), StoreError> {
        let mut unused = Vec::new();
        {
            let mut own = self.own.lock();
            for id in snapshots.iter().filter_map(id_of) {
                own.surroundings.remove(id);
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
        unused.retain(|layer| self.made(layer.as_str()));
        unused.iter().try_for_each(|layer| self.discard_from(&self.layer_home(layer)))
    }

    /// Removes snapshots that this process made and did not keep.
    pub(super) fn remove_all_snapshots(&self) -> Result<(), StoreError> {
        let own: Vec<SnapshotRef> =
            self.own.lock().snapshots.keys().map(|id| SnapshotRef::from(format!("{SCHEME}:{id}"))).collect();
        self.remove_snapshots(&own)
    }

    pub(super) fn unknown(&self, snapshot: &SnapshotRef) -> StoreError {
        StoreError::UnknownSnapshot { snapshot: snapshot.clone(), store: self.dir().into() }
    }

    /// Puts a finished layer in its place.
    pub(super) fn place(&self, home: &Path) -> Result<LayerId, StoreError> {
        let layer = self.new_layer_id()?;
        let place = self.layer_home(&layer);
        fs::rename(home, &place).doing("make the layer", &place)?;
        Ok(layer)
    }

    pub(super) fn new_layer_id(&self) -> Result<LayerId, StoreError> {
        let id = self.new_id();
        LayerId::parse(&id)
            .ok_or_else(|| StoreError::Corrupt { path: self.dir().into(), reason: format!("`{id}` is not an id") })
    }

    fn merge(self: &Arc<Self>, layers: &[LayerId], id_map: IdMap) -> Result<LayerId, StoreError> {
        let merged = self.stage()?;
        let dirs: Vec<PathBuf> = layers.iter().map(|layer| self.layer_dir(layer)).collect();
        let upper = merged.upper();
        self.tree_ops().flatten(&dirs, &upper, id_map).doing("merge layers into", &upper)?;
        self.place(merged.home())
    }
}

/// Returns the id in a snapshot's name, if it is one of the store's.
pub(super) fn id_of(snapshot: &SnapshotRef) -> Option<&str> {
    let id = snapshot.0.strip_prefix(SCHEME)?.strip_prefix(':')?;
    LayerId::parse(id).map(|_| id)
}
