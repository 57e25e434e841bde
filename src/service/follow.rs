//! Follows a build until it ends: one task, which polls, follows logs, and records.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Ended,
    api::{Build, Job},
    error::ServiceError,
    job_log::{JobLog, Written},
    map::{self, JobEnd},
    tokens::LogTokens,
    watch::{Watched, unrecorded},
};
use crate::{
    backend::BackendError,
    event::{EventBus, EventWriter, StateEvent, StepEndDetails},
    model::{BuildStatus, StepIndex, StepStatus},
    outcome::{BuildOutcome, StepResultSummary},
};

/// The number of logs that are open at once.
const MAX_LOGS: usize = 32;
/// How long a build may stay unchanged before it is polled less often.
const UNCHANGED: Duration = Duration::from_secs(1800);
/// After the end of the build, how many times as long as one log all of them together may be silent.
const DRAINING: u32 = 6;

type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The step whose log has ended, and the reason if it is incomplete. `None` if another attempt has begun.
type LogEnd = Option<(usize, Option<String>)>;

/// The verdict of a build, and the reason if the steps do not show it.
type Verdict = (BuildStatus, Option<String>);

/// A build that is being followed.
pub(super) struct Follow {
    of: Watched,
    tokens: Arc<LogTokens>,
    writer: EventWriter,
    bus: EventBus,
    started_at: DateTime<Utc>,
    started: Instant,
    steps: Vec<Step>,
    by_id: HashMap<Uuid, usize>,
    /// The jobs in whose place others run.
    replaced: HashSet<Uuid>,
    logs: FuturesUnordered<Pending<LogEnd>>,
    slots: Arc<Semaphore>,
    verdict: Option<Verdict>,
    /// Whether the user has cancelled the build.
    is_canceled: bool,
    /// When everything that is still open is given up.
    deadline: Option<Instant>,
    has_warned_of_strangers: bool,
}

/// A step of the build.
#[derive(Debug)]
struct Step {
    key: Arc<str>,
    /// The id in the journal: the first job's.
    id: Uuid,
    job: Job,
    /// The attempts that have started.
    attempts: u32,
    /// Whether the last of them has started. Otherwise the next one is awaited.
    has_started: bool,
    /// Whether its log is being followed.
    has_open_log: bool,
    /// Stops following it.
    log_stop: CancellationToken,
    written: Arc<Written>,
    /// The reason why its output is incomplete.
    lost: Option<String>,
    has_ended: watch::Sender<bool>,
    summary: Option<StepResultSummary>,
}

/// How far polling is.
struct Polling {
    next: Pending<Result<(Vec<Job>, Build), ServiceError>>,
    failures: u32,
    last_answer: Instant,
    last_change: Instant,
}

impl Follow {
    pub(super) fn new(
        of: Watched,
        steps: impl Iterator<Item = (Arc<str>, Job)>,
        tokens: Arc<LogTokens>,
        started_at: DateTime<Utc>,
        (writer, bus): (EventWriter, EventBus),
    ) -> Self {
        let steps: Vec<Step> = steps
            .map(|(key, job)| Step {
                key,
                id: job.id,
                job,
                attempts: 0,
                has_started: false,
                has_open_log: false,
                log_stop: CancellationToken::new(),
                written: Arc::default(),
                lost: None,
                has_ended: watch::Sender::new(false),
                summary: None,
            })
            .collect();
        Self {
            by_id: steps.iter().enumerate().map(|(at, step)| (step.job.id, at)).collect(),
            of,
            replaced: HashSet::new(),
            tokens,
            writer,
            bus,
            started_at,
            started: Instant::now(),
            steps,
            logs: FuturesUnordered::new(),
            slots: Arc::new(Semaphore::new(MAX_LOGS)),
            verdict: None,
            is_canceled: false,
            deadline: None,
            has_warned_of_strangers: false,
        }
    }

