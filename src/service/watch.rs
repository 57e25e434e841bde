//! Watches a build: polls its jobs and its state, follows the logs of its jobs, and records both as a local
//! build does.
//!
//! ```text
//! Accepted ── first list of jobs ──▶ Watching ── build ended ──▶ Draining ── logs complete ──▶ Ended
//!                                       │  cancelled: one request, then the steps' real ends
//!                                       └─ 10 minutes without an answer, or the token refused: an error
//! ```
//!
//! The steps of the journal are the jobs of the first list. An error ends the watch, not the build.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Ended, Ready,
    api::Job,
    client::{BuildPlace, Service},
    error::ServiceError,
    follow::Follow,
    map, not_started,
    tokens::LogTokens,
};
use crate::{
    backend::BackendError,
    event::{self, EventBus, EventStream, EventWriter, PlanDetails, PlanSummary, RunDir, RunMeta, ServerRun, StepMeta},
    model::{BuildRef, BuildStatus, Secrets, StepIndex},
    outcome::BuildOutcome,
    plan::Plan,
    store::{NewRun, StoreHandle},
};

/// The name of the runner in events.
const RUNNER: &str = "cloud";
/// The pauses between the first looks for the jobs of a build.
const FIRST_LOOKS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(250), Duration::from_millis(250), Duration::from_millis(500)];
/// How long a cancelled build may take to show its jobs.
const CANCELED_LOOK: Duration = Duration::from_secs(2);
/// How long the service may take to accept that an abandoned build is cancelled.
const ABANDON_LIMIT: Duration = Duration::from_secs(10);

/// What is known about the steps of a build from its plan.
#[derive(Debug, Default)]
pub(super) struct PlanFacts {
    steps: HashMap<Arc<str>, StepFacts>,
    chain_count: usize,
}

#[derive(Debug)]
struct StepFacts {
    chain: usize,
    parent: Option<Arc<str>>,
    image: Option<Arc<str>>,
}

impl PlanFacts {
    pub(super) fn of(plan: &Plan) -> Self {
        let (dag, nodes) = (plan.dag(), &plan.pipeline().nodes);
        let key = |step: StepIndex| nodes.get(step.get()).map(|node| Arc::clone(&node.step.key));
        let steps = dag.steps().zip(nodes).map(|(step, node)| {
            let parent = dag.lineage_parent(step).and_then(key);
            let image = if parent.is_none() { node.step.image.clone() } else { None };
            (Arc::clone(&node.step.key), StepFacts { chain: dag.chain(step), parent, image })
        });
        Self { steps: steps.collect(), chain_count: dag.chain_count() }
    }
}

/// A run that the store keeps.
#[derive(Debug)]
pub(super) struct KeptRun {
    pub(super) store: StoreHandle,
    pub(super) source_dir: PathBuf,
    pub(super) pipeline: String,
}

/// A build to watch.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) service: Service,
    pub(super) place: BuildPlace,
    /// The URL of the service's pages.
    pub(super) pages: String,
    pub(super) run_id: Uuid,
    /// Where the journal is kept. `None` if it is not.
    pub(super) kept: Option<KeptRun>,
    pub(super) plan: PlanFacts,
    /// The only job to watch, if it is one.
    pub(super) job: Option<Uuid>,
    pub(super) cancel: CancellationToken,
}

/// Cancels a build that no caller waits for.
pub(super) async fn abandon(service: &Service, place: &BuildPlace) -> Ended {
    let canceled = tokio::time::timeout(ABANDON_LIMIT, service.cancel(place)).await;
    if !matches!(canceled, Ok(Ok(_))) {
        tracing::warn!("build #{} of {} may still run: it could not be cancelled", place.number, place.pipeline);
    }
    Err(BackendError::Other("the build was cancelled before it was watched".into()))
}

