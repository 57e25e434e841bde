//! The builder of an engine.

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc, thread, time::Duration};

use super::Engine;
use crate::{
    backend::BackendError,
    cache::{Cache, SharedResults},
    runner::{PROBE_LIMIT, RunnerSet, validate},
    store::StoreHandle,
};

/// Sets up an [`Engine`].
#[derive(Debug)]
#[must_use = "call `build`"]
pub struct EngineBuilder<R> {
    runners: R,
    parallelism: Option<NonZeroUsize>,
    grace: Duration,
    probe_limit: Duration,
    runs_dir: Option<PathBuf>,
    cache: Option<Cache>,
    remote: Option<Arc<dyn SharedResults>>,
}

impl<R: RunnerSet> EngineBuilder<R> {
    pub(super) fn new(runners: R) -> Self {
        Self {
            runners,
            parallelism: None,
            grace: Duration::from_secs(5),
            probe_limit: PROBE_LIMIT,
            runs_dir: None,
            cache: None,
            remote: None,
        }
    }

    /// Sets how many steps of local runners may run at once. By default, as many as the machine has threads.
    pub fn parallelism(mut self, steps: NonZeroUsize) -> Self {
        self.parallelism = Some(steps);
        self
    }

    /// Sets how long a command may take between SIGTERM and SIGKILL. By default, 5 seconds.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets how long a runner may take to report whether it works, and what goes into its cache keys. By
    /// default, 30 seconds. A build whose runner does not answer in time does not start; steps whose cache
    /// keys are unknown run.
    pub fn probe_limit(mut self, limit: Duration) -> Self {
        self.probe_limit = limit;
        self
    }

    /// Keeps each run's journal and logs in `<dir>/<run id>`. By default they are in a temporary directory
    /// that is removed with the last reader.
    pub fn runs_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.runs_dir = Some(dir.into());
        self
    }

    /// Looks cached steps up in `store`, keeps their results there, and records runs. Steps of runners with
    /// the `layers` capability are cached; the runners must use the same store. By default nothing is cached.
    pub fn cache(mut self, store: impl Into<StoreHandle>) -> Self {
        self.cache = Some(Cache::new(store.into()));
        self
    }

    /// Also looks cached steps up in a remote cache, and shares their results there. Requires a
    /// [`cache`](Self::cache), which stores what is found.
    #[cfg(feature = "cloud")]
    pub fn remote_cache(mut self, remote: crate::remote_cache::RemoteCache) -> Self {
        self.remote = Some(Arc::new(remote));
        self
    }

    /// Builds the engine.
    ///
    /// # Errors
    /// Returns [`BackendError::Composition`] if the runners cannot be combined: there is none, or two have
    /// the same name.
    pub fn build(self) -> Result<Engine<R>, BackendError> {
        let descriptors = self.runners.descriptors();
        validate(&descriptors)?;
        let parallelism = self.parallelism.or_else(|| thread::available_parallelism().ok());
        Ok(Engine {
            runners: Arc::new(self.runners),
            descriptors,
            parallelism: parallelism.unwrap_or(NonZeroUsize::MIN),
            grace: self.grace,
            probe_limit: self.probe_limit,
            runs_dir: self.runs_dir,
            cache: self.cache,
            remote: self.remote,
        })
    }
}
