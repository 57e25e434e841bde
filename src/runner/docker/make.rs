//! Creates the image that containers start from, once in a run for everything that a step can boot from.

use crate::image;
use std::{collections::BTreeSet, sync::Arc};

use bollard::Docker as Client;

use super::{
    collect,
    container_image::{ContainerImage, ContainerImageBase},
    error,
    images::{self, DaemonImage, is_the_stores},
    load::{self, Part},
    shared::{Connection, Shared},
};
use crate::{
    runner::{
        RunnerError,
        image_notes::StepNotes,
        vm::{BootContext, MachineBase, Output},
    },
    store::{Base, IdMap, Store},
};

/// Returns the error for the image `host`.
pub(super) fn no_host() -> RunnerError {
    RunnerError::unsupported(
        "image `host` is this machine's own system, which the daemon cannot run: use another one, such as \
         `--image host=debian:bookworm`",
    )
}

impl Shared {
    /// Returns the base of a container's image in the store. Imports it if only the daemon has it.
    pub(super) async fn base_in_store(
        &self,
        client: &Client,
        store: &Arc<Store>,
        container_image: &ContainerImage,
    ) -> Result<Base, RunnerError> {
        match &container_image.base {
            ContainerImageBase::Store(base) => Ok(base.clone()),
            ContainerImageBase::Daemon(id) => self.daemon_base(client, store, id, container_image.id_map).await,
        }
    }

    async fn daemon_base(
        &self,
        client: &Client,
        store: &Arc<Store>,
        id: &str,
        id_map: IdMap,
    ) -> Result<Base, RunnerError> {
        let slot = Arc::clone(self.bases.lock().entry(id.to_owned()).or_default());
        let mut known = slot.lock().await;
        // Most daemons use the same id for an image as the store.
        let digest = known.or_else(|| id.parse().ok());
        if let Some(digest) = digest
            && image::stored::is_stored(store, &digest, id_map).map_err(error::store("look for the image"))?
        {
            return Ok(Base::Image(digest));
        }
        let saved = collect::save(client, store, id).await?;
        let digest = saved.keep(id_map).await.map_err(error::image("download the image"))?;
        *known = Some(digest);
        Ok(Base::Image(digest))
    }

    /// Creates the image that containers start from.
    pub(super) async fn make_container_image(
        &self,
        connection: &Connection,
        context: &BootContext,
        output: &Output<'_>,
    ) -> Result<Arc<ContainerImage>, RunnerError> {
        let (store, client) = (&context.store, &connection.client);
        let id_map = self.id_map(store).await?;
        let (base, image, layers) = match &context.base {
            MachineBase::Image(name) if &**name == "host" => return Err(no_host()),
            MachineBase::Image(name) if is_the_stores(name) => {
                let notes = StepNotes { bus: output.bus, step_id: output.step_id };
                let base = Box::pin(self.images.fetch(store, name, id_map, &notes)).await;
                (ContainerImageBase::Store(base.map_err(error::image("get the image"))?), None, Vec::new())
            }
            MachineBase::Image(name) => {
                let image = images::get(client, name, self.options.pull, output).await?;
                (ContainerImageBase::Daemon(image.id.clone()), Some(image), Vec::new())
            }
            MachineBase::Snapshot { snapshot, delta, .. } => {
                if snapshot.id_map != id_map {
                    let why = "the parent's snapshot was made with another id mapping: run the parent step again";
                    return Err(RunnerError::unsupported(why));
                }
                let image = match &snapshot.base {
                    Base::Host => return Err(no_host()),
                    Base::Rootfs(_) => None,
                    Base::Image(digest) => images::find(client, &digest.to_string()).await?,
                };
                let layers = delta.iter().chain(&snapshot.layers).cloned().collect();
                (ContainerImageBase::Store(snapshot.base.clone()), image, layers)
            }
        };
        let above = context.source.roots.iter().rev().cloned();
        let above: Vec<Part> =
            above.chain(layers.iter().rev().map(|layer| store.layers().dir(layer))).map(Part::Dir).collect();
        let labels = connection.owner.labels(context.run);
        let loaded = match &image {
            Some(DaemonImage { diff_ids, .. }) => {
                let parts = diff_ids.iter().map(|diff_id| Part::There(*diff_id)).chain(above.iter().cloned()).collect();
                match output.booting(load::load(client, store, parts, id_map, labels.clone())).await {
                    Ok(id) => Some((id, diff_ids.len() + above.len())),
                    // Not every daemon accepts an image without the layers that it already has.
                    Err(error) => {
                        tracing::debug!(error = error.to_line(), "loading the image with all its layers");
                        None
                    }
                }
            }
            None => None,
        };
        let (mut env, mut program) = image.map_or_else(Default::default, |image| (image.env, image.program));
        let (image, known) = match loaded {
            Some(loaded) => loaded,
            None => {
                let whole = match &base {
                    ContainerImageBase::Store(base) => base.clone(),
                    ContainerImageBase::Daemon(id) => self.daemon_base(client, store, id, id_map).await?,
                };
                let lower = image::layer_dirs(store, &whole, id_map).map_err(error::export("read the image"))?;
                env = image::stored::env_of(store, &whole, id_map).map_err(error::image("read the image"))?;
                program = image::stored::program_of(store, &whole, id_map).map_err(error::image("read the image"))?;
                let parts: Vec<Part> = lower.into_iter().map(Part::Dir).chain(above).collect();
                let known = parts.len();
                (output.booting(load::load(client, store, parts, id_map, labels)).await?, known)
            }
        };
        let (run, source) = (context.run, context.source.id.clone());
        let stray = BTreeSet::new();
        let made = 0;
        Ok(Arc::new(ContainerImage { image, run, base, source, known, layers, made, env, program, stray, id_map }))
    }
}
