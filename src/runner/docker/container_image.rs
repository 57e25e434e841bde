//! The images from which containers start: images at the daemon, and their relation to the store.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{
    image::ImageProgram,
    ir::Env,
    runner::vm::{BootContext, MachineBase},
    source::FrozenSource,
    store::{Base, IdMap, LayerId, SourceId},
    sync::Mutex,
};

/// An image at the daemon that consists of a base, a source and layers, in this order.
#[derive(Debug, Clone)]
pub(super) struct ContainerImage {
    /// The daemon's id of the image.
    pub(super) image: String,
    pub(super) run: Uuid,
    pub(super) base: ContainerImageBase,
    pub(super) source: SourceId,
    /// The number of its layers, from the lowest, that belong to the base, to the source, or to `layers`.
    pub(super) known: usize,
    /// The store's layers over the source, topmost first.
    pub(super) layers: Vec<LayerId>,
    /// The number of layers above those, which only the daemon has.
    pub(super) made: usize,
    /// The variables of the base.
    pub(super) env: Env,
    /// The program of the base.
    pub(super) program: Option<ImageProgram>,
    /// Variables that the daemon would inherit from the steps that produced the image.
    pub(super) stray: BTreeSet<String>,
    pub(super) id_map: IdMap,
}

/// The base of a [`ContainerImage`].
#[derive(Debug, Clone)]
pub(super) enum ContainerImageBase {
    /// The store has the base.
    Store(Base),
    /// The daemon has the base, with this id. It has not been needed in the store so far.
    Daemon(String),
}

/// The most layers that all daemons can stack, with a margin for what they mount below them.
pub(super) const MAX_LAYERS: usize = 100;

impl ContainerImage {
    /// Returns the image that a container was committed to: one more layer, which the store does not have.
    pub(super) fn above(&self, image: String, step_env: &BTreeSet<String>) -> Self {
        let stray = self.stray.union(step_env).cloned().collect();
        Self { image, made: self.made + 1, stray, ..self.clone() }
    }

    pub(super) fn layer_count(&self) -> usize {
        self.known + self.made
    }
}

/// The images of one run, each made once.
#[derive(Debug, Default)]
pub(super) struct ContainerImages(Mutex<HashMap<String, Arc<OnceCell<Arc<ContainerImage>>>>>);

impl ContainerImages {
    /// Returns the cell of the image for `context`, which may still be empty.
    pub(super) fn cell(&self, context: &BootContext) -> Arc<OnceCell<Arc<ContainerImage>>> {
        let key = match &context.base {
            MachineBase::Image(image) => key(&format!("image {image}"), &context.source, None),
            MachineBase::Snapshot { name, delta, .. } => key(&name.0, &context.source, delta.as_ref()),
        };
        let mut cells = self.0.lock();
        Arc::clone(cells.entry(key).or_default())
    }

    /// Records an image with the same content as a snapshot.
    pub(super) fn put(&self, snapshot: &str, container_image: Arc<ContainerImage>) {
        let key = format!("{snapshot}\n{}\n", container_image.source.as_str());
        let mut cells = self.0.lock();
        cells.insert(key, Arc::new(OnceCell::new_with(Some(container_image))));
    }

    /// Forgets an image that the daemon no longer has.
    pub(super) fn forget(&self, image: &str) {
        let mut cells = self.0.lock();
        cells.retain(|_, cell| cell.get().is_none_or(|container_image| container_image.image != image));
    }
}

fn key(base: &str, source: &FrozenSource, delta: Option<&LayerId>) -> String {
    format!("{base}\n{}\n{}", source.id.as_str(), delta.map_or("", LayerId::as_str))
}