    /// Follows the build until it ends.
    pub(super) async fn run(mut self) -> Ended {
        let now = Instant::now();
        let mut polling =
            Polling { next: self.look_after(Duration::ZERO), failures: 0, last_answer: now, last_change: now };
        let mut canceling: Option<Pending<Result<Build, ServiceError>>> = None;
        let mut is_confirmed = false;
        (0..self.steps.len()).for_each(|at| self.update(at));
        loop {
            self.writer.flush().map_err(unrecorded)?;
            if self.is_over() {
                return self.end();
            }
            let (is_polling, is_canceling, deadline) = (self.verdict.is_none(), canceling.is_some(), self.deadline);
            tokio::select! {
                () = self.writer.dirty() => self.extend_draining(),
                answer = &mut polling.next, if is_polling => self.answer(answer, &mut polling)?,
                Some(ended) = self.logs.next(), if !self.logs.is_empty() => {
                    let Some((at, lost)) = ended else { continue };
                    self.steps[at].has_open_log = false;
                    self.steps[at].lost = lost;
                    self.update(at);
                    self.extend_draining();
                }
                () = self.of.cancel.cancelled(), if !self.is_canceled && is_polling => {
                    let (service, place) = (self.of.service.clone(), self.of.place.clone());
                    canceling = Some(Box::pin(async move { service.cancel(&place).await }));
                    self.is_canceled = true;
                    self.deadline = Some(Instant::now() + self.of.service.pace.cancel);
                }
                answer = until(&mut canceling), if is_canceling => {
                    canceling = None;
                    // If the build has ended meanwhile, the next look shows how.
                    match answer {
                        Ok(_) => is_confirmed = true,
                        Err(error) => tracing::warn!(%error, "failed to cancel the build at the service"),
                    }
                }
                () = tokio::time::sleep_until(deadline.unwrap_or(now)), if deadline.is_some() => self.give_up(!is_confirmed),
            }
        }
    }

    /// Returns whether nothing is left to wait for.
    fn is_over(&self) -> bool {
        let is_known = self.verdict.is_some() || self.of.job.is_some();
        is_known
            && self.steps.iter().all(|step| step.summary.is_some())
            && (self.verdict.is_some() || !self.steps.is_empty())
    }

