//! The whole-build boundary: whoever can run a build, and what a caller holds while it runs.

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
    outcome::BuildOutcome,
    plan::Plan,
    runner::{CompositionError, Secrets},
};

/// Runs whole builds.
pub trait ExecutionBackend: Send + Sync {
    /// A stable name for diagnostics.
    fn name(&self) -> &str;

    /// What the backend honours; to be asked before [`start`](Self::start).
    fn capabilities(&self) -> Capabilities;

    /// Starts a build. What is wrong with the request fails here; a build that fails is an outcome.
    ///
    /// # Errors
    /// [`BackendError::Invalid`] where the plan does not fit the backend, other kinds where it cannot start.
    ///
    /// # Cancel safety
    /// Dropped before it returns, nothing was started.
    fn start(&self, request: RunRequest) -> impl Future<Output = Result<BackendHandle, BackendError>> + Send;
}

/// What a backend honours. Everything defaults to "no".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "independent yes-or-no facts")]
pub struct Capabilities {
    /// A limit on concurrent steps.
    pub honors_parallelism: bool,
    /// [`RunOptions::keep_going`].
    pub honors_keep_going: bool,
    /// It submits and watches, rather than running steps itself.
    pub is_observer: bool,
    /// `step_cache_hit` events.
    pub reports_cache_hits: bool,
    /// [`RunOptions::watch`] may be false.
    pub supports_no_watch: bool,
    /// `build_accepted` carries a page to watch.
    pub provides_watch_url: bool,
    /// Time limits of steps and of the build.
    pub enforces_timeout: bool,
}

/// Everything that a build starts from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunRequest {
    /// What to run.
    pub plan: Plan,
    /// The source tree, frozen when the first step needs it and never written to.
    pub repo_root: PathBuf,
    /// The pipeline's name.
    pub pipeline_slug: String,
    /// Which project's cached results are used and made. By default those of the canonical source directory;
    /// [`ProjectId::of_checkout`] makes all clones of a repository one project.
    pub project: Option<ProjectId>,
    /// Variables for every step, over those of the plan.
    pub env: Env,
    /// What is known of the source.
    pub source: SourceMeta,
    /// How to run.
    pub options: RunOptions,
    /// What steps may read at `/run/secrets/NAME`.
    pub secrets: Secrets,
    /// How long steps took the last time, by key: the longest remaining path goes first.
    pub durations: BTreeMap<Arc<str>, Duration>,
    /// The run's id, where somebody else has given one already. By default a random one.
    pub run_id: Option<Uuid>,
    /// When the run counts as started. By default now.
    pub started_at: Option<DateTime<Utc>>,
}

impl RunRequest {
    /// A request with default options. The pipeline is named after the directory.
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
        }
    }
}

/// What is known of a source tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceMeta {
    /// The branch.
    pub branch: String,
    /// The commit.
    pub commit: String,
    /// The commit's message.
    pub message: Option<String>,
    /// `owner/name`, where a remote tells.
    pub repo_name: Option<String>,
}

/// How to run a build.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RunOptions {
    /// Run cached steps, too. What they leave takes the place of what the cache had.
    pub no_cache: bool,
    /// Run these cached steps, by key, and what builds in them. Keys that the plan does not have are overlooked.
    pub refresh: BTreeSet<String>,
    /// Wall-clock budget of the whole build; the shorter of this and the plan's holds.
    pub timeout: Option<Duration>,
    /// Wait for the build (observers alone may do otherwise).
    pub watch: bool,
    /// After a failure go on with what does not need the failed step.
    pub keep_going: bool,
    /// Keep what every step leaves beyond the build's end, for people to look at: passed steps, too, and also where no
    /// other step needs it.
    pub keep: bool,
    /// The runner of steps that name none, instead of the engine's default.
    pub runner: Option<String>,
    /// Images to replace: what the plan says to what to use.
    pub images: BTreeMap<String, String>,
}

/// A running build: events to show, and a control to hold.
pub struct BackendHandle {
    events: EventStream,
    control: Control,
}

impl BackendHandle {
    /// Joins the parts. `outcome` ends when the build has.
    #[must_use]
    pub fn new(
        events: EventStream,
        cancel: CancellationToken,
        outcome: JoinHandle<Result<BuildOutcome, BackendError>>,
    ) -> Self {
        Self { events, control: Control { cancel, outcome } }
    }

    /// Splits the handle. Either part may be dropped: an unread stream slows nothing, and without a control the build
    /// goes on by itself.
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
    /// Cancels the build: running steps get TERM, then KILL. Harmless when repeated or late.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// The token behind [`cancel`](Self::cancel), for a signal handler.
    #[must_use]
    pub fn cancel_token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Waits for the end of the build.
    ///
    /// # Errors
    /// What kept the backend from telling an outcome; a failed build is one.
    ///
    /// # Cancel safety
    /// Dropped, the build goes on and its outcome is lost.
    pub async fn wait(self) -> Result<BuildOutcome, BackendError> {
        self.outcome.await.map_err(|error| BackendError::Other(error.into()))?
    }
}

/// What keeps a backend from running a build. A failed build is an outcome instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The pipeline, or what it asks of the engine's runners, is wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidPipeline),
    /// A runner that the plan needs can't work on this machine.
    #[error("runner `{runner}` can't work here: {reason}; {hint}")]
    Unusable {
        /// The runner.
        runner: String,
        /// Which check failed.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// The engine's runners do not go together.
    #[error("failed to compose the engine's runners")]
    Composition(#[from] CompositionError),
    /// A local file or process operation failed.
    #[error("failed to {doing}")]
    Local {
        /// What was being done.
        doing: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A server wants credentials.
    #[error("authentication required")]
    Unauthorized,
    /// A server refused the build.
    #[error("backend rejected the build [{code}]: {message}")]
    Rejected {
        /// The server's code.
        code: String,
        /// The server's words.
        message: String,
    },
    /// Anything else.
    #[error("the build broke off")]
    Other(#[source] Box<dyn std::error::Error + Send + Sync>),
}
