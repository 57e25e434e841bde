//! The boundary for whole builds: the trait of everything that can run a build, and what a caller holds while
//! it runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    cache::ProjectId,
    event::EventStream,
    ir::{Env, InvalidPipeline},
    model::Secrets,
    outcome::BuildOutcome,
    plan::Plan,
    runner::CompositionError,
    source::{EarlyFreeze, SourceTimes},
};

/// Runs whole builds.
pub trait ExecutionBackend: Send + Sync {
    /// A stable name for diagnostics.
    fn name(&self) -> &str;

    /// Returns what the backend supports. Check it before calling [`start`](Self::start).
    fn capabilities(&self) -> Capabilities;

    /// Starts a build. An invalid request fails here. A build that fails is an outcome.
    ///
    /// # Errors
    /// Returns [`BackendError::Invalid`] if the plan does not fit the backend, and other errors if the build
    /// cannot start.
    ///
    /// # Cancel safety
    /// If the future is dropped before it completes, nothing was started.
    fn start(&self, request: RunRequest) -> impl Future<Output = Result<BackendHandle, BackendError>> + Send;
}

/// What a backend supports. Everything defaults to "no".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "independent yes-or-no facts")]
pub struct Capabilities {
    /// A limit on concurrent steps.
    pub honors_parallelism: bool,
    /// [`RunOptions::keep_going`].
    pub honors_keep_going: bool,
    /// The backend submits and watches builds rather than running steps itself.
    pub is_observer: bool,
    /// `step_cache_hit` events.
    pub reports_cache_hits: bool,
    /// [`RunOptions::watch`] may be false.
    pub supports_no_watch: bool,
    /// `build_accepted` carries the URL of a page to watch.
    pub provides_watch_url: bool,
    /// Time limits of steps and of the build.
    pub enforces_timeout: bool,
}

/// Everything that a build needs to start.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunRequest {
    /// The plan to run.
    pub plan: Plan,
    /// The source tree, frozen when the first step needs it and never written to.
    pub repo_root: PathBuf,
    /// The pipeline's name.
    pub pipeline_slug: String,
    /// The project whose cached results are used and created. By default, the project of the canonical source
    /// directory. [`ProjectId::of_checkout`] makes all clones of a repository one project.
    pub project: Option<ProjectId>,
    /// Variables for every step. They override those of the plan.
    pub env: Env,
    /// Metadata of the source.
    pub source: SourceMeta,
    /// The options of the run.
    pub options: RunOptions,
    /// The secrets that steps may read at `/run/secrets/NAME`.
    pub secrets: Secrets,
    /// How long steps took the last time, by key. The scheduler starts the longest remaining path first.
    pub durations: BTreeMap<Arc<str>, Duration>,
    /// The run's id, if the caller has assigned one already. By default, a random one.
    pub run_id: Option<Uuid>,
    /// The run's start time. By default, now.
    pub started_at: Option<DateTime<Utc>>,
    /// The source tree, if it is being frozen already.
    pub early_freeze: Option<Arc<EarlyFreeze>>,
}

impl RunRequest {
    /// Creates a request with default options. The pipeline is named after the directory.
    #[must_use]
    pub fn new(plan: Plan, source_dir: impl Into<PathBuf>) -> Self {
        let repo_root = source_dir.into();
        let pipeline_slug =
            repo_root.file_name().map_or_else(|| "pipeline".into(), |name| name.to_string_lossy().into_owned());
        Self {
            plan,
            repo_root,
            pipeline_slug,
            project: None,
            env: Env::new(),
            source: SourceMeta::default(),
            options: RunOptions::default(),
            secrets: Secrets::new(),
            durations: BTreeMap::new(),
            run_id: None,
            started_at: None,
            early_freeze: None,
        }
    }
}

/// Metadata of a source tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceMeta {
    /// The branch.
    pub branch: String,
    /// The commit.
    pub commit: String,
    /// The commit's message.
    pub message: Option<String>,
    /// `owner/name`, if a remote of the repository has it.
    pub repo_name: Option<String>,
}