impl Watched {
    /// Records that the build was accepted, and no more.
    pub(super) fn accept(self, ready: Ready) -> Ended {
        let started_at = Utc::now();
        let (mut writer, _, events) = match self.journal(&[], started_at, None) {
            Ok(created) => created,
            Err(error) => return not_started(ready, error),
        };
        drop(ready.send(Ok(events)));
        writer.flush().map_err(unrecorded)?;
        Ok(BuildOutcome {
            build: self.build_ref(),
            status: BuildStatus::Passed,
            message: None,
            steps: Vec::new(),
            started_at,
            finished_at: Utc::now(),
            shadow_differences: 0,
            shadow_failures: 0,
            verified: Vec::new(),
            watch_url: Some(self.watch_url()),
        })
    }

    /// Watches the build until it ends.
    pub(super) async fn run(self, ready: Ready) -> Ended {
        let tokens = Arc::new(LogTokens::new(self.service.clone(), self.place.clone()));
        // If there is no token, the logs ask again and report it.
        let token = tokio::select! {
            token = tokens.get(None) => token.ok(),
            () = self.cancel.cancelled() => None,
        };
        let jobs = match self.first_jobs().await {
            Ok(jobs) => self.watched(jobs),
            Err(error) => return self.unwatchable(ready, error).await,
        };
        let started_at = Utc::now();
        let (writer, bus, events) = match self.journal(&jobs, started_at, token.as_deref()) {
            Ok(created) => created,
            Err(error) => return self.unwatchable(ready, error).await,
        };
        self.begin(started_at);
        // If the caller is gone, it has cancelled the build.
        drop(ready.send(Ok(events)));
        let steps = keys(&jobs).into_iter().zip(jobs);
        Follow::new(self, steps, tokens, started_at, (writer, bus)).run().await
    }

    /// Ends the watch of a build that exists, but cannot be watched.
    async fn unwatchable(&self, ready: Ready, error: ServiceError) -> Ended {
        if self.cancel.is_cancelled() {
            let ended = abandon(&self.service, &self.place).await;
            drop(ready.send(Err(ServiceError::Canceled)));
            return ended;
        }
        // Only builds that were just submitted are kept.
        let error = if self.kept.is_some() { ServiceError::Unwatched(Box::new(error)) } else { error };
        not_started(ready, error)
    }

    pub(super) fn build_ref(&self) -> BuildRef {
        let BuildPlace { org, pipeline, number } = self.place.clone();
        BuildRef { run_id: self.run_id, number: Some(number), org: Some(org), pipeline }
    }

    pub(super) fn watch_url(&self) -> String {
        let BuildPlace { org, pipeline, number } = &self.place;
        format!("{}/{org}/pipelines/{pipeline}/builds/{number}", self.pages)
    }

    /// Returns the jobs of the build: all of the plan's, or a list that two looks agree on. Returns what
    /// there is if the build ends, or if it is cancelled.
    async fn first_jobs(&self) -> Result<Vec<Job>, ServiceError> {
        tokio::select! {
            jobs = self.planned_jobs() => jobs,
            () = self.cancel.cancelled() => {
                // The request to cancel, which comes next, must not wait long for what is only shown.
                let jobs = tokio::time::timeout(CANCELED_LOOK, self.service.jobs(&self.place)).await;
                Ok(jobs.ok().and_then(Result::ok).unwrap_or_default())
            }
        }
    }

    async fn planned_jobs(&self) -> Result<Vec<Job>, ServiceError> {
        let expected = match self.plan.steps.len() {
            // The plan is not known.
            0 => usize::MAX,
            steps => steps,
        };
        let mut before = usize::MAX;
        let mut looks = FIRST_LOOKS.into_iter();
        loop {
            tokio::time::sleep(looks.next().unwrap_or(self.service.pace.poll)).await;
            let jobs = self.service.jobs(&self.place).await?;
            if jobs.len() >= expected || (jobs.len() == before && !jobs.is_empty()) {
                return Ok(jobs);
            }
            if map::build_end(&self.service.build(&self.place).await?).is_some() {
                return self.service.jobs(&self.place).await;
            }
            before = jobs.len();
        }
    }

