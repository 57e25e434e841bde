//! The layers that containers share with the steps of the sandbox on this machine.

use std::sync::Arc;

use super::DockerBuilder;
use crate::{
    image::ImageOptions,
    runner::{RunnerError, sandbox::SandboxRunner},
    store::{IdMap, Store},
    userns::{UsernsHelper, UsernsOptions},
};

/// The helper that reads and writes layers in the store.
#[derive(Debug, Clone)]
pub(super) struct LocalTrees(Arc<UsernsHelper>);

impl Default for LocalTrees {
    fn default() -> Self {
        Self(UsernsHelper::new(UsernsOptions::default()))
    }
}

impl LocalTrees {
    /// Prepares the store for layers with the owners that containers give to files. Returns how ids are
    /// mapped in them.
    pub(super) async fn prepare(&self, store: &Arc<Store>) -> Result<IdMap, RunnerError> {
        Ok(self.0.prepare_trees(store).await?)
    }

    /// Returns a sandbox that shows snapshots of the store.
    pub(super) fn sandbox(&self, store: &Arc<Store>, images: ImageOptions) -> SandboxRunner {
        SandboxRunner::builder().store(Arc::clone(store)).images(images).userns(Arc::clone(&self.0)).build()
    }

    /// Returns how ids are mapped in layers.
    pub(super) async fn id_map(&self) -> IdMap {
        self.0.id_map().await
    }
}

impl DockerBuilder {
    /// Reads and writes layers in the store through this helper, or the helper of this
    /// [sandbox](crate::runner::sandbox::SandboxBuilder), instead of one of its own.
    #[must_use]
    pub fn local(mut self, helper: impl Into<Arc<UsernsHelper>>) -> Self {
        self.local_trees = LocalTrees(helper.into());
        self
    }
}
