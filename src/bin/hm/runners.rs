//! The runners of `hm`, and where it keeps things.

use std::{num::NonZeroUsize, path::PathBuf};

#[cfg(target_os = "linux")]
use hm_exec::runner::sandbox::SandboxRunner;
use hm_exec::{
    Engine, RunnerSet,
    runner::process::ProcessRunner,
    store::{ImageOptions, Store, StoreHandle},
};

use crate::failure::{Failure, Outcome};

/// The runners of `hm`, by the names that pipelines use. Where there is no sandbox there is no default either: to run
/// without isolation is a decision, not a fallback.
#[derive(Debug, RunnerSet)]
pub(crate) struct Runners {
    #[cfg(target_os = "linux")]
    #[runner(default)]
    sandbox: SandboxRunner,
    process: ProcessRunner,
}

impl Runners {
    /// The runners, on the store in [`store_dir`]; nothing is opened before one of them needs it. The sandbox shows
    /// `host_dirs` to steps on image `host`.
    pub(crate) fn new(host_dirs: &[PathBuf]) -> Outcome<Self> {
        Ok(Self::on(&store()?, host_dirs, ImageOptions::default()))
    }

    /// The same on a store that others use, too, with a word on how images are found.
    #[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "only the sandbox wants them"))]
    pub(crate) fn on(store: &StoreHandle, host_dirs: &[PathBuf], images: ImageOptions) -> Self {
        Self {
            #[cfg(target_os = "linux")]
            sandbox: sandbox(store, host_dirs, images),
            process: ProcessRunner::new(store.clone()),
        }
    }

    /// An engine on them that keeps its journals, and looks cached steps up in their store.
    pub(crate) fn engine(self, store: &StoreHandle, jobs: Option<NonZeroUsize>) -> Outcome<Engine<Self>> {
        let builder = Engine::builder(self).runs_dir(runs_dir()?).cache(store.clone());
        let builder = match jobs {
            Some(jobs) => builder.parallelism(jobs),
            None => builder,
        };
        Ok(builder.build()?)
    }
}

/// The sandbox of `hm`.
#[cfg(target_os = "linux")]
pub(crate) fn sandbox(store: &StoreHandle, host_dirs: &[PathBuf], images: ImageOptions) -> SandboxRunner {
    let builder = SandboxRunner::builder().store(store.clone()).keep_failed(true).images(images);
    host_dirs.iter().fold(builder, |builder, dir| builder.host_dir(dir)).build()
}

/// The store, not opened yet.
pub(crate) fn store() -> Outcome<StoreHandle> {
    Ok(StoreHandle::new(store_dir()?))
}

/// Where layers, images, journals and logs lie.
pub(crate) fn store_dir() -> Outcome<PathBuf> {
    Store::default_dir().map_err(|error| {
        Failure::infrastructure("failed to find a place for the store").because(error).hint("export HM_CACHE_DIR=DIR")
    })
}

/// Where journals and logs lie, each in a directory named after its run.
pub(crate) fn runs_dir() -> Outcome<PathBuf> {
    Ok(store_dir()?.join("runs"))
}
