//! Layers that come from an engine.

use std::{fs::File, sync::Arc};

use super::TransferError;
use crate::{
    remote::{Cas, Digest},
    store::{BlobFile, IdMap, ImageDigest, LayerId, Store, StoreError, tree::UnpackLimits},
};

/// A layer as an engine has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parcel {
    /// The digest of its tar.
    pub(crate) diff_id: ImageDigest,
    /// The compressed tar.
    pub(crate) blob: Digest,
    /// How its owners are to be mapped.
    pub(crate) id_map: IdMap,
}

/// Brings a layer into the store, where it is not there. Somebody else may be at it at the same time: then one of them
/// downloads. Take a [lease](Store::lease) first. `name` is for errors.
///
/// # Cancel safety
/// Dropped, at most a temporary file of the store is left, which goes with this process.
pub(crate) async fn fetch_layer(
    store: &Arc<Store>,
    cas: &Cas,
    name: &'static str,
    parcel: Parcel,
) -> Result<LayerId, TransferError> {
    const DOING: &str = "fetch a layer";
    let Parcel { diff_id, blob, id_map } = parcel;
    let layer = Store::layer_id(&diff_id, id_map);
    let _lock = store.lock_layer(&layer).await.map_err(TransferError::store(DOING))?;
    let finder = Arc::clone(store);
    let found = TransferError::on_thread(DOING, move || {
        finder.layer_by_content(&diff_id, id_map).map_err(TransferError::store(DOING))
    });
    if let Some(layer) = found.await? {
        return Ok(layer);
    }
    let path = store.new_tmp();
    let downloaded = cas.read_to_file(blob, &path).await.map_err(TransferError::remote(DOING));
    let store = Arc::clone(store);
    TransferError::on_thread(DOING, move || {
        let unpack = || {
            downloaded?;
            let file =
                File::open(&path).map_err(|error| TransferError::store(DOING)(StoreError::io("open", &path, error)))?;
            let file = BlobFile { file, offset: 0, length: blob.size_bytes };
            Ok(store.unpack_layer(name, &diff_id, id_map, file, UnpackLimits::default())?)
        };
        let unpacked = unpack();
        store.discard(path.clone());
        unpacked
    })
    .await
}
