//! Fetches layers from an engine.

use crate::image;
use std::{fs::File, sync::Arc};

use super::TransferError;
use crate::{
    blocking,
    remote::{Cas, Digest},
    store::{BlobFile, IdMap, ImageDigest, LayerId, Store, StoreError},
};

/// A layer in the form in which an engine has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parcel {
    /// The digest of its tar.
    pub(crate) diff_id: ImageDigest,
    /// The compressed tar.
    pub(crate) blob: Digest,
    /// How its owners are mapped.
    pub(crate) id_map: IdMap,
}

/// Adds a layer to the store, unless it is there already. If another task or process fetches it at the same
/// time, only one of them downloads. Take a [lease](Store::lease) first. `name` is used in errors.
///
/// # Cancel safety
/// If the future is dropped, at most a temporary file of the store is left, which is removed when this
/// process ends.
pub(crate) async fn fetch_layer(
    store: &Arc<Store>,
    cas: &Cas,
    name: &'static str,
    parcel: Parcel,
) -> Result<LayerId, TransferError> {
    const DOING: &str = "fetch a layer";
    let Parcel { diff_id, blob, id_map } = parcel;
    let layer = image::layer_id(&diff_id, id_map);
    let _lock = image::lock_layer(store, &layer).await.map_err(TransferError::store(DOING))?;
    let finder = Arc::clone(store);
    let found =
        blocking::run(DOING, move || image::find_layer(&finder, &diff_id, id_map).map_err(TransferError::store(DOING)));
    if let Some(layer) = found.await? {
        return Ok(layer);
    }
    let path = store.instance().new_tmp();
    let downloaded = cas.read_to_file(blob, &path).await.map_err(TransferError::remote(DOING));
    let store = Arc::clone(store);
    blocking::run(DOING, move || {
        let unpack = || {
            downloaded?;
            let file =
                File::open(&path).map_err(|error| TransferError::store(DOING)(StoreError::io("open", &path, error)))?;
            let file = BlobFile { file, offset: 0, length: blob.size_bytes };
            Ok(image::unpack_layer(&store, image::LayerFile::new(name, diff_id, file), id_map)?)
        };
        let unpacked = unpack();
        store.trash().discard(path.clone());
        unpacked
    })
    .await
}
