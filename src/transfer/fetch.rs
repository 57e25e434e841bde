//! Fetches layers from an engine.

use std::{fs::File, sync::Arc};

use super::TransferError;
use crate::{
    blocking,
    image::{self, LayerLock},
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

const DOING: &str = "fetch a layer";

/// What was found in the store.
#[derive(Debug)]
pub(super) enum Looked {
    /// The layer.
    Found(LayerId),
    /// The layer is not there, and no other task or process will make it meanwhile.
    Locked(LayerLock),
}

/// Looks for a layer in the store. Waits until no other task or process is making it.
pub(super) async fn look(store: &Arc<Store>, parcel: Parcel) -> Result<Looked, TransferError> {
    let Parcel { diff_id, id_map, .. } = parcel;
    let layer = image::layer_id(&diff_id, id_map);
    let lock = image::lock_layer(store, &layer).await.map_err(TransferError::store(DOING))?;
    let finder = Arc::clone(store);
    let found =
        blocking::run(DOING, move || image::find_layer(&finder, &diff_id, id_map).map_err(TransferError::store(DOING)));
    Ok(found.await?.map_or(Looked::Locked(lock), Looked::Found))
}

/// Adds a layer to the store, unless it is there already. If another task or process fetches it at the same
/// time, only one of them downloads. Take a [lease](Store::lease) first. `name` is used in errors.
/// Returns whether it was fetched, so that its blob is known to be that of the layer.
///
/// # Cancel safety
/// If the future is dropped, at most a temporary file of the store is left, which is removed when this
/// process ends.
pub(crate) async fn fetch_layer(
    store: &Arc<Store>,
    cas: &Cas,
    name: &'static str,
    parcel: Parcel,
) -> Result<(LayerId, bool), TransferError> {
    let Parcel { diff_id, blob, id_map } = parcel;
    let _lock = match look(store, parcel).await? {
        Looked::Found(layer) => return Ok((layer, false)),
        Looked::Locked(lock) => lock,
    };
    let path = store.instance().new_tmp();
    let downloaded = cas.read_to_file(blob, &path).await.map_err(TransferError::remote(DOING));
    let store = Arc::clone(store);
    blocking::run(DOING, move || {
        let unpack = || {
            downloaded?;
            let file =
                File::open(&path).map_err(|error| TransferError::store(DOING)(StoreError::io("open", &path, error)))?;
            let file = BlobFile { file, offset: 0, length: blob.size_bytes };
            Ok((image::unpack_layer(&store, image::LayerFile::new(name, diff_id, file), id_map)?, true))
        };
        let unpacked = unpack();
        store.trash().discard(path.clone());
        unpacked
    })
    .await
}
