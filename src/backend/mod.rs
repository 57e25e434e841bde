//! The boundary for whole builds: the trait of everything that can run a build, and what a caller holds while
//! it runs.

mod dynamic;
mod error;
mod handle;
mod request;

use std::future::Future;

pub use dynamic::DynExecutionBackend;
pub use error::{BackendError, Result};
pub use handle::{BackendHandle, Control};
pub use request::{RunOptions, RunRequest, SourceMeta};

use crate::outcome::BuildOutcome;

/// Runs whole builds.
///
/// Callers that choose a backend at run time take a `Box<dyn` [`DynExecutionBackend`]`>`, which every backend
/// can become.
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
    fn start(&self, request: RunRequest) -> impl Future<Output = Result<BackendHandle>> + Send;

    /// Runs a build to its end, and ignores its events.
    ///
    /// # Errors
    /// Returns the errors of [`start`](Self::start), and one if the backend could not report an outcome. A
    /// failed build is an outcome.
    ///
    /// # Cancel safety
    /// If the future is dropped, the build is cancelled. It ends as cancelled builds do, as long as the
    /// runtime lives.
    fn run(&self, request: RunRequest) -> impl Future<Output = Result<BuildOutcome>> + Send {
        async move { self.start(request).await?.finish().await }
    }
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

impl Capabilities {
    /// The capabilities of a backend that supports nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            honors_parallelism: false,
            honors_keep_going: false,
            is_observer: false,
            reports_cache_hits: false,
            supports_no_watch: false,
            provides_watch_url: false,
            enforces_timeout: false,
        }
    }

    /// The capabilities of a backend that runs the steps itself.
    #[must_use]
    pub const fn local() -> Self {
        Self {
            honors_parallelism: true,
            honors_keep_going: true,
            reports_cache_hits: true,
            enforces_timeout: true,
            ..Self::none()
        }
    }

    /// The capabilities of a backend that submits builds to a service and watches them there.
    #[must_use]
    pub const fn cloud() -> Self {
        Self { is_observer: true, supports_no_watch: true, provides_watch_url: true, ..Self::none() }
    }
}
