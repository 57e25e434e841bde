//! The hosted service as a backend: it runs whole builds, and this machine submits and watches them. (Runner
//! `cloud` runs single steps on an engine that the user names.)
//!
//! ```text
//! source ─▶ freeze ─▶ tar.gz ─▶ submit ─▶ poll jobs and build ─▶ journal ─▶ readers, as of a local build
//!                                   └───▶ one log stream per job ───▲
//! ```
//!
//! Input: a [`RunRequest`], or the place of a build that exists. Output: a [`BackendHandle`]. One task
//! watches a build. The module renders nothing and knows no configuration.

mod archive;
mod client;
mod error;
mod follow;
mod job_log;
mod map;
mod refusal;
mod sse;
mod submit;
mod tokens;
mod watch;

use std::future::Future;

use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::{
    client::{BuildPlace, Pace, Service},
    error::ServiceError,
    submit::is_slug,
};
use self::{
    submit::Submission,
    watch::{KeptRun, PlanFacts, Watched},
};
use crate::{
    backend::{BackendError, BackendHandle, Capabilities, ExecutionBackend, RunRequest},
    event::EventStream,
    model::ArchiveId,
    outcome::BuildOutcome,
    source::RunSource,
    store::StoreHandle,
};

/// The types of the service's description.
#[doc(hidden)]
pub use harmont_cloud_raw::types as api;

/// Runs builds on the hosted service.
#[derive(Debug, Clone)]
pub struct CloudBackend {
    service: Service,
    store: StoreHandle,
    org: String,
    app: String,
    pipeline: Option<String>,
}

impl CloudBackend {
    /// Creates a backend that submits builds to an organization. Sources are frozen in `store`, which also
    /// keeps the journals and logs of builds that are watched. `app` is the URL of the service's pages.
    ///
    /// The pipeline is the one that the service knows by the source's repository
    /// ([`SourceMeta::repo_name`](crate::SourceMeta::repo_name)) and the pipeline's name there.
    #[must_use]
    pub fn new(service: Service, store: StoreHandle, org: impl Into<String>, app: &str) -> Self {
        Self { service, store, org: org.into(), app: app.trim_end_matches('/').to_owned(), pipeline: None }
    }

    /// Names the pipeline by its slug, which is unique in the organization.
    #[must_use]
    pub fn pipeline(mut self, slug: impl Into<String>) -> Self {
        self.pipeline = Some(slug.into());
        self
    }

    /// Submits a build, and starts to watch it unless the request says otherwise. To cancel it, cancel the
    /// token: also while this waits, after which the build is cancelled as soon as the service has accepted
    /// it.
    ///
    /// # Errors
    /// Returns an error if the build was not submitted. If [`may_be_done`](ServiceError::may_be_done) is
    /// true, it may run nevertheless.
    ///
    /// # Cancel safety
    /// If the future is dropped, the build is cancelled as soon as the service has accepted it, if the
    /// runtime lives that long.
    pub async fn submit(&self, request: RunRequest, cancel: CancellationToken) -> Result<BackendHandle, ServiceError> {
        let submission = tokio::select! {
            submission = self.prepare(&request) => submission?,
            () = cancel.cancelled() => return Err(ServiceError::Canceled),
        };
        let plan = PlanFacts::of(&request.plan);
        let (service, pages, store) = (self.service.clone(), self.app.clone(), self.store.clone());
        let run_id = request.run_id.unwrap_or_else(Uuid::new_v4);
        let (source_dir, slug, watch) = (request.repo_root, request.pipeline_slug, request.options.watch);
        start(cancel, move |ready, cancel| async move {
            let place = match submission.send(&service, &cancel).await {
                Ok(place) => place,
                Err(error) => return not_started(ready, error),
            };
            tracing::info!(number = place.number, "the service has accepted the build");
            // A caller that is gone has cancelled the build. The watch of a build cancels it.
            if ready.is_closed() || (!watch && cancel.is_cancelled()) {
                let ended = watch::abandon(&service, &place).await;
                drop(ready.send(Err(ServiceError::Canceled)));
                return ended;
            }
            let kept = watch.then_some(KeptRun { store, source_dir, pipeline: slug });
            let watched = Watched { service, place, pages, run_id, kept, plan, job: None, cancel };
            if watch { watched.run(ready).await } else { watched.accept(ready) }
        })
        .await
    }