    fn look_after(&self, pause: Duration) -> Pending<Result<(Vec<Job>, Build), ServiceError>> {
        let (service, place) = (self.of.service.clone(), self.of.place.clone());
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            service.look(&place).await
        })
    }

    /// Handles a look at the build, and prepares the next one.
    fn answer(
        &mut self,
        answer: Result<(Vec<Job>, Build), ServiceError>,
        polling: &mut Polling,
    ) -> Result<(), BackendError> {
        let (now, pace) = (Instant::now(), self.of.service.pace);
        let pause = match answer {
            Ok((jobs, build)) => {
                if polling.failures > 0 {
                    tracing::warn!("the service answers again");
                }
                if self.observe(jobs) {
                    polling.last_change = now;
                }
                (polling.failures, polling.last_answer) = (0, now);
                if let Some(verdict) = map::build_end(&build) {
                    self.drain(verdict);
                }
                if now - polling.last_change > UNCHANGED { pace.slow_poll } else { pace.poll }
            }
            Err(error @ (ServiceError::Busy { .. } | ServiceError::Network { .. })) => {
                if now - polling.last_answer > pace.lost {
                    return Err(error.into());
                }
                polling.failures += 1;
                if polling.failures == 1 {
                    tracing::warn!(%error, "the build continues, but the service does not answer; asking again");
                }
                pace.backoff().pause(polling.failures).max(pace.poll)
            }
            Err(error) => return Err(error.into()),
        };
        polling.next = self.look_after(pause);
        Ok(())
    }

    /// Takes over the states of jobs. Returns whether anything has changed.
    fn observe(&mut self, jobs: Vec<Job>) -> bool {
        let mut has_changed = false;
        // A job that is replaced is looked at before the one in its place.
        let (known, new): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| self.by_id.contains_key(&job.id));
        for job in known.into_iter().chain(new) {
            if self.replaced.contains(&job.id) {
                continue;
            }
            let Some(at) = self.by_id.get(&job.id).copied().or_else(|| self.replace(&job)) else {
                if self.of.job.is_none() && !self.has_warned_of_strangers {
                    self.has_warned_of_strangers = true;
                    tracing::warn!(job = %job.id, "the build has more jobs than at its start; they are not shown");
                }
                continue;
            };
            let step = &self.steps[at];
            has_changed |= step.job.state != job.state;
            if map::runs_again(&step.job, &job) {
                match step.summary {
                    None => self.retry(at),
                    Some(_) => tracing::warn!(step = %step.key, "the service runs a step again that had ended"),
                }
            }
            self.steps[at].job = job;
            self.update(at);
        }
        has_changed
    }

    /// Lets a new job continue the step of an older one with the same key. Returns the step.
    fn replace(&mut self, job: &Job) -> Option<usize> {
        let is_older = |step: &Step| step.job.step_key == job.step_key && step.job.created_at <= job.created_at;
        let can_continue = |step: &Step| step.summary.is_none() && map::may_be_retried(&step.job);
        let key = job.step_key.as_deref().filter(|_| self.of.job.is_none())?;
        let at = self.steps.iter().position(|step| *step.key == *key && is_older(step) && can_continue(step))?;
        let old = self.steps[at].job.id;
        self.by_id.remove(&old);
        self.replaced.insert(old);
        self.by_id.insert(job.id, at);
        self.retry(at);
        self.steps[at].written = Arc::default();
        self.steps[at].job = job.clone();
        Some(at)
    }

    /// Records that a step's attempt has failed and that another follows.
    fn retry(&mut self, at: usize) {
        let step = &mut self.steps[at];
        if !std::mem::take(&mut step.has_started) {
            return;
        }
        step.log_stop.cancel();
        (step.has_open_log, step.lost) = (false, None);
        let (message, exit_code) = map::why_again(&step.job);
        let (attempt, message) = (step.attempts, message.into());
        let step = index(at);
        self.emit(StateEvent::StepRetry { step, attempt, backoff_ms: 0, message, exit_code });
    }

    /// Records what a step's job has done since the last call.
    fn update(&mut self, at: usize) {
        let step = &mut self.steps[at];
        if step.summary.is_some() {
            return;
        }
        if !step.has_started && map::has_started(&step.job) {
            step.attempts += 1;
            (step.has_started, step.has_open_log) = (true, true);
            (step.log_stop, step.has_ended) = (CancellationToken::new(), watch::Sender::new(false));
            let (stop, attempt) = (step.log_stop.clone(), step.attempts);
            let log = JobLog {
                service: self.of.service.clone(),
                job: step.job.id,
                step: step.id,
                tokens: Arc::clone(&self.tokens),
                bus: self.bus.for_attempt(attempt),
                written: Arc::clone(&step.written),
                is_continued: attempt > 1,
                has_ended: step.has_ended.subscribe(),
                slots: Arc::clone(&self.slots),
            };
            self.logs.push(Box::pin(async move {
                let lost = stop.run_until_cancelled_owned(log.follow()).await?;
                Some((at, lost))
            }));
            self.emit(StateEvent::StepStart { step: index(at), attempt });
        }
        let step = &mut self.steps[at];
        // One job alone is not followed longer than it runs.
        let is_final = self.of.job.is_some() || !map::may_be_retried(&step.job);
        if self.verdict.is_some() || (is_final && map::has_ended(&step.job)) {
            step.has_ended.send_if_modified(|known| !std::mem::replace(known, true));
            if !step.has_open_log {
                self.end_step(at);
            }
        }
    }

    fn end_step(&mut self, at: usize) {
        let step = &mut self.steps[at];
        let JobEnd { status, exit_code, command_exit_code, duration_ms, message, allowed, fails_chain } =
            map::job_end(&step.job);
        let status = match status {
            StepStatus::Passed if step.attempts > 1 => StepStatus::Flaky,
            status => status,
        };
        let lost = step.lost.as_ref().map(|why| format!("its output is incomplete: {why}"));
        let message: Option<Arc<str>> = match (message, lost) {
            (Some(message), Some(lost)) => Some(format!("{message}; {lost}").into()),
            (message, lost) => message.or(lost).map(Into::into),
        };
        let attempt = step.attempts;
        step.summary = Some(StepResultSummary {
            step_id: step.id,
            key: Arc::clone(&step.key),
            status,
            exit_code: command_exit_code,
            duration_ms,
            attempts: attempt,
            artifacts: Vec::new(),
            usage: None,
            tests: None,
        });
        let details = StepEndDetails { allowed, ..StepEndDetails::default() };
        self.emit(StateEvent::StepEnd {
            step: index(at),
            attempt,
            status,
            exit_code,
            duration_ms,
            snapshot: None,
            message: message.clone(),
            artifacts: Vec::new(),
            details,
        });
        if fails_chain {
            let message = message.unwrap_or_else(|| format!("failed with exit code {exit_code}").into());
            self.emit(StateEvent::ChainFailed { step: index(at), exit_code, message });
        }
    }

    /// Handles the end of the build: only logs are still open.
    fn drain(&mut self, verdict: Verdict) {
        self.verdict = Some(verdict);
        self.extend_draining();
        (0..self.steps.len()).for_each(|at| self.update(at));
    }

    /// Waits longer for the logs of a build that has ended, because one of them made progress.
    fn extend_draining(&mut self) {
        // After a cancel, its own limit stays.
        if self.verdict.is_some() && !self.is_canceled {
            self.deadline = Some(Instant::now() + self.of.service.pace.log_end * DRAINING);
        }
    }

    /// Ends everything that is still open.
    fn give_up(&mut self, is_unconfirmed: bool) {
        self.deadline = None;
        if self.verdict.is_none() {
            let message = match is_unconfirmed {
                true => "the service did not confirm that it stops it: it may still run",
                false => "the service may still be stopping it",
            };
            let message = message.to_owned();
            self.verdict = Some((BuildStatus::Canceled, Some(message)));
        }
        for at in 0..self.steps.len() {
            let step = &mut self.steps[at];
            if std::mem::take(&mut step.has_open_log) {
                step.lost.get_or_insert_with(|| "the service did not end its log".into());
            }
            self.update(at);
        }
        self.logs.clear();
    }

    fn end(mut self) -> Ended {
        let worst = || {
            let is_failed = |step: &Step| {
                step.summary
                    .as_ref()
                    .is_some_and(|it| !it.status.is_success() && it.status != StepStatus::FailedAllowed)
            };
            if self.steps.iter().any(is_failed) { BuildStatus::Failed } else { BuildStatus::Passed }
        };
        let (status, message) = self.verdict.take().unwrap_or_else(|| (worst(), None));
        let duration_ms = self.elapsed_ms();
        self.emit(StateEvent::BuildEnd { status, duration_ms });
        self.writer.flush().map_err(unrecorded)?;
        self.of.note_end(status);
        Ok(BuildOutcome {
            build: self.of.build_ref(),
            status,
            message,
            steps: self.steps.into_iter().filter_map(|step| step.summary).collect(),
            started_at: self.started_at,
            finished_at: Utc::now(),
            shadow_differences: 0,
            shadow_failures: 0,
            verified: Vec::new(),
            watch_url: Some(self.of.watch_url()),
        })
    }

    fn emit(&mut self, event: StateEvent) {
        let at_ms = self.elapsed_ms();
        self.writer.emit(at_ms, event);
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Returns a step's number in the journal.
fn index(at: usize) -> StepIndex {
    StepIndex(u32::try_from(at).unwrap_or(u32::MAX))
}

/// Waits for a future that may not exist.
async fn until<T>(pending: &mut Option<Pending<T>>) -> T {
    match pending {
        Some(pending) => pending.await,
        None => std::future::pending().await,
    }
}
