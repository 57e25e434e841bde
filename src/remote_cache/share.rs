//! Shares results.

use std::{fs::File, io, path::PathBuf, sync::Arc};

use futures_util::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};

use super::{
    entry::{BlobName, EntryPlace, IsPresent, LayerForm, LayerName, SharedEntry, VERSION, action_of},
    error::{Consequence, RemoteCacheError},
    fetch::{LAYERS, last_layers},
    options::RemoteCache,
};
use crate::{
    blocking,
    cache::{CacheKey, Found},
    log_file::LogFile,
    remote::{Blob, DigestFunction},
    source,
    store::{Base, LayerId, Store},
    transfer::{Packable, TransferContext},
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
        // A result that was found, and that nothing booted from, has not been checked. Others would take a
        // damaged layer for a valid one, because it is named by what it contains now.
        let (checked, name) = (Arc::clone(store), found.snapshot.clone());
        let check = move || Ok::<_, RemoteCacheError>(checked.snapshots().damage(&name)?);
        if let Some(reason) = blocking::run("check a result", check).await? {
            tracing::warn!(step = &*found.step, "not sharing a damaged result: {reason}");
            return Ok(());
        }
        let id_map = self.userns.prepare_trees(store).await?;
        if id_map != snapshot.id_map {
            return Ok(());
        }
        let context = TransferContext { store, cas: &self.cas, id_map };
        let mut similar = vec![Vec::new(); snapshot.layers.len()];
        if self.cuts {
            // The result itself is among the last ones.
            for stack in last_layers(store, pipeline, &found.step, id_map).await {
                for ((layer, own), similar) in stack.into_iter().zip(&snapshot.layers).zip(&mut similar) {
                    if layer != *own {
                        similar.push(layer);
                    }
                }
            }
        }
        // Boxed and collected: the compiler cannot prove that a stream which creates the futures lazily is
        // `Send`.
        let brought: Vec<BoxFuture<'_, Result<LayerName, RemoteCacheError>>> = snapshot
            .layers
            .iter()
            .zip(similar)
            .map(|(layer, similar)| self.bring(context, layer.clone(), similar).boxed())
            .collect();
        let layers = stream::iter(brought).buffered(LAYERS).try_collect().await?;
        let (manifest, log) = (source::manifest_bytes(store, &snapshot.source)?, store.steps().log(&key.0));
        let copy = store.instance().new_tmp();
        let function = self.cas.digest_function().await?;
        let (manifest, log) = (Blob::named_by(function, manifest), blob_of(function, log, copy.clone()).await?);
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
            place: Some(EntryPlace::new(&key, &self.rules.scope)),
            scope: IsPresent::default(),
        };
        let sign = |entry: &[u8]| Some(self.rules.signer.as_ref()?.sign(entry, &format!("step {}", found.step)));
        let (entry, result) = entry.encode(sign)?;
        let action = action_of(VERSION, &self.rules.scope, &key, function);
        let mut blobs = action.blobs;
        blobs.push(manifest);
        blobs.extend(entry);
        blobs.extend(log);
        let uploaded = self.cas.upload(blobs).await;
        // If it stays, it is removed when the store is closed.
        let _ = std::fs::remove_file(copy);
        uploaded?;
        Ok(self.actions.put(action.digest, &result).await?)
    }

    async fn bring(
        &self,
        context: TransferContext<'_>,
        layer: LayerId,
        similar: Vec<LayerId>,
    ) -> Result<LayerName, RemoteCacheError> {
        if self.cuts
            && let Some(name) = self.chunks.bring(context, &self.uploads, &layer, &similar).await?
        {
            return Ok(LayerName { diff_id: name.diff_id, form: LayerForm::Chunks(BlobName(name.blob)) });
        }
        let name = self.uploads.bring(context, Packable::Layer(layer), |_| {}).await?;
        Ok(LayerName { diff_id: name.diff_id, form: LayerForm::Blob(BlobName(name.blob)) })
    }
}

/// Returns the step's output, if it printed anything. The blob is the file `copy`, because another process
/// may compress the log meanwhile.
async fn blob_of(function: DigestFunction, log: PathBuf, copy: PathBuf) -> Result<Option<Blob>, RemoteCacheError> {
    let blob = move || {
        if let Err(error) = std::fs::hard_link(&log, &copy) {
            // It was compressed, or the filesystem has no hard links.
            tracing::debug!(%error, "copying the log {}", log.display());
            io::copy(&mut LogFile::open(&log)?, &mut File::create_new(&copy)?)?;
        }
        let digest = function.of_file(&copy)?;
        Ok((digest.size_bytes > 0).then(|| Blob::of_file(digest, copy)))
    };
    blocking::run("read a log", move || match blob() {
        Err(error) if io::Error::kind(&error) == io::ErrorKind::NotFound => Ok(None),
        blob => blob.map_err(|source| RemoteCacheError::Read { what: "a log", source }),
    })
    .await
}
