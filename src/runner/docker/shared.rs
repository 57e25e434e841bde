//! The state that all containers of a runner share: the connection to the daemon, and each run's images
//! there.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use bollard::Docker as Client;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{
    connection,
    container_image::{ContainerImage, ContainerImageBase, ContainerImages},
    error,
    labels::{self, Owner},
    local_trees::LocalTrees,
    reaper::{self, Reaper},
    sweep::{self, Swept},
};
use crate::{
    image::{ImageOptions, Images},
    model::SnapshotRef,
    runner::{RunnerError, StepContext, cleanup_thread::CleanupThread, sandbox::SandboxRunner},
    store::{Base, IdMap, ImageDigest, Snapshot, Store},
    sync::Mutex,
};

/// The state that all containers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) host: Option<String>,
    pub(super) helper: Option<PathBuf>,
    pub(super) options: ImageOptions,
    pub(super) images: Images,
    pub(super) connection: OnceCell<Connection>,
    pub(super) runs: Mutex<HashMap<Uuid, Arc<ContainerImages>>>,
    /// Images at the daemon that are snapshots, by id.
    pub(super) own: Mutex<HashMap<String, Arc<ContainerImage>>>,
    /// The digests in the store of images of the daemon, by the daemon's id.
    pub(super) bases: Mutex<HashMap<String, Slot>>,
    pub(super) cleanup: CleanupThread,
    pub(super) reaper: OnceLock<Reaper>,
    /// Determines how ids are mapped in this machine's steps. Containers share layers with those.
    pub(super) local_trees: LocalTrees,
    /// Shows snapshots of the store.
    pub(super) sandbox: OnceLock<SandboxRunner>,
}

/// The digest of an image in the store, once it is known. Locked while the image is being imported.
pub(super) type Slot = Arc<tokio::sync::Mutex<Option<ImageDigest>>>;

/// The connection to the daemon.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) owner: Owner,
}

impl Shared {
    /// Returns the connection to the daemon. The first call removes what dead processes left there.
    pub(super) async fn connection(&self, store: &Arc<Store>) -> Result<&Connection, RunnerError> {
        let connecting = self.connection.get_or_try_init(async || {
            let place = connection::place(self.host.as_deref());
            let client = connection::connect(&place).await.map_err(error::daemon("talk to the daemon"))?;
            let owner = Owner::of(store).map_err(error::store("read the store's name"))?;
            match sweep::remove(&client, &owner.of_store(), |process| !store.instance().is_open_in(process)).await {
                Ok(swept) if swept == Swept::default() => {}
                Ok(Swept { containers, images, volumes }) => {
                    tracing::info!(containers, images, volumes, "removed leftovers of killed runs")
                }
                Err(error) => tracing::warn!(%error, "failed to remove leftovers of killed runs from the daemon"),
            }
            if let Some(program) = reaper::locate(self.helper.as_deref()) {
                match Reaper::start(&program, &place, &owner) {
                    Ok(reaper) => drop(self.reaper.set(reaper)),
                    Err(error) => tracing::warn!(%error, "containers will not be removed if this process is killed"),
                }
            }
            Ok(Connection { client, owner })
        });
        connecting.await
    }

    /// Returns the images of a run. They are removed when the run ends.
    pub(super) fn run(self: &Arc<Self>, ctx: &StepContext, run: Uuid) -> Arc<ContainerImages> {
        let mut runs = self.runs.lock();
        Arc::clone(runs.entry(run).or_insert_with(|| {
            let shared = Arc::clone(self);
            ctx.at_build_end(async move { shared.end_run(run).await });
            Arc::default()
        }))
    }

    async fn end_run(&self, run: Uuid) {
        self.runs.lock().remove(&run);
        self.own.lock().retain(|_, container_image| container_image.run != run);
        let Some(Connection { client, .. }) = self.connection.get() else { return };
        match sweep::remove(client, &labels::of_run(run), |_| true).await {
            Ok(swept) => tracing::debug!(?swept, %run, "removed at the end of the build"),
            Err(error) => {
                tracing::warn!(%error, "failed to remove the build's containers and images from the daemon; the next build will remove them")
            }
        }
    }

    /// Records an image that is a snapshot.
    pub(super) fn keep(&self, container_image: ContainerImage) {
        self.own.lock().insert(container_image.image.clone(), Arc::new(container_image));
    }

    /// Records an image with the same content as a snapshot of the store, so that the snapshot's children
    /// need not load it.
    pub(super) fn put(&self, name: &SnapshotRef, image: ContainerImage, base: Base, snapshot: &Snapshot) {
        let Some(images) = self.runs.lock().get(&image.run).map(Arc::clone) else { return };
        let (known, layers) = (image.layer_count(), snapshot.layers.clone());
        images.put(
            &name.0,
            Arc::new(ContainerImage { base: ContainerImageBase::Store(base), known, layers, made: 0, ..image }),
        );
    }

    /// Forgets an image that the daemon no longer has.
    pub(super) fn forget(&self, container_image: &ContainerImage) {
        if let Some(images) = self.runs.lock().get(&container_image.run) {
            images.forget(&container_image.image);
        }
    }

    /// Returns a sandbox that shows snapshots of the store.
    pub(super) fn sandbox(&self, store: &Arc<Store>) -> &SandboxRunner {
        self.sandbox.get_or_init(|| self.local_trees.sandbox(store, self.options.clone()))
    }

    /// Returns how ids are mapped in the layers that are committed to the store.
    pub(super) async fn id_map(&self, store: &Arc<Store>) -> Result<IdMap, RunnerError> {
        self.local_trees.prepare(store).await
    }

    /// Returns how ids are mapped, for cache keys.
    pub(super) async fn mode(&self) -> &'static str {
        self.local_trees.id_map().await.as_str()
    }
}
