//! Uploads layers to an engine. A layer is packed once, and uploaded if the engine lacks it.

use crate::image;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::TransferError;
use crate::{
    blocking,
    remote::{Blob, Cas, Digest, DigestFunction, Uploaded},
    store::{IdMap, ImageDigest, LayerId, PackedDigests, Store, StoreError},
    sync::Mutex,
};

/// A layer in the form in which an engine has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RemoteLayer {
    /// The digest of its tar.
    pub(crate) diff_id: ImageDigest,
    /// The compressed tar.
    pub(crate) blob: Digest,
}

/// A layer whose digests are known.
#[derive(Debug, Clone, Copy)]
struct KnownLayer {
    name: RemoteLayer,
    /// When the engine last had it.
    seen: Option<Instant>,
}

impl KnownLayer {
    /// Returns a layer that the engine has.
    fn seen(name: RemoteLayer) -> Self {
        Self { name, seen: Some(Instant::now()) }
    }
}

/// A layer, once its digests are known. Locked while the layer is being packed, so that it is not packed
/// twice.
type Slot = Arc<tokio::sync::Mutex<Option<KnownLayer>>>;

/// For how long the engine is not asked again for a layer. Thousands of steps may need the same one. If the
/// engine loses it in the meantime, the step is prepared once more: see [`Uploads::distrust`].
const SEEN: Duration = Duration::from_secs(30);

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
    ) -> Result<RemoteLayer, TransferError> {
        let function = context.cas.digest_function().await.map_err(TransferError::remote("look for layers"))?;
        let (key, dir, layer) = match packable {
            Packable::Layer(layer) => (layer.to_string(), context.store.layers().dir(&layer), Some(layer)),
            Packable::Tree { identity, dir } => (identity, dir, None),
        };
        let slot = self.slot(key);
        let mut slot = slot.lock().await;
        let known = match (*slot, &layer) {
            (Some(KnownLayer { name, seen: Some(seen) }), _) if seen.elapsed() < SEEN => return Ok(name),
            (Some(known), _) => Some(known.name),
            (None, Some(layer)) => known(context.store, layer.clone(), function).await?,
            (None, None) => None,
        };
        if let Some(name) = known {
            let missing = context.cas.find_missing([name.blob]).await;
            if missing.map_err(TransferError::remote("look for layers"))?.is_empty() {
                *slot = Some(KnownLayer::seen(name));
                return Ok(name);
            }
        }
        let name = pack(context, function, dir, layer, uploaded).await?;
        *slot = Some(KnownLayer::seen(name));
        Ok(name)
    }

    /// Returns whether the engine has a layer that was packed before, as a whole.
    pub(super) async fn has_whole(&self, context: TransferContext<'_>, layer: &LayerId) -> Result<bool, TransferError> {
        const DOING: &str = "look for layers";
        let function = context.cas.digest_function().await.map_err(TransferError::remote(DOING))?;
        let slot = self.slot(layer.to_string());
        let mut slot = slot.lock().await;
        let known = match *slot {
            Some(KnownLayer { seen: Some(seen), .. }) if seen.elapsed() < SEEN => return Ok(true),
            Some(known) => Some(known.name),
            None => known(context.store, layer.clone(), function).await?,
        };
        let Some(name) = known else { return Ok(false) };
        let missing = context.cas.find_missing([name.blob]).await.map_err(TransferError::remote(DOING))?;
        if missing.is_empty() {
            *slot = Some(KnownLayer::seen(name));
        }
        Ok(missing.is_empty())
    }

    /// Asks the engine again for each layer that is needed, because it lost something.
    pub(crate) async fn distrust(&self) {
        let slots: Vec<Slot> = self.0.lock().values().map(Arc::clone).collect();
        for slot in slots {
            if let Some(known) = &mut *slot.lock().await {
                known.seen = None;
            }
        }
    }

    /// Remembers the digests of a layer that came from the engine.
    pub(crate) async fn note(&self, store: &Store, layer: &LayerId, name: RemoteLayer) -> Result<(), TransferError> {
        *self.slot(layer.to_string()).lock().await = Some(KnownLayer::seen(name));
        match name.blob.function {
            DigestFunction::Sha256 => {
                let name = PackedDigests::new(name.diff_id, name.blob.hash, name.blob.size_bytes);
                store.digests().remember_layer(layer, &name).map_err(TransferError::store("remember the layer"))
            }
            // The store names packed layers by SHA-256, which nothing has computed.
            DigestFunction::Blake3 => Ok(()),
        }
    }

    fn slot(&self, key: String) -> Slot {
        let mut slots = self.0.lock();
        if slots.len() >= MAX_REMEMBERED {
            slots.clear();
        }
        Arc::clone(slots.entry(key).or_default())
    }
}

/// Returns the name of a layer that was packed before, if the store knows its digest by this function.
async fn known(
    store: &Arc<Store>,
    layer: LayerId,
    function: DigestFunction,
) -> Result<Option<RemoteLayer>, TransferError> {
    const DOING: &str = "look the layer up";
    let store = Arc::clone(store);
    let found = blocking::run(DOING, move || store.digests().of_layer(&layer).map_err(TransferError::store(DOING)));
    let Some(PackedDigests { diff_id, blob, size_bytes, blake3 }) = found.await? else { return Ok(None) };
    let hash = match function {
        DigestFunction::Sha256 => Some(*blob.as_bytes()),
        DigestFunction::Blake3 => blake3,
    };
    Ok(hash.map(|hash| RemoteLayer { diff_id, blob: Digest { function, hash, size_bytes } }))
}

async fn pack(
    context: TransferContext<'_>,
    function: DigestFunction,
    dir: PathBuf,
    layer: Option<LayerId>,
    uploaded: impl Fn(Uploaded),
) -> Result<RemoteLayer, TransferError> {
    let (store, id_map) = (Arc::clone(context.store), context.id_map);
    let packed = blocking::run("pack a layer", move || {
        let packed = image::pack_layer(&store, &dir, id_map).map_err(TransferError::Pack)?;
        let sha256 = *packed.digest().as_bytes();
        let blob = match function {
            DigestFunction::Sha256 => Digest { function, hash: sha256, size_bytes: packed.size_bytes() },
            DigestFunction::Blake3 => hash(function, packed.path())?,
        };
        if let Some(layer) = layer {
            let blake3 = (function == DigestFunction::Blake3).then_some(blob.hash);
            let name = PackedDigests { blake3, ..PackedDigests::new(packed.diff_id(), sha256, packed.size_bytes()) };
            store.digests().remember_layer(&layer, &name).map_err(TransferError::store("remember the layer"))?;
        }
        Ok::<_, TransferError>((packed, blob))
    });
    let (packed, blob) = packed.await?;
    let uploading = context.cas.upload(vec![Blob::of_file(blob, packed.path())]).await;
    uploaded(uploading.map_err(TransferError::remote("upload a layer"))?);
    Ok(RemoteLayer { diff_id: packed.diff_id(), blob })
}

fn hash(function: DigestFunction, path: &Path) -> Result<Digest, TransferError> {
    let read = function.of_file(path);
    read.map_err(|error| TransferError::store("read a packed layer")(StoreError::io("read", path, error)))
}