    /// Freezes and packs the source, and makes the request.
    async fn prepare(&self, request: &RunRequest) -> Result<Submission, ServiceError> {
        if !request.secrets.is_empty() {
            return Err(ServiceError::Unsupported("the service has no place for secrets of a build".into()));
        }
        let store = self.store.get()?;
        let source = RunSource::new(ArchiveId(Uuid::new_v4()), request.repo_root.clone())
            .times(request.options.source_times)
            .leaving_out(request.options.source_ignore.clone())
            .frozen_early(request.early_freeze.clone());
        let frozen = source.freeze(&store).await?;
        let submission = Submission::of(request, &self.org, self.pipeline.as_deref())?;
        let packing = tokio::task::spawn_blocking(move || {
            let packed = archive::pack(&frozen, submission.max_source_bytes());
            packed.map(|packed| submission.with_source(&packed))
        });
        let packed = packing.await.map_err(|error| ServiceError::Local {
            doing: "pack the source".into(),
            source: std::io::Error::other(error),
        })?;
        // The source must stay in the store until it is packed.
        drop(source);
        packed
    }
}

/// Watches a build that the service has, until it ends, or only one job of it. `app` is the URL of the
/// service's pages. Cancelling the token cancels the build.
///
/// # Errors
/// Returns an error if the service does not know the build.
pub async fn watch(
    service: &Service,
    place: BuildPlace,
    app: &str,
    job: Option<Uuid>,
    cancel: CancellationToken,
) -> Result<BackendHandle, ServiceError> {
    submit::checked(&place.org, "the organization's slug")?;
    submit::checked(&place.pipeline, "the pipeline's slug")?;
    let (service, pages) = (service.clone(), app.trim_end_matches('/').to_owned());
    start(cancel, move |ready, cancel| async move {
        if let Err(error) = service.build(&place).await {
            return not_started(ready, error);
        }
        Watched { service, place, pages, run_id: Uuid::new_v4(), kept: None, plan: PlanFacts::default(), job, cancel }
            .run(ready)
            .await
    })
    .await
}

/// Receives the events of a build as soon as there are any, or the reason why there is no build.
type Ready = oneshot::Sender<Result<EventStream, ServiceError>>;

/// The result of the task of a build.
type Ended = Result<BuildOutcome, BackendError>;

/// Starts the task of a build, and waits until it has events.
async fn start<F>(
    cancel: CancellationToken,
    task: impl FnOnce(Ready, CancellationToken) -> F,
) -> Result<BackendHandle, ServiceError>
where
    F: Future<Output = Ended> + Send + 'static,
{
    let (ready, events) = oneshot::channel();
    // If the caller stops to wait, the task goes on only to cancel the build.
    let guard = cancel.clone().drop_guard();
    let outcome = spawn(task(ready, cancel.clone()));
    let events = events.await;
    guard.disarm();
    let ended = || ServiceError::Local {
        doing: "watch the build".into(),
        source: std::io::Error::other("its task ended unexpectedly"),
    };
    Ok(BackendHandle::of_journal(events.map_err(|_| ended())??, cancel, outcome))
}

/// Spawns the one task of a build.
#[expect(clippy::disallowed_methods, reason = "the one place of this module where a task is spawned")]
fn spawn(task: impl Future<Output = Ended> + Send + 'static) -> JoinHandle<Ended> {
    tokio::spawn(task)
}

/// Reports that there is no build.
fn not_started(ready: Ready, error: ServiceError) -> Ended {
    // If the caller is gone, nothing was started, as it expects.
    drop(ready.send(Err(error)));
    Err(BackendError::Other("the build was not started".into()))
}

impl ExecutionBackend for CloudBackend {
    fn name(&self) -> &'static str {
        "cloud"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::cloud()
    }

    async fn start(&self, request: RunRequest) -> Result<BackendHandle, BackendError> {
        Ok(self.submit(request, CancellationToken::new()).await?)
    }
}