/// The options of a build.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RunOptions {
    /// Run cached steps, too. Their results replace those in the cache.
    pub no_cache: bool,
    /// Run these cached steps, by key, and the steps that build in them. Keys that the plan does not have are
    /// ignored.
    pub refresh: BTreeSet<String>,
    /// Wall-clock budget of the whole build. The shorter of this and the plan's limit applies.
    pub timeout: Option<Duration>,
    /// Wait for the build. Only observers support `false`.
    pub watch: bool,
    /// After a failure, continue with steps that do not need the failed step.
    pub keep_going: bool,
    /// Keep the filesystem of every step after the build ends, for inspection: also those of passed steps,
    /// and those that no other step needs.
    pub keep: bool,
    /// The runner of steps that name none. It overrides the engine's default.
    pub runner: Option<String>,
    /// Which modification times of source files steps see.
    pub source_times: SourceTimes,
    /// Images to replace: from the image that the plan names to the image to use.
    pub images: BTreeMap<String, String>,
}

/// A running build: events to show, and a control to hold.
pub struct BackendHandle {
    events: EventStream,
    control: Control,
}

impl BackendHandle {
    /// Creates a handle from its parts. The task `outcome` ends when the build has ended.
    #[must_use]
    pub fn new(
        events: EventStream,
        cancel: CancellationToken,
        outcome: JoinHandle<Result<BuildOutcome, BackendError>>,
    ) -> Self {
        Self { events, control: Control { cancel, outcome } }
    }

    /// Splits the handle. Either part may be dropped: an unread stream slows nothing down, and without a
    /// control the build continues by itself.
    #[must_use]
    pub fn into_parts(self) -> (EventStream, Control) {
        (self.events, self.control)
    }
}

impl fmt::Debug for BackendHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendHandle").finish_non_exhaustive()
    }
}

/// Cancels a build, and waits for its end.
#[derive(Debug)]
pub struct Control {
    cancel: CancellationToken,
    outcome: JoinHandle<Result<BuildOutcome, BackendError>>,
}

impl Control {
    /// Cancels the build: running steps get SIGTERM, then SIGKILL. Repeated or late calls do nothing.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Returns the token behind [`cancel`](Self::cancel), for a signal handler.
    #[must_use]
    pub fn cancel_token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Waits for the end of the build.
    ///
    /// # Errors
    /// Returns an error if the backend could not report an outcome. A failed build is an outcome.
    ///
    /// # Cancel safety
    /// If the future is dropped, the build continues and its outcome is lost.
    pub async fn wait(self) -> Result<BuildOutcome, BackendError> {
        self.outcome.await.map_err(|error| BackendError::Other(error.into()))?
    }
}

/// An error that keeps a backend from running a build. A failed build is an outcome instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The pipeline, or what it requests of the engine's runners, is invalid.
    #[error(transparent)]
    Invalid(#[from] InvalidPipeline),
    /// A runner that the plan needs cannot work on this machine.
    #[error("runner `{runner}` is not available: {reason}; {hint}")]
    Unusable {
        /// The runner.
        runner: String,
        /// The check that failed.
        reason: String,
        /// How to fix it.
        hint: String,
    },
    /// The engine's runners cannot be combined.
    #[error("failed to combine the engine's runners")]
    Composition(#[from] CompositionError),
    /// A local file or process operation failed.
    #[error("failed to {doing}")]
    Local {
        /// The operation that failed, as in "failed to ...".
        doing: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A server requires credentials.
    #[error("authentication required")]
    Unauthorized,
    /// A server refused the build.
    #[error("backend rejected the build [{code}]: {message}")]
    Rejected {
        /// The server's code.
        code: String,
        /// The server's message.
        message: String,
    },
    /// Anything else.
    #[error("the build ended unexpectedly")]
    Other(#[source] Box<dyn std::error::Error + Send + Sync>),
}
