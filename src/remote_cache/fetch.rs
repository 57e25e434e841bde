//! Fetches the parts of a shared result.

use std::{collections::HashSet, fs::OpenOptions, os::unix::fs::OpenOptionsExt, sync::Arc};

use futures_util::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};

use super::{
    entry::{LayerForm, LayerName, SharedEntry},
    error::RemoteCacheError,
    options::RemoteCache,
};
use crate::{
    blocking,
    cache::CacheKey,
    source,
    store::{Base, IdMap, KeepAs, LayerId, Snapshot, Store},
    transfer::{Parcel, RemoteLayer, fetch_layer},
};

/// The maximum number of layers of one result that are fetched or shared at a time. Each takes a processor.
pub(super) const LAYERS: usize = 4;
/// How many results of a step are searched for chunks.
const SIMILAR: u32 = 3;
/// The maximum size of a manifest, enough for a source of about two million files.
const MAX_MANIFEST_BYTES: u64 = 256 << 20;

impl RemoteCache {
    /// Fetches a result's files into the store, and keeps the result under its key as if its step had run
    /// here.
    pub(super) async fn fetch(
        &self,
        store: &Arc<Store>,
        pipeline: &str,
        image: &str,
        key: &CacheKey,
        entry: &Arc<SharedEntry>,
    ) -> Result<(), RemoteCacheError> {
        let _turn = self.moves.acquire().await;
        // Held until the result has its row.
        let _lease = store.lease()?;
        let id_map = self.userns.prepare_trees(store).await?;
        if id_map != entry.id_map {
            return Err(RemoteCacheError::Foreign("its file owners are mapped differently".into()));
        }
        if self.images.fetch(store, image, id_map, &()).await? != Base::Image(entry.image) {
            return Err(RemoteCacheError::Foreign(format!("{image} is another image here")));
        }
        let mut layers = self.fetch_layers(store, (pipeline, id_map), entry).await?;
        // An overlay does not accept the same layer twice, and the lower one shows nothing that the higher
        // one does not.
        let mut seen = HashSet::new();
        layers.retain(|layer| seen.insert(layer.clone()));
        let manifest = match source::has_manifest(store, &entry.source) {
            true => None,
            false => Some(self.cas.read(entry.manifest.0, MAX_MANIFEST_BYTES).await?),
        };
        self.fetch_log(store, key, entry).await?;
        let (store, entry, key, pipeline) = (Arc::clone(store), Arc::clone(entry), *key, pipeline.to_owned());
        blocking::run("keep a shared result", move || {
            if let Some(manifest) = manifest {
                source::import_manifest(&store, &entry.source, &manifest)?;
            }
            let SharedEntry { run, step, created_at, .. } = &*entry;
            let snapshot = Snapshot { base: Base::Image(entry.image), source: entry.source.clone(), layers, id_map };
            let snapshot = store.snapshots().import(&entry.snapshot, snapshot)?;
            let name = KeepAs::Cached { key: &key.0, run: *run, pipeline: &pipeline, step, created_at: *created_at };
            Ok(store.keep(&snapshot, name)?)
        })
        .await
    }

    /// Fetches the step's output.
    pub(super) async fn fetch_log(
        &self,
        store: &Arc<Store>,
        key: &CacheKey,
        entry: &SharedEntry,
    ) -> Result<(), RemoteCacheError> {
        let aside = store.instance().new_tmp();
        match entry.log {
            Some(log) => self.cas.read_to_file(log.0, &aside).await?,
            // The step printed nothing. An empty file replaces any older one.
            None => OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&aside)
                .map(drop)
                .map_err(|source| RemoteCacheError::Read { what: "a log", source })?,
        }
        Ok(store.steps().import_log(&key.0, &aside)?)
    }

    async fn fetch_layers(
        &self,
        store: &Arc<Store>,
        (pipeline, id_map): (&str, IdMap),
        entry: &SharedEntry,
    ) -> Result<Vec<LayerId>, RemoteCacheError> {
        let mut similar = vec![Vec::new(); entry.layers.len()];
        if entry.layers.iter().any(|layer| layer.list().is_some()) {
            for stack in last_layers(store, pipeline, &entry.step, id_map).await {
                stack.into_iter().zip(&mut similar).for_each(|(layer, similar)| similar.push(layer));
            }
        }
        // Boxed and collected: the compiler cannot prove that a stream which creates the futures lazily is
        // `Send`.
        let fetches: Vec<BoxFuture<'_, Result<LayerId, RemoteCacheError>>> = entry
            .layers
            .iter()
            .zip(similar)
            .map(|(name, similar)| self.fetch_one(store, id_map, *name, similar).boxed())
            .collect();
        stream::iter(fetches).buffered(LAYERS).try_collect().await
    }

    async fn fetch_one(
        &self,
        store: &Arc<Store>,
        id_map: IdMap,
        layer: LayerName,
        similar: Vec<LayerId>,
    ) -> Result<LayerId, RemoteCacheError> {
        const NAME: &str = "the cached step's layer";
        let LayerName { diff_id, form } = layer;
        let blob = match form {
            LayerForm::Chunks(list) => {
                let parcel = Parcel { diff_id, blob: list.0, id_map };
                return Ok(self.chunks.fetch(store, &self.cas, NAME, parcel, similar).await?);
            }
            LayerForm::Blob(blob) => blob,
        };
        let parcel = Parcel { diff_id, blob: blob.0, id_map };
        let (layer, is_fetched) = fetch_layer(store, &self.cas, NAME, parcel).await?;
        if !is_fetched {
            return Ok(layer);
        }
        // So that the layer is not packed again when a step that builds on it is shared.
        self.uploads.note(store, &layer, RemoteLayer { diff_id, blob: blob.0 }).await?;
        Ok(layer)
    }
}

/// Returns the layers of the last results of a step. If they cannot be read, all chunks are fetched.
pub(super) async fn last_layers(store: &Arc<Store>, pipeline: &str, step: &str, id_map: IdMap) -> Vec<Vec<LayerId>> {
    let (store, pipeline, step) = (Arc::clone(store), pipeline.to_owned(), step.to_owned());
    let read = move || Ok::<_, RemoteCacheError>(store.steps().last_layers(&pipeline, &step, id_map, SIMILAR)?);
    blocking::run("look for similar layers", read).await.unwrap_or_else(|error| {
        tracing::debug!("fetching every chunk: {}", error.into_line());
        Vec::new()
    })
}
