//! What layers and files are called outside of the store, so that neither is packed or hashed twice.

use super::{ImageDigest, LayerId, Store, StoreError, index};

/// What a layer is called outside of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackedName {
    /// The digest of its tar.
    pub(crate) diff_id: ImageDigest,
    /// The digest of the tar, compressed.
    pub(crate) blob: ImageDigest,
    /// How long that is.
    pub(crate) size_bytes: u64,
}

impl PackedName {
    /// A layer by the digest of its tar, and the SHA-256 and size of that when compressed.
    pub(crate) fn new(diff_id: ImageDigest, blob: [u8; 32], size_bytes: u64) -> Self {
        Self { diff_id, blob: ImageDigest::from_bytes(blob), size_bytes }
    }
}

impl Store {
    /// What a layer became when it was packed, where that is known.
    pub(crate) fn packed_name(&self, layer: &LayerId) -> Result<Option<PackedName>, StoreError> {
        self.index.read(|connection| index::blobs::packed(connection, layer))
    }

    /// Remembers what a layer became, for as long as the store keeps the layer. One that only a run has is not remembered.
    pub(crate) fn remember_packed(&self, layer: &LayerId, name: &PackedName) -> Result<(), StoreError> {
        self.index.write(|transaction| index::blobs::put_packed(transaction, layer, name))
    }

    /// The SHA-256 of contents that manifests know by another hash, where it is known.
    pub(crate) fn known_sha256(&self, contents: &[[u8; 32]]) -> Result<Vec<Option<[u8; 32]>>, StoreError> {
        self.index.read(|connection| index::blobs::sha256(connection, contents))
    }

    /// Remembers the SHA-256 of contents.
    pub(crate) fn remember_sha256(&self, known: &[([u8; 32], [u8; 32])]) -> Result<(), StoreError> {
        self.index.write(|transaction| index::blobs::put_sha256(transaction, known))
    }
}
