//! The runners of `hm` on systems without the sandbox, and what stands for the parts that need it.

use std::{convert::Infallible, path::PathBuf};

use hm_exec::{
    Engine, EngineBuilder, RunnerSet,
    image::ImageOptions,
    runner::{RunnerError, docker::DockerRunner, process::ProcessRunner},
    store::StoreHandle,
};

use super::docker;
use crate::{config::Config, failure::Outcome};

/// The remote cache, which only Linux has.
pub(super) type RemoteCache = Infallible;

/// The runners of `hm`, by the names that pipelines use. There is no default runner: running without
/// isolation must be a decision, not a fallback.
#[derive(Debug, RunnerSet)]
pub(crate) struct Runners {
    process: ProcessRunner,
    docker: DockerRunner,
}

impl Runners {
    /// Creates the runners on a store that is also used otherwise, with options on how images are found. No
    /// runner shows directories of this machine.
    pub(crate) fn on(store: &StoreHandle, _: &[PathBuf], images: ImageOptions, config: Config) -> Self {
        Self {
            process: ProcessRunner::new(store.clone()),
            docker: docker(images, config.docker_host).build(store.clone()),
        }
    }

    /// Describes an engine on the runners.
    pub(super) fn builder(self, remote: Option<RemoteCache>) -> EngineBuilder<Self> {
        match remote {
            Some(remote) => match remote {},
            None => Engine::builder(self),
        }
    }

    /// Returns an error: there is no runner `vm`.
    pub(crate) async fn boot_machine(&self) -> Result<String, RunnerError> {
        Err(RunnerError::unsupported("virtual machines need Linux"))
    }
}

/// Does nothing: no runner starts this program again.
pub(super) fn init() {}

/// Returns 0: there are no control groups.
pub(crate) fn reap_control_groups() -> usize {
    0
}

/// Returns `None`: only Linux has the remote cache.
pub(crate) fn remote_cache(_: &ImageOptions, _: &Config) -> Outcome<Option<RemoteCache>> {
    Ok(None)
}
