//! Commits: a step's changes become the topmost layer of a new snapshot.

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use super::{Base, IdMap, LayerId, Snapshot, SourceId, Staging, Store, StoreError, error::IoContext};
use crate::model::SnapshotRef;

/// The maximum number of layers in a snapshot. The lookup of a missing file has to search each layer.
pub const MAX_LAYERS: usize = 64;

/// The parts of a new snapshot, besides the layer just written.
#[derive(Debug)]
pub struct CommitRequest<'a> {
    /// The snapshot that the step booted from.
    pub parent: Option<&'a Snapshot>,
    /// The base image.
    pub base: Base,
    /// The source that the step saw.
    pub source: SourceId,
    /// The layer that turns the source that the parent saw into this one: see
    /// [`source::delta`](crate::source::delta()).
    pub delta: Option<LayerId>,
    /// How to interpret the owners of files in the layer.
    pub id_map: IdMap,
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
    #[doc(hidden)]
    pub fn commit(self: &Arc<Self>, staging: Staging, request: CommitRequest<'_>) -> Result<SnapshotRef, StoreError> {
        let written = if staging.prune()? { None } else { Some(self.layers().place(staging.home())?) };
        self.commit_layer(written, request)
    }

    /// Makes a snapshot whose topmost layer, if the step changed anything, came from elsewhere and is already
    /// in place: see [`image::unpack_layer`](crate::image::unpack_layer). Takes as long as [`Store::commit`].
    ///
    /// # Errors
    /// Returns an error if layers cannot be merged. No snapshot is made then.
    #[doc(hidden)]
    pub fn commit_layer(
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
            if let Some(written) = written.filter(|it| self.instance().made(it.as_str())) {
                self.trash().discard_from(&self.layers().home(&written))?;
            }
        }
        let snapshot = Snapshot { base: request.base, source: request.source, layers, id_map: request.id_map };
        Ok(self.snapshots().add(self.instance().new_id(), snapshot))
    }

    pub(super) fn merge(self: &Arc<Self>, layers: &[LayerId], id_map: IdMap) -> Result<LayerId, StoreError> {
        let merged = self.stage()?;
        let dirs: Vec<PathBuf> = layers.iter().map(|layer| self.layers().dir(layer)).collect();
        let upper = merged.upper();
        self.trash().tree_ops().flatten(&dirs, &upper, id_map).doing("merge layers into", &upper)?;
        self.layers().place(merged.home())
    }
}
