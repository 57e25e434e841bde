//! Footings, from which containers start: images at the daemon, and their relation to the store.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{
    ir::Env,
    runner::vm::{Ground, GroundBase},
    source::FrozenSource,
    store::{Base, IdMap, LayerId, SourceId},
    sync::Mutex,
};

/// An image at the daemon that consists of a base, a source and layers, in this order.
#[derive(Debug, Clone)]
pub(super) struct Footing {
    /// The daemon's id of the image.
    pub(super) image: String,
    pub(super) run: Uuid,
    pub(super) base: FootingBase,
    pub(super) source: SourceId,
    /// The number of its layers, from the lowest, that belong to the base, to the source, or to `layers`.
    pub(super) known: usize,
    /// The store's layers over the source, topmost first.
    pub(super) layers: Vec<LayerId>,
    /// The number of layers above those, which only the daemon has.
    pub(super) made: usize,
    /// The variables of the base.
    pub(super) env: Env,
    /// Variables that the daemon would inherit from the steps that produced the image.
    pub(super) stray: BTreeSet<String>,
    pub(super) id_map: IdMap,
}

/// The base of a footing.
#[derive(Debug, Clone)]
pub(super) enum FootingBase {
    /// The store has the base.
    Store(Base),
    /// The daemon has the base, with this id. It has not been needed in the store so far.
    Daemon(String),
}

/// The most layers that all daemons can stack, with a margin for what they mount below them.
pub(super) const MAX_LAYERS: usize = 100;

impl Footing {
    /// Returns the footing of a container's image, with one more layer that the store does not have.
    pub(super) fn above(&self, image: String, step_env: &BTreeSet<String>) -> Self {
        let stray = self.stray.union(step_env).cloned().collect();
        Self { image, made: self.made + 1, stray, ..self.clone() }
    }

    pub(super) fn layer_count(&self) -> usize {
        self.known + self.made
    }
}

/// The footings of one run, each made once.
#[derive(Debug, Default)]
pub(super) struct Footings(Mutex<HashMap<String, Arc<OnceCell<Arc<Footing>>>>>);

impl Footings {
    /// Returns the cell of the footing for `ground`, which may still be empty.
    pub(super) fn cell(&self, ground: &Ground) -> Arc<OnceCell<Arc<Footing>>> {
        let key = match &ground.base {
            GroundBase::Image(image) => key(&format!("image {image}"), &ground.source, None),
            GroundBase::Snapshot { name, delta, .. } => key(&name.0, &ground.source, delta.as_ref()),
        };
        let mut cells = self.0.lock();
        Arc::clone(cells.entry(key).or_default())
    }

    /// Records an image with the same content as a snapshot's footing.
    pub(super) fn put(&self, snapshot: &str, footing: Arc<Footing>) {
        let key = format!("{snapshot}\n{}\n", footing.source.as_str());
        let mut cells = self.0.lock();
        cells.insert(key, Arc::new(OnceCell::new_with(Some(footing))));
    }

    /// Forgets an image that the daemon no longer has.
    pub(super) fn forget(&self, image: &str) {
        let mut cells = self.0.lock();
        cells.retain(|_, cell| cell.get().is_none_or(|footing| footing.image != image));
    }
}

fn key(base: &str, source: &FrozenSource, delta: Option<&LayerId>) -> String {
    format!("{base}\n{}\n{}", source.id.as_str(), delta.map_or("", LayerId::as_str))
}
