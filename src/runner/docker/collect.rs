//! Imports images of the daemon into the store. An image is saved as a whole, but only missing layers are
//! unpacked.

use crate::image;
use std::{io::Write, pin::pin, sync::Arc};

use bollard::Docker;
use bytes::Bytes;
use futures_util::StreamExt;

use super::{connection::patient, container_image::ContainerImage, error};
use crate::{
    blocking,
    image::{ArchiveFile, SavedImage},
    model::SnapshotRef,
    runner::RunnerError,
    store::{Base, CommitRequest, IdMap, ImageDigest, LayerId, Snapshot, Store, files::create_new},
};

const DOING: &str = "download the container's layer";

/// The number of archive chunks that may wait for the disk.
const QUEUE: usize = 16;

/// The tar of a layer without changes, as daemons write it.
const EMPTY_TAR: [u8; 1024] = [0; 1024];

/// Saves an image of the daemon to a file of the store.
pub(super) async fn save(docker: &Docker, store: &Arc<Store>, image: &str) -> Result<SavedImage, RunnerError> {
    let file = ArchiveFile::new(store);
    let path = file.path().to_owned();
    let (sender, mut chunks) = tokio::sync::mpsc::channel::<Bytes>(QUEUE);
    let writing = blocking::run(DOING, move || {
        let mut write = || {
            let mut out = create_new(&path)?;
            while let Some(chunk) = chunks.blocking_recv() {
                out.write_all(&chunk)?;
            }
            Ok(())
        };
        let failed = |error: std::io::Error| crate::store::StoreError::io("write", &path, error);
        write().map_err(failed).map_err(error::store(DOING))
    });
    let reading = async {
        let mut stream = pin!(patient(docker).export_image(image));
        while let Some(chunk) = stream.next().await {
            if sender.send(chunk.map_err(error::daemon(DOING))?).await.is_err() {
                break;
            }
        }
        drop(sender);
        Ok::<_, RunnerError>(())
    };
    let (read, written) = tokio::join!(reading, writing);
    // If writing failed, reading stopped because of it, so the write error comes first.
    written.and(read)?;
    let store = Arc::clone(store);
    blocking::run(DOING, move || SavedImage::open(&store, file).map_err(error::image(DOING))).await
}

/// Commits a snapshot of an image that has one layer more than `container_image`. The store does not have
/// that layer, nor those that [`made`](ContainerImage::made) counts.
pub(super) async fn snapshot(
    saved: SavedImage,
    container_image: &ContainerImage,
    base: Base,
    store: &Arc<Store>,
) -> Result<SnapshotRef, RunnerError> {
    // Held until the snapshot refers to the layers.
    let _lease = store.lease().map_err(error::store("take a lease"))?;
    let expected = container_image.layer_count() + 1;
    if saved.diff_ids().len() != expected {
        let error = anyhow::anyhow!("the image has {} layers instead of {expected}", saved.diff_ids().len());
        return Err(RunnerError::infrastructure(DOING, error));
    }
    let saved = Arc::new(saved);
    let mut layers = container_image.layers.clone();
    for index in container_image.known..expected {
        if saved.diff_ids()[index] != ImageDigest::of(&EMPTY_TAR) {
            layers.insert(0, take_home(&saved, index, container_image.id_map, store).await?);
        }
    }
    let (store, source, id_map) = (Arc::clone(store), container_image.source.clone(), container_image.id_map);
    blocking::run(DOING, move || {
        let parent = Snapshot { base: base.clone(), source: source.clone(), layers, id_map };
        let request = CommitRequest { parent: Some(&parent), base, source, delta: None, id_map };
        store.commit_layer(None, request).map_err(error::store("commit the container's layer"))
    })
    .await
}

async fn take_home(
    saved: &Arc<SavedImage>,
    index: usize,
    id_map: IdMap,
    store: &Arc<Store>,
) -> Result<LayerId, RunnerError> {
    let diff_id = saved.diff_ids()[index];
    let _lock = image::lock_layer(store, &image::layer_id(&diff_id, id_map)).await.map_err(error::store(DOING))?;
    let (saved, store) = (Arc::clone(saved), Arc::clone(store));
    blocking::run(DOING, move || {
        if let Some(layer) = image::find_layer(&store, &diff_id, id_map).map_err(error::store(DOING))? {
            return Ok(layer);
        }
        let blob = saved.layer(index).map_err(|error| RunnerError::infrastructure(DOING, error))?;
        let unpacked =
            image::unpack_layer(&store, image::LayerFile::new("the container's layer", diff_id, blob), id_map);
        unpacked.map_err(error::image(DOING))
    })
    .await
}
