//! The digests of layers and files outside of the store, recorded so that nothing is packed or hashed twice.

use std::sync::Arc;

use super::{
    ImageDigest, LayerId, SourceId, StoreError,
    index::{self, inputs::InputRow},
    shared::Shared,
    snapshots::id_of,
};
use crate::model::SnapshotRef;

/// The digests of a layer outside of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackedDigests {
    /// The digest of its uncompressed tar.
    pub(crate) diff_id: ImageDigest,
    /// The digest of its compressed tar.
    pub(crate) blob: ImageDigest,
    /// The size of the compressed tar.
    pub(crate) size_bytes: u64,
    /// The BLAKE3 of the compressed tar, if it was computed.
    pub(crate) blake3: Option<[u8; 32]>,
}

impl PackedDigests {
    /// Collects them from the digest of a layer's tar, and from the SHA-256 and the size of the compressed
    /// tar.
    pub(crate) fn new(diff_id: ImageDigest, blob: [u8; 32], size_bytes: u64) -> Self {
        Self { diff_id, blob: ImageDigest::from_bytes(blob), size_bytes, blake3: None }
    }
}

/// A layer that was cut into chunks, outside of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListDigest {
    /// The digest of its uncompressed tar.
    pub(crate) diff_id: ImageDigest,
    /// The digest of the list of its chunks, as an engine names it.
    pub(crate) list: String,
}

/// The recorded digests of a store.
#[derive(Debug)]
pub(crate) struct Digests {
    shared: Arc<Shared>,
}

impl Digests {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Returns the digests of a layer if it was packed before.
    pub(crate) fn of_layer(&self, layer: &LayerId) -> Result<Option<PackedDigests>, StoreError> {
        self.shared.index.read(|connection| index::blobs::packed(connection, layer))
    }

    /// Remembers the digests of a packed layer for as long as the store keeps the layer. A layer that only a
    /// run has, without a row in the index, is not remembered.
    pub(crate) fn remember_layer(&self, layer: &LayerId, name: &PackedDigests) -> Result<(), StoreError> {
        self.shared.index.write(|transaction| index::blobs::put_packed(transaction, layer, name))
    }

    /// Returns how many bytes a kept layer takes on the disk.
    pub(crate) fn bytes_of(&self, layer: &LayerId) -> Result<Option<u64>, StoreError> {
        self.shared.index.read(|connection| index::blobs::bytes(connection, layer))
    }

    /// Returns the digests of a layer if it was cut into chunks before.
    pub(crate) fn list_of(&self, layer: &LayerId) -> Result<Option<ListDigest>, StoreError> {
        self.shared.index.read(|connection| index::blobs::list(connection, layer))
    }

    /// Remembers the list of a layer's chunks as [`remember_layer`](Self::remember_layer) does its digests.
    pub(crate) fn remember_list(&self, layer: &LayerId, list: &ListDigest) -> Result<(), StoreError> {
        self.shared.index.write(|transaction| index::blobs::put_list(transaction, layer, list))
    }

    /// Returns the SHA-256 of contents that manifests identify by another hash, if it is known.
    pub(crate) fn sha256_of(&self, contents: &[[u8; 32]]) -> Result<Vec<Option<[u8; 32]>>, StoreError> {
        self.shared.index.read(|connection| index::blobs::sha256(connection, contents))
    }

    /// Remembers the SHA-256 of contents.
    pub(crate) fn remember_sha256(&self, known: &[([u8; 32], [u8; 32])]) -> Result<(), StoreError> {
        self.shared.index.write(|transaction| index::blobs::put_sha256(transaction, known))
    }

    /// Returns the digest of what is at a path in a snapshot, as steps over `source` see it, if it is known.
    pub(crate) fn of_input(
        &self,
        snapshot: &SnapshotRef,
        source: &SourceId,
        path: &str,
    ) -> Result<Option<[u8; 32]>, StoreError> {
        let Some(snapshot) = id_of(snapshot) else { return Ok(None) };
        self.shared.index.read(|connection| index::inputs::get(connection, InputRow { snapshot, source, path }))
    }

    /// Remembers such a digest for as long as the store keeps the snapshot and the source. A snapshot that
    /// only a run has is not remembered.
    pub(crate) fn remember_input(
        &self,
        (snapshot, source): (&SnapshotRef, &SourceId),
        path: &str,
        digest: &[u8; 32],
    ) -> Result<(), StoreError> {
        let Some(snapshot) = id_of(snapshot) else { return Ok(()) };
        let row = InputRow { snapshot, source, path };
        self.shared.index.write(|transaction| index::inputs::put(transaction, row, digest))
    }
}