    /// Returns the jobs to watch, each of them once.
    fn watched(&self, mut jobs: Vec<Job>) -> Vec<Job> {
        let mut known = HashSet::new();
        jobs.retain(|job| known.insert(job.id) && self.job.is_none_or(|only| only == job.id));
        jobs
    }

    fn journal(
        &self,
        jobs: &[Job],
        started_at: DateTime<Utc>,
        log_token: Option<&str>,
    ) -> Result<(EventWriter, EventBus, EventStream), ServiceError> {
        // No output and no message can carry them.
        let mut secrets = Secrets::new();
        secrets.insert("token", self.service.token());
        secrets.insert("log token", log_token.unwrap_or_default());
        let dir = match &self.kept {
            Some(kept) => RunDir::Kept(kept.store.get()?.runs().dir(self.run_id)),
            None => RunDir::Temporary,
        };
        let keys = keys(jobs);
        let index: HashMap<&str, u32> = keys.iter().map(|key| &**key).zip(0..).collect();
        let steps = keys.iter().zip(jobs).map(|(key, job)| {
            let facts = self.plan.steps.get(key);
            StepMeta {
                key: Arc::clone(key),
                display_name: job.name.as_deref().map_or_else(|| Arc::clone(key), Into::into),
                chain_idx: facts.map_or(0, |facts| facts.chain),
                parent: facts.and_then(|facts| index.get(facts.parent.as_deref()?).copied().map(StepIndex)),
                image: facts.and_then(|facts| facts.image.clone()),
                runner: 0,
            }
        });
        let meta = RunMeta {
            build: self.build_ref(),
            plan: PlanSummary {
                step_count: jobs.len(),
                chain_count: self.plan.chain_count.max(1),
                default_runner: RUNNER.into(),
            },
            started_at,
            steps: steps.collect(),
            runners: vec![RUNNER.into()],
            server: Some(ServerRun {
                watch_url: Some(self.watch_url()),
                step_ids: jobs.iter().map(|job| job.id).collect(),
            }),
            details: PlanDetails::default(),
        };
        event::create(dir, meta, &secrets)
            .map_err(|source| ServiceError::Local { doing: "open the run's journal".into(), source })
    }

    /// Notes in the store that the run begins. Without that, `hm logs` does not find it, but it runs.
    fn begin(&self, started_at: DateTime<Utc>) {
        let Some(KeptRun { store, source_dir, pipeline }) = &self.kept else { return };
        let dir = source_dir.canonicalize().unwrap_or_else(|_| source_dir.clone());
        let run = NewRun { id: self.run_id, source_dir: &dir, pipeline, started_at: started_at.timestamp_millis() };
        if let Err(error) = store.get().and_then(|store| store.runs().begin(&run)) {
            tracing::warn!(%error, "failed to record the run");
        }
    }

    /// Notes in the store that the run has ended.
    pub(super) fn note_end(&self, status: BuildStatus) {
        let Some(KeptRun { store, .. }) = &self.kept else { return };
        if let Err(error) = store.get().and_then(|store| store.runs().end(self.run_id, status.exit_code())) {
            tracing::warn!(%error, "failed to record the end of the run");
        }
    }
}

/// Returns the keys of jobs, each of them different.
fn keys(jobs: &[Job]) -> Vec<Arc<str>> {
    let mut used: HashSet<Arc<str>> = HashSet::new();
    let unique = |job: &Job| {
        let key = job.step_key.clone().or_else(|| job.name.clone()).unwrap_or_else(|| job.id.to_string());
        let (mut unique, mut number) = (Arc::from(key.as_str()), 1);
        while !used.insert(Arc::clone(&unique)) {
            number += 1;
            unique = format!("{key}#{number}").into();
        }
        unique
    };
    jobs.iter().map(unique).collect()
}

/// Returns the error for a journal that could not be written.
pub(super) fn unrecorded(source: std::io::Error) -> BackendError {
    BackendError::Local { doing: "record the build, which continues at the service".into(), source }
}
