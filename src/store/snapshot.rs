//! Snapshots: which layers a child boots from, over which source and image.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Base, IdMap, LayerId, SourceId, Staging, Store, StoreError, error::Doing, layout::names};
use crate::runner::SnapshotRef;

/// The scheme of [`SnapshotRef`]s made of store layers.
const SCHEME: &str = "hm1";

/// Snapshots never have more layers than this: a lookup of what is not there asks each of them.
pub const MAX_LAYERS: usize = 64;

const RECORD_VERSION: u32 = 1;

/// A filesystem to boot from: the image, over it the source, over it the layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The image at the bottom.
    pub base: Base,
    /// The source that its steps saw last.
    pub source: SourceId,
    /// What its steps changed, topmost first.
    pub layers: Vec<LayerId>,
    /// How the layers' owners are to be understood.
    pub id_map: IdMap,
}

/// What a new snapshot is made of, besides the layer just written.
#[derive(Debug)]
pub struct CommitRequest<'a> {
    /// The snapshot that the step booted from.
    pub parent: Option<&'a Snapshot>,
    /// The image at the bottom.
    pub base: Base,
    /// The source that the step saw.
    pub source: SourceId,
    /// The layer that turned the source the parent saw into this one: see [`Store::delta`].
    pub delta: Option<LayerId>,
    /// How the layer's owners are to be understood.
    pub id_map: IdMap,
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    #[serde(flatten)]
    snapshot: Snapshot,
}

impl Store {
    /// Turns what a step wrote into a snapshot, by rename. An untouched upper makes no layer of its own.
    ///
    /// Takes some 100 µs, but for a snapshot that would have more than [`MAX_LAYERS`]: its layers are merged into one,
    /// which takes as long as linking their files.
    ///
    /// # Errors
    /// Where the layer or the record can't be put in place; then there is no snapshot.
    #[expect(clippy::needless_pass_by_value, reason = "a committed staging is gone")]
    pub fn commit(self: &Arc<Self>, staging: Staging, request: CommitRequest<'_>) -> Result<SnapshotRef, StoreError> {
        let written = if staging.prune()? { None } else { Some(self.place(staging.home())?) };
        let mut layers: Vec<LayerId> = written.iter().cloned().collect();
        layers.extend(request.delta);
        if let Some(parent) = request.parent {
            layers.extend_from_slice(&parent.layers);
        }
        if layers.len() > MAX_LAYERS {
            layers = vec![self.merge(&layers, request.id_map)?];
            if let Some(written) = written {
                self.discard_from(&self.layer_home(&written))?;
            }
        }
        let snapshot = Snapshot { base: request.base, source: request.source, layers, id_map: request.id_map };
        self.record(snapshot)
    }

    /// Reads a snapshot.
    ///
    /// # Errors
    /// [`StoreError::UnknownSnapshot`] where there is none of that name.
    pub fn snapshot(&self, snapshot: &SnapshotRef) -> Result<Snapshot, StoreError> {
        let unknown = || StoreError::UnknownSnapshot { snapshot: snapshot.clone(), store: self.dir().into() };
        let path = self.record_path(snapshot).ok_or_else(unknown)?;
        read(&path)?.ok_or_else(unknown)
    }

    /// Removes snapshots, and the layers that no other snapshot has. Unknown ones are passed over.
    ///
    /// # Errors
    /// The first failure; some may be gone by then.
    pub fn remove_snapshots(&self, snapshots: &[SnapshotRef]) -> Result<(), StoreError> {
        self.remove_records(snapshots.iter().filter_map(|snapshot| self.record_path(snapshot)), BTreeSet::new())
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
            .ok_or_else(|| StoreError::Corrupt { path: self.dir().into(), reason: format!("`{id}` is no id") })
    }

    fn merge(self: &Arc<Self>, layers: &[LayerId], id_map: IdMap) -> Result<LayerId, StoreError> {
        let merged = self.stage()?;
        let dirs: Vec<PathBuf> = layers.iter().map(|layer| self.layer_dir(layer)).collect();
        let upper = merged.upper();
        self.tree_ops().flatten(&dirs, &upper, id_map).doing("merge layers into", &upper)?;
        self.place(merged.home())
    }

    fn record(&self, snapshot: Snapshot) -> Result<SnapshotRef, StoreError> {
        let id = self.new_id();
        let path = self.dir().join("snapshots").join(format!("{id}.json"));
        let record = serde_json::to_vec(&Record { version: RECORD_VERSION, snapshot })
            .map_err(|error| StoreError::Corrupt { path: path.clone(), reason: error.to_string() })?;
        self.write_file(&path, &record)?;
        Ok(SnapshotRef::from(format!("{SCHEME}:{id}")))
    }

    fn record_path(&self, snapshot: &SnapshotRef) -> Option<PathBuf> {
        let id = LayerId::parse(snapshot.0.strip_prefix(SCHEME)?.strip_prefix(':')?)?;
        Some(self.dir().join("snapshots").join(format!("{id}.json")))
    }

    /// Removes records, then those of their layers, and of `layers`, that no other record has.
    fn remove_records(
        &self,
        records: impl Iterator<Item = PathBuf>,
        mut layers: BTreeSet<LayerId>,
    ) -> Result<(), StoreError> {
        for path in records {
            layers.extend(layers_of(&path)?);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", path, error));
                }
                _ => {}
            }
        }
        if layers.is_empty() {
            return Ok(());
        }
        let dir = self.dir().join("snapshots");
        for name in names(&dir)? {
            for layer in layers_of(&dir.join(name))? {
                layers.remove(&layer);
            }
        }
        // Another process may be about to boot from a delta, which is found by what it is made of.
        layers.iter().filter(|layer| !layer.is_delta()).try_for_each(|layer| self.discard_from(&self.layer_home(layer)))
    }
}

/// Removes every snapshot and layer that the process named `instance` made, but for layers that others built on and frozen sources.
pub(super) fn remove_all_of(store: &Store, instance: &str) -> Result<(), StoreError> {
    let (records, layers) = (store.dir().join("snapshots"), store.dir().join("layers"));
    let of_it = |name: &String| name.starts_with(instance);
    let sources = store.source_layers()?;
    let layers = names(&layers)?.into_iter().filter(of_it).filter_map(|name| LayerId::parse(&name));
    let layers = layers.filter(|layer| !sources.contains(layer)).collect();
    store.remove_records(names(&records)?.into_iter().filter(of_it).map(|name| records.join(name)), layers)
}

/// The layers in a record, of which there are none where it is gone or broken: nothing can boot from it.
fn layers_of(record: &Path) -> Result<Vec<LayerId>, StoreError> {
    match read(record) {
        Ok(snapshot) => Ok(snapshot.map_or_else(Vec::new, |snapshot| snapshot.layers)),
        Err(error @ StoreError::Corrupt { .. }) => {
            tracing::warn!(%error, "a snapshot is lost");
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// Reads a record; `None` where there is none.
fn read(path: &Path) -> Result<Option<Snapshot>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("read", path, error)),
    };
    let record: Record = serde_json::from_slice(&bytes)
        .map_err(|error| StoreError::Corrupt { path: path.into(), reason: error.to_string() })?;
    if record.version != RECORD_VERSION {
        return Err(StoreError::Corrupt { path: path.into(), reason: format!("version {}", record.version) });
    }
    Ok(Some(record.snapshot))
}
