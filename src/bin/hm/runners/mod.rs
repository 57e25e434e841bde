//! The runners of `hm`, and the engine on them.

pub(crate) mod set;

use std::num::NonZeroUsize;

use hm_exec::{
    Engine,
    image::ImageOptions,
    open_files,
    runner::{
        docker::{self, Docker, DockerBuilder},
        sandbox,
    },
    store::StoreHandle,
};

use self::set::RemoteCache;
pub(crate) use self::set::{Runners, remote_cache};
use crate::{config::Config, failure::Outcome, reporter::to_stderr, store};

impl Runners {
    /// Creates the runners, on the store in [`store::dir`]. Nothing is opened before one of them needs it.
    pub(crate) fn new(config: Config) -> Outcome<Self> {
        Ok(Self::on(&store::handle()?, &[], ImageOptions::default(), config))
    }

    /// Creates an engine on the runners. It keeps its journals, and looks cached steps up in their store.
    pub(crate) fn engine(
        self,
        store: &StoreHandle,
        jobs: Option<NonZeroUsize>,
        remote: Option<RemoteCache>,
    ) -> Outcome<Engine<Self>> {
        let mut builder = self.builder(remote).runs_dir(store::runs_dir()?).cache(store.clone());
        // More steps than that wait for a slot: they would fail because they could not open files.
        let most = open_files::enough_for();
        if let Some(jobs) = jobs {
            if most < jobs {
                to_stderr(&format!(
                    "warning: running {most} steps at once instead of {jobs}: the limit on open files is too low \
                     (ulimit -n)"
                ));
            }
            builder = builder.parallelism(jobs.min(most));
        } else if let Ok(here) = std::thread::available_parallelism() {
            builder = builder.parallelism(here.min(most));
        }
        Ok(builder.build()?)
    }
}

/// Runs the helper of a runner and ends, if this process was started as one.
pub(crate) fn init() {
    sandbox::init();
    docker::init();
}

/// Describes the docker runner of `hm`, for the daemon that the user named, or else for the one that is
/// found. A failed step's files are kept only if the run requests it: daemons export an image only as a
/// whole, which may take longer than the step.
pub(crate) fn docker(images: ImageOptions, host: Option<String>) -> DockerBuilder {
    let builder = Docker::builder().images(images);
    match host {
        Some(host) => builder.host(host),
        None => builder,
    }
}
