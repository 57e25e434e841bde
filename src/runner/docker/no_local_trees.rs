//! Stands for `local_trees.rs` on systems without the sandbox.

use std::sync::Arc;

use crate::{
    runner::RunnerError,
    store::{IdMap, Store},
};

/// Nothing: the layers in the store belong to the user.
#[derive(Debug, Clone, Default)]
pub(super) struct LocalTrees;

impl LocalTrees {
    /// Does nothing. Returns how ids are mapped in layers.
    pub(super) async fn prepare(&self, _: &Arc<Store>) -> Result<IdMap, RunnerError> {
        Ok(self.id_map().await)
    }

    /// Returns how ids are mapped in layers.
    pub(super) async fn id_map(&self) -> IdMap {
        IdMap::Single
    }
}
