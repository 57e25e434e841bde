//! Layers on their way to the engine: packed once, uploaded where it lacks them.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    boot::Part,
    trouble::{self, on_thread},
};
use crate::{
    remote::{Blob, Cas, Digest, Uploaded},
    runner::RunnerError,
    store::{Base, IdMap, ImageDigest, LayerId, PackedName, Store, image_identity},
};

/// What a layer is called, once that is known; held while it is being packed, so that nobody packs it twice.
type Slot = Arc<tokio::sync::Mutex<Option<PackedName>>>;

/// More layers than this are forgotten all at once: a long-lived engine must not grow with the steps it ran.
const MAX_REMEMBERED: usize = 1 << 14;

/// What layers are called outside of the store.
#[derive(Debug, Default)]
pub(super) struct Layers(Mutex<HashMap<String, Slot>>);

/// What packing and uploading needs.
pub(super) struct Ground<'a> {
    pub(super) store: &'a Arc<Store>,
    pub(super) cas: &'a Cas,
    pub(super) id_map: IdMap,
}

impl Layers {
    /// Brings a part to the engine, where it is not there. `None` for the source, which is no layer. `uploaded` counts.
    pub(super) async fn bring(
        &self,
        ground: &Ground<'_>,
        part: &Part,
        uploaded: impl Fn(Uploaded),
    ) -> Result<Option<PackedName>, RunnerError> {
        let (key, dir, layer) = match part {
            Part::Source => return Ok(None),
            Part::Layer(layer) => (layer.to_string(), ground.store.layer_dir(layer), Some(layer.clone())),
            Part::Rootfs(dir) => (identity(dir.clone()).await?, dir.clone(), None),
        };
        let slot = self.slot(key);
        let mut slot = slot.lock().await;
        let known = match (*slot, &layer) {
            (Some(name), _) => Some(name),
            (None, Some(layer)) => ground.store.packed_name(layer).map_err(trouble::store("look the layer up"))?,
            (None, None) => None,
        };
        if let Some(name) = known {
            let missing = ground.cas.find_missing([digest(&name)]).await;
            if missing.map_err(trouble::remote("ask for layers"))?.is_empty() {
                *slot = Some(name);
                return Ok(Some(name));
            }
        }
        let name = pack(ground, dir, layer, uploaded).await?;
        *slot = Some(name);
        Ok(Some(name))
    }

    /// Remembers what a layer that came from the engine is called there.
    pub(super) async fn note(&self, store: &Store, layer: &LayerId, name: PackedName) -> Result<(), RunnerError> {
        *self.slot(layer.to_string()).lock().await = Some(name);
        store.remember_packed(layer, &name).map_err(trouble::store("remember the layer"))
    }

    fn slot(&self, key: String) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_REMEMBERED {
            slots.clear();
        }
        Arc::clone(slots.entry(key).or_default())
    }
}

/// What a packed layer is called at the engine.
pub(super) fn digest(name: &PackedName) -> Digest {
    Digest { hash: *name.blob.as_bytes(), size_bytes: name.size_bytes }
}

async fn pack(
    ground: &Ground<'_>,
    dir: PathBuf,
    layer: Option<LayerId>,
    uploaded: impl Fn(Uploaded),
) -> Result<PackedName, RunnerError> {
    let (store, id_map) = (Arc::clone(ground.store), ground.id_map);
    let packed = on_thread("pack a layer", move || {
        store.pack_layer(&dir, id_map).map_err(|error| RunnerError::infrastructure("pack a layer", error))
    });
    let packed = packed.await?;
    let name = PackedName { diff_id: packed.diff_id(), blob: packed.digest(), size_bytes: packed.size_bytes() };
    let blob = Blob::of_file(digest(&name), packed.path());
    uploaded(ground.cas.upload(vec![blob]).await.map_err(trouble::remote("upload a layer"))?);
    if let Some(layer) = layer {
        ground.store.remember_packed(&layer, &name).map_err(trouble::store("remember the layer"))?;
    }
    Ok(name)
}

/// What a root filesystem is just now.
async fn identity(dir: PathBuf) -> Result<String, RunnerError> {
    on_thread("look at the image", move || {
        image_identity(&Base::Rootfs(dir), &[]).map_err(trouble::store("look at the image"))
    })
    .await
}

/// A digest as images have it.
pub(super) fn image_digest(text: &str) -> Result<ImageDigest, RunnerError> {
    text.parse().map_err(|error| RunnerError::infrastructure("read what the step left", anyhow::Error::new(error)))
}
