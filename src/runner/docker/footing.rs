//! What containers start from: an image at the daemon, and what it is to the store.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{
    ir::Env,
    runner::vm::{Ground, GroundBase},
    store::{Base, FrozenSource, IdMap, LayerId, SourceId},
};

/// An image at the daemon that has a base, then a source, then layers.
#[derive(Debug, Clone)]
pub(super) struct Footing {
    /// As the daemon calls it.
    pub(super) image: String,
    pub(super) run: Uuid,
    pub(super) base: FootingBase,
    pub(super) source: SourceId,
    /// How many of its layers, from the lowest, are the base's, the source's, or in `layers`.
    pub(super) known: usize,
    /// The store's layers over the source, topmost first.
    pub(super) layers: Vec<LayerId>,
    /// How many layers lie above those, of which the daemon alone knows.
    pub(super) made: usize,
    /// The variables of the base.
    pub(super) env: Env,
    /// Variables that the daemon would hand on from the steps that it was made by.
    pub(super) stray: BTreeSet<String>,
    pub(super) id_map: IdMap,
}

/// The lowest part.
#[derive(Debug, Clone)]
pub(super) enum FootingBase {
    /// The store has it.
    Store(Base),
    /// The daemon has it, under this id; nobody has needed it in the store so far.
    Daemon(String),
}

/// More layers than this, with some to spare for what is mounted below them, no daemon stacks.
pub(super) const MAX_LAYERS: usize = 100;

impl Footing {
    /// The image that a container left, with one more layer that the store does not have.
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
    /// Where the footing for `ground` is, or is to be.
    pub(super) fn cell(&self, ground: &Ground) -> Arc<OnceCell<Arc<Footing>>> {
        let key = match &ground.base {
            GroundBase::Image(image) => key(&format!("image {image}"), &ground.source, None),
            GroundBase::Snapshot { name, delta, .. } => key(&name.0, &ground.source, delta.as_ref()),
        };
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(cells.entry(key).or_default())
    }

    /// Takes note of an image that is what a snapshot's footing would be.
    pub(super) fn put(&self, snapshot: &str, footing: Arc<Footing>) {
        let key = format!("{snapshot}\n{}\n", footing.source.as_str());
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cells.insert(key, Arc::new(OnceCell::new_with(Some(footing))));
    }

    /// Forgets an image that the daemon does not have any more.
    pub(super) fn forget(&self, image: &str) {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cells.retain(|_, cell| cell.get().is_none_or(|footing| footing.image != image));
    }
}

fn key(base: &str, source: &FrozenSource, delta: Option<&LayerId>) -> String {
    format!("{base}\n{}\n{}", source.id.as_str(), delta.map_or("", LayerId::as_str))
}
