//! Shares results.

use crate::source;
use std::{path::PathBuf, sync::Arc};

use super::{
    entry::{BlobName, LayerName, SharedEntry, VERSION, action_of},
    error::{Consequence, RemoteCacheError},
    options::RemoteCache,
};
use crate::{
    blocking,
    cache::{CacheKey, Found},
    remote::{Blob, Digest},
    store::{Base, LayerId, Store},
    transfer::{Packable, TransferContext, digest},
};

impl RemoteCache {
    pub(super) async fn publish(&self, store: &Arc<Store>, pipeline: &str, key: CacheKey, found: Found) {
        if self.is_read_only() || self.is_resting() {
            return;
        }
        let _turn = self.moves.acquire().await;
        match self.try_share(store, pipeline, key, &found).await {
            Ok(()) => {}
            // For example, garbage collection has removed a layer in the meantime.
            Err(error) if error.consequence() == Consequence::Miss => {
                tracing::warn!(step = &*found.step, "failed to share a result: {}", error.into_line());
            }
            Err(error) => self.note(&format!("share a result at {}", self.place), error),
        }
    }

    async fn try_share(
        &self,
        store: &Arc<Store>,
        pipeline: &str,
        key: CacheKey,
        found: &Found,
    ) -> Result<(), RemoteCacheError> {
        let snapshot = store.snapshots().get(&found.snapshot)?;
        let Base::Image(image) = snapshot.base else { return Ok(()) };
        let _lease = store.lease()?;
        let id_map = self.userns.prepare_trees(store).await?;
        if id_map != snapshot.id_map {
            return Ok(());
        }
        let context = TransferContext { store, cas: &self.cas, id_map };
        let mut layers = Vec::new();
        for layer in &snapshot.layers {
            layers.push(self.bring(context, layer.clone()).await?);
        }
        let (manifest, log) = (source::manifest_bytes(store, &snapshot.source)?, store.steps().log(&key.0));
        let (manifest, log) = (Blob::of_bytes(manifest), blob_of(log).await?);
        let entry = SharedEntry {
            version: VERSION,
            snapshot: found.snapshot.0.strip_prefix("hm1:").unwrap_or_default().to_owned(),
            id_map,
            run: found.run,
            pipeline: pipeline.to_owned(),
            step: found.step.to_string(),
            created_at: found.created_at,
            source: snapshot.source.clone(),
            manifest: BlobName(manifest.digest),
            image,
            layers,
            log: log.as_ref().map(|log| BlobName(log.digest)),
            scope: None,
        };
        let (json, result) = entry.encode()?;
        let action = action_of(&key);
        let mut blobs = action.blobs;
        blobs.extend([manifest, json]);
        blobs.extend(log);
        self.cas.upload(blobs).await?;
        Ok(self.actions.put(action.digest, &result).await?)
    }

    async fn bring(&self, context: TransferContext<'_>, layer: LayerId) -> Result<LayerName, RemoteCacheError> {
        let name = self.uploads.bring(context, Packable::Layer(layer), |_| {}).await?;
        Ok(LayerName { diff_id: name.diff_id, blob: BlobName(digest(&name)) })
    }
}

/// Returns the step's output, if it printed anything.
async fn blob_of(log: PathBuf) -> Result<Option<Blob>, RemoteCacheError> {
    blocking::run("read a log", move || match Digest::of_file(&log) {
        Ok(digest) if digest.size_bytes == 0 => Ok(None),
        Ok(digest) => Ok(Some(Blob::of_file(digest, log))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RemoteCacheError::Read { what: "a log", source }),
    })
    .await
}
