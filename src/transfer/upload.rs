//! Uploads layers to an engine. A layer is packed once, and uploaded if the engine lacks it.

use crate::image;
use std::{collections::HashMap, path::PathBuf, sync::Arc};

use super::TransferError;
use crate::{
    blocking,
    remote::{Blob, Cas, Digest, Uploaded},
    store::{IdMap, LayerId, PackedDigests, Store},
    sync::Mutex,
};

/// The digests of a layer, once they are known. Locked while the layer is being packed, so that it is not
/// packed twice.
type Slot = Arc<tokio::sync::Mutex<Option<PackedDigests>>>;

/// If there are more layers than this, all of them are forgotten at once: a long-running engine must not grow
/// with the number of steps that it ran.
const MAX_REMEMBERED: usize = 1 << 14;

/// The digests of layers outside of the store.
#[derive(Debug, Default)]
pub(crate) struct Uploads(Mutex<HashMap<String, Slot>>);

/// Something that can be packed as a layer.
#[derive(Debug, Clone)]
pub(crate) enum Packable {
    /// A layer of the store.
    Layer(LayerId),
    /// A directory, with an identity of its state.
    Tree { identity: String, dir: PathBuf },
}

/// The context of packing and uploading.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TransferContext<'a> {
    pub(crate) store: &'a Arc<Store>,
    pub(crate) cas: &'a Cas,
    pub(crate) id_map: IdMap,
}

impl Uploads {
    /// Uploads a layer to the engine, unless it is there already. `uploaded` counts.
    pub(crate) async fn bring(
        &self,
        context: TransferContext<'_>,
        packable: Packable,
        uploaded: impl Fn(Uploaded),
    ) -> Result<PackedDigests, TransferError> {
        let (key, dir, layer) = match packable {
            Packable::Layer(layer) => (layer.to_string(), context.store.layers().dir(&layer), Some(layer)),
            Packable::Tree { identity, dir } => (identity, dir, None),
        };
        let slot = self.slot(key);
        let mut slot = slot.lock().await;
        let known = match (*slot, &layer) {
            (Some(name), _) => Some(name),
            (None, Some(layer)) => {
                context.store.digests().of_layer(layer).map_err(TransferError::store("look the layer up"))?
            }
            (None, None) => None,
        };
        if let Some(name) = known {
            let missing = context.cas.find_missing([digest(&name)]).await;
            if missing.map_err(TransferError::remote("look for layers"))?.is_empty() {
                *slot = Some(name);
                return Ok(name);
            }
        }
        let name = pack(context, dir, layer, uploaded).await?;
        *slot = Some(name);
        Ok(name)
    }

    /// Remembers the digests of a layer that came from the engine.
    pub(crate) async fn note(&self, store: &Store, layer: &LayerId, name: PackedDigests) -> Result<(), TransferError> {
        *self.slot(layer.to_string()).lock().await = Some(name);
        store.digests().remember_layer(layer, &name).map_err(TransferError::store("remember the layer"))
    }

    fn slot(&self, key: String) -> Slot {
        let mut slots = self.0.lock();
        if slots.len() >= MAX_REMEMBERED {
            slots.clear();
        }
        Arc::clone(slots.entry(key).or_default())
    }
}

/// Returns the digest of a packed layer at the engine.
pub(crate) fn digest(name: &PackedDigests) -> Digest {
    Digest { hash: *name.blob.as_bytes(), size_bytes: name.size_bytes }
}

async fn pack(
    context: TransferContext<'_>,
    dir: PathBuf,
    layer: Option<LayerId>,
    uploaded: impl Fn(Uploaded),
) -> Result<PackedDigests, TransferError> {
    let (store, id_map) = (Arc::clone(context.store), context.id_map);
    let packed =
        blocking::run("pack a layer", move || image::pack_layer(&store, &dir, id_map).map_err(TransferError::Pack));
    let packed = packed.await?;
    let name = PackedDigests { diff_id: packed.diff_id(), blob: packed.digest(), size_bytes: packed.size_bytes() };
    let blob = Blob::of_file(digest(&name), packed.path());
    uploaded(context.cas.upload(vec![blob]).await.map_err(TransferError::remote("upload a layer"))?);
    if let Some(layer) = layer {
        context.store.digests().remember_layer(&layer, &name).map_err(TransferError::store("remember the layer"))?;
    }
    Ok(name)
}
