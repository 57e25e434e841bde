//! The settings of a cloud runner.

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use super::{
    runner::{CloudRunner, RemoteEngine, Unready},
    source::Sources,
    step_program::StepProgram,
};
use crate::{
    image::{ImageOptions, Images},
    remote::{Endpoint, EndpointOptions},
    runner::cleanup_thread::CleanupThread,
    store::StoreHandle,
    transfer::Uploads,
    userns::{UsernsHelper, UsernsOptions},
};

/// The default number of steps in flight.
const JOBS: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");

/// The default time after which a step that waits for a worker is reported.
const QUEUE_NOTICE: Duration = Duration::from_secs(30);

/// A builder for a [`CloudRunner`].
#[derive(Debug, Clone, Default)]
pub struct CloudBuilder {
    endpoint: Option<EndpointOptions>,
    logs: Option<EndpointOptions>,
    platform: Vec<(String, String)>,
    jobs: Option<NonZeroUsize>,
    store: StoreHandle,
    images: ImageOptions,
    program: Option<PathBuf>,
    userns: Option<Arc<UsernsHelper>>,
    queue_notice: Option<Duration>,
}

impl CloudBuilder {
    /// Runs steps on the engine at this endpoint.
    #[must_use]
    pub fn endpoint(mut self, endpoint: EndpointOptions) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// Reads the output of running steps from this endpoint, instead of the engine's own. The output of a
    /// step that has ended is complete and correct, even if the log service returns wrong data.
    #[must_use]
    pub fn log_service(mut self, logs: EndpointOptions) -> Self {
        self.logs = Some(logs);
        self
    }

    /// Requires workers with this property.
    #[must_use]
    pub fn platform_property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.platform.push((name.into(), value.into()));
        self
    }

    /// Sets how many steps may be in flight at once, besides those on this machine. The default is 16.
    #[must_use]
    pub fn jobs(mut self, jobs: NonZeroUsize) -> Self {
        self.jobs = Some(jobs);
        self
    }

    /// Keeps layers and snapshots in this store instead of the default one.
    #[must_use]
    pub fn store(mut self, store: impl Into<StoreHandle>) -> Self {
        self.store = store.into();
        self
    }

    /// Sets how images are found and fetched.
    #[must_use]
    pub fn images(mut self, options: ImageOptions) -> Self {
        self.images = options;
        self
    }

    /// Sends this `hm-step`, instead of the one found by default: see
    /// [`step::locate`](crate::step::locate).
    #[must_use]
    pub fn step_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Reads layers that belong to subordinate ids through a helper that other parts of this process use,
    /// too, instead of one of its own.
    #[must_use]
    pub fn userns(mut self, helper: Arc<UsernsHelper>) -> Self {
        self.userns = Some(helper);
        self
    }

    /// Sets after how long a step that waits for a worker of the engine says so in its output. The default is
    /// half a minute.
    #[must_use]
    pub fn queue_notice(mut self, after: Duration) -> Self {
        self.queue_notice = Some(after);
        self
    }

    /// Starts this `hm` as a helper of its own, to read layers that belong to subordinate ids.
    #[must_use]
    pub fn helper(self, program: impl Into<PathBuf>) -> Self {
        self.userns(UsernsHelper::new(UsernsOptions::default().program(program)))
    }

    /// Builds the runner. Nothing is connected or opened yet. The probe reports errors in the endpoint.
    #[must_use]
    pub fn build(self) -> CloudRunner {
        let engine = match self.endpoint {
            Some(options) => Endpoint::new(options).map_err(Unready::Options),
            None => Err(Unready::Nowhere),
        };
        let engine = engine.and_then(|endpoint| {
            let logs = self.logs.map(Endpoint::new).transpose().map_err(Unready::Logs)?;
            Ok(RemoteEngine { logs: logs.unwrap_or_else(|| endpoint.clone()), endpoint })
        });
        CloudRunner {
            cleanup: CleanupThread::default(),
            engine,
            platform: self.platform,
            jobs: self.jobs.unwrap_or(JOBS),
            images: Images::new(self.images),
            program: StepProgram::new(self.program),
            store: self.store,
            uploads: Uploads::default(),
            sources: Sources::default(),
            userns: self.userns.unwrap_or_else(|| UsernsHelper::new(UsernsOptions::default())),
            uploaded_blobs: AtomicU64::new(0),
            uploaded_bytes: AtomicU64::new(0),
            queue_notice: self.queue_notice.unwrap_or(QUEUE_NOTICE),
            refused_bound: AtomicU64::new(u64::MAX),
            cache_reported: AtomicBool::new(false),
        }
    }
}
