//! One slot: a bot session, and at most one lease at a time.
//!
//! ```text
//!           ┌──────────────── lost ────────────────┐
//!           ▼                                      │
//!   create ─▶ idle ──lease in an answer──▶ running ┴─ended──▶ sent ──answer──▶ idle
//!              │                              └─lease gone: TERM, KILL, never sent──▶ idle
//!              └─draining──▶ goodbye
//! ```
//!
//! The engine controls the session by its answers: a new lease must be run, and a lease that is missing was
//! cancelled or assigned to another worker. If the engine cannot be reached, nothing changes: the command
//! continues, and its end is reported when the engine is back. Knows nothing about Actions or the connection.

#[cfg(test)]
mod tests;

use std::{future::Future, pin::Pin, time::Duration};

use prost_types::Any;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{
    bots::{Answer, Bots, Streams},
    pool::WorkerStop,
    rpc,
    rwapi::{BotSession, BotStatus, Lease, LeaseState, Worker},
};
use crate::backoff::Backoff;

/// How long the engine may delay its answer to an idle session while it waits for work.
const IDLE_WAIT: Duration = Duration::from_secs(20);
/// How long it may take to answer a busy session. Engines refuse less than about four seconds.
const BUSY_WAIT: Duration = Duration::from_secs(20);
/// How often a busy session checks whether its lease is still valid.
const BUSY_EVERY: Duration = Duration::from_millis(500);
/// How long a command whose lease is gone may take to end: the session must call the engine again in time.
const GONE_GRACE: Duration = Duration::from_secs(3);
/// The pauses after failed calls.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(5) };

/// An event that the operator of a worker may want to see.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerNote {
    /// A slot can be assigned work.
    Connected {
        /// The slot's number, from 1.
        slot: usize,
    },
    /// The engine cannot be reached, or refuses the session; the slot keeps trying.
    Disconnected {
        /// The slot's number.
        slot: usize,
        /// The reason.
        reason: String,
    },
    /// A lease ended.
    Ended {
        /// The slot's number.
        slot: usize,
        /// The engine's name for it.
        lease: String,
        /// The outcome, in a few words.
        how: String,
    },
}

/// A receiver of a worker's events.
pub trait WorkerNotes {
    /// Handles an event. Must not block.
    fn note(&self, note: WorkerNote);
}

/// The outcome of a lease.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Completed {
    /// An `ActionResult`, if there is one.
    pub(super) result: Option<Any>,
    pub(super) status: rpc::Status,
    /// A summary for the operator.
    pub(super) how: String,
}

/// Runs leases.
pub(super) trait Execute {
    /// Runs a lease. `streams` receives the names of the log streams for its output as soon as they are
    /// known. The return value after `cancel` has fired is not reported.
    ///
    /// # Cancel safety
    /// If the future is dropped, every process of the lease is killed.
    fn execute(
        &self,
        lease: Lease,
        streams: watch::Receiver<Streams>,
        cancel: CancellationToken,
    ) -> impl Future<Output = Completed>;
}

/// The identity of a slot.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    /// The number, from 1.
    pub(super) number: usize,
    pub(super) bot_id: String,
    pub(super) worker: Worker,
}

/// A lease that is being run, or that has ended but was not reported yet.
struct Job<'a> {
    lease: Lease,
    streams: watch::Sender<Streams>,
    cancel: CancellationToken,
    work: Pin<Box<dyn Future<Output = Completed> + 'a>>,
    completed: Option<Completed>,
}

impl Job<'_> {
    /// Waits for the end of the lease. Never completes after the end was returned once. Cancel-safe.
    async fn end(&mut self) {
        match self.completed {
            None => self.completed = Some(self.work.as_mut().await),
            Some(_) => std::future::pending().await,
        }
    }

    /// Returns the lease's state for the engine.
    fn told(&self) -> Lease {
        let mut lease = Lease { id: self.lease.id.clone(), payload: self.lease.payload.clone(), ..Lease::default() };
        match &self.completed {
            None => lease.state = LeaseState::Active as i32,
            Some(completed) => {
                lease.state = LeaseState::Completed as i32;
                lease.result.clone_from(&completed.result);
                lease.status = Some(completed.status.clone());
            }
        }
        lease
    }
}

/// Waits for the end of a job. Never completes if there is none.
async fn end_of(job: &mut Option<Job<'_>>) {
    match job {
        Some(job) => job.end().await,
        None => std::future::pending().await,
    }
}

/// How a session ended.
enum Over {
    Drained,
    Lost,
}

/// Serves a slot until it is stopped.
pub(super) async fn serve(
    slot: &Slot,
    bots: &impl Bots,
    leases: &impl Execute,
    stop: &WorkerStop,
    notes: &(impl WorkerNotes + ?Sized),
) {
    let mut session =
        Session { slot, bots, leases, stop, notes, state: BotSession::default(), failures: 0, told: None };
    loop {
        let Some(answer) = session.create().await else { return };
        match session.run(answer).await {
            Over::Drained => return,
            Over::Lost => {}
        }
    }
}

struct Session<'a, B, E, N: ?Sized> {
    slot: &'a Slot,
    bots: &'a B,
    leases: &'a E,
    stop: &'a WorkerStop,
    notes: &'a N,
    state: BotSession,
    /// The number of consecutive failed calls.
    failures: u32,
    /// Whether the last event said that the engine is reachable; `None` before the first.
    told: Option<bool>,
}

impl<'a, B: Bots, E: Execute, N: WorkerNotes + ?Sized> Session<'a, B, E, N> {
    /// Creates a session. Returns `None` if the worker is stopping.
    async fn create(&mut self) -> Option<Answer> {
        while !self.stop.is_draining() {
            let session = BotSession {
                bot_id: self.slot.bot_id.clone(),
                status: BotStatus::Ok as i32,
                worker: Some(self.slot.worker.clone()),
                ..BotSession::default()
            };
            // A lease in the first answer has no log stream, so the first call does not wait for a lease.
            let session = BotSession { status: BotStatus::Initializing as i32, ..session };
            let created = tokio::select! {
                created = self.bots.create(session, BUSY_WAIT) => created,
                () = self.stop.draining() => return None,
            };
            match created {
                Ok(answer) => return Some(answer),
                Err(status) => {
                    let pause = self.failed(&status);
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.stop.draining() => return None,
                    }
                }
            }
        }
        None
    }

    /// Runs leases until the session is over.
    async fn run(&mut self, answer: Answer) -> Over {
        let mut job: Option<Job<'a>> = None;
        self.take(answer, &mut job, false).await;
        loop {
            if job.is_none() && self.stop.is_draining() {
                self.goodbye().await;
                return Over::Drained;
            }
            if let Some(job) = job.as_mut().filter(|job| job.completed.is_none()) {
                tokio::select! {
                    () = job.end() => {}
                    () = tokio::time::sleep(BUSY_EVERY) => {}
                }
            }
            if self.stop.is_cancelled()
                && let Some(gone) = job.take()
            {
                self.give_up(gone).await;
                continue;
            }
            let is_end = job.as_ref().is_some_and(|job| job.completed.is_some());
            let session = BotSession {
                status: if self.stop.is_draining() { BotStatus::BotTerminating } else { BotStatus::Ok } as i32,
                leases: job.iter().map(Job::told).collect(),
                ..self.state.clone()
            };
            let idle = job.is_none();
            let answer = {
                let update = self.bots.update(session, if idle { IDLE_WAIT } else { BUSY_WAIT });
                tokio::pin!(update);
                loop {
                    tokio::select! {
                        answer = &mut update => break Some(answer),
                        // The command can end while the answer is awaited.
                        () = end_of(&mut job), if !is_end => {}
                        () = self.stop.draining(), if idle => break None,
                    }
                }
            };
            match answer {
                None => {}
                Some(Ok(answer)) => {
                    if is_end && let Some(Job { lease, completed: Some(completed), .. }) = job.take() {
                        self.ended(lease.id, completed.how);
                    }
                    self.take(answer, &mut job, is_end).await;
                }
                Some(Err(status)) if is_lost(&status) => {
                    if let Some(gone) = job.take() {
                        self.give_up(gone).await;
                    }
                    tokio::time::sleep(self.failed(&status)).await;
                    return Over::Lost;
                }
                Some(Err(status)) => {
                    // The command continues, and so does its live log.
                    let pause = tokio::time::sleep(self.failed(&status));
                    tokio::pin!(pause);
                    loop {
                        tokio::select! {
                            () = &mut pause => break,
                            () = end_of(&mut job) => {}
                            () = self.stop.draining(), if job.is_none() => break,
                        }
                    }
                }
            }
        }
    }

    /// Applies the engine's answer.
    async fn take(&mut self, answer: Answer, job: &mut Option<Job<'a>>, was_told: bool) {
        let Answer { mut session, streams } = answer;
        let leases = std::mem::take(&mut session.leases);
        self.state = BotSession { worker: Some(self.slot.worker.clone()), bot_id: self.slot.bot_id.clone(), ..session };
        self.failures = 0;
        if self.told != Some(true) {
            self.told = Some(true);
            self.notes.note(WorkerNote::Connected { slot: self.slot.number });
        }
        if let Some(running) = job {
            if leases.iter().any(|lease| lease.id == running.lease.id) {
                // The names of the log streams may only be known in a later answer.
                running.streams.send_if_modified(|known| {
                    let is_news = !streams.stdout.is_empty() && *known != streams;
                    if is_news {
                        *known = streams;
                    }
                    is_news
                });
                return;
            }
            if let Some(gone) = job.take() {
                self.give_up(gone).await;
            }
        }
        let state = |lease: &Lease| LeaseState::try_from(lease.state).unwrap_or_default();
        let new = leases.into_iter().find(|lease| matches!(state(lease), LeaseState::Active | LeaseState::Pending));
        let Some(lease) = new else { return };
        tracing::debug!(slot = self.slot.number, lease = %lease.id, was_told, "a lease");
        let (sender, receiver) = watch::channel(streams);
        let cancel = CancellationToken::new();
        let work = Box::pin(self.leases.execute(lease.clone(), receiver, cancel.clone()));
        *job = Some(Job { lease, streams: sender, cancel, work, completed: None });
    }

    /// Ends a command whose lease is no longer ours. Its result is not reported.
    async fn give_up(&self, mut job: Job<'_>) {
        job.cancel.cancel();
        if job.completed.is_none() {
            // If it has not ended by then, dropping it kills it.
            let _ = tokio::time::timeout(GONE_GRACE, job.end()).await;
        }
        self.ended(job.lease.id.clone(), "cancelled by the engine".to_owned());
    }

    fn ended(&self, lease: String, how: String) {
        self.notes.note(WorkerNote::Ended { slot: self.slot.number, lease, how });
    }

    /// Tells the engine that the worker is leaving. If the call fails, the engine detects it by itself.
    async fn goodbye(&self) {
        let session = BotSession { status: BotStatus::BotTerminating as i32, ..self.state.clone() };
        if let Err(status) = self.bots.update(session, Duration::from_secs(4)).await {
            tracing::debug!(slot = self.slot.number, error = self.bots.tell(&status), "failed to close the session");
        }
    }

    /// Records a failed call. Returns how long to wait.
    fn failed(&mut self, status: &Status) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let reason = self.bots.tell(status);
        tracing::debug!(slot = self.slot.number, reason, "a call failed");
        if self.told != Some(false) {
            self.told = Some(false);
            self.notes.note(WorkerNote::Disconnected { slot: self.slot.number, reason });
        }
        BACKOFF.pause(self.failures)
    }
}

/// Returns whether the engine no longer knows the session.
fn is_lost(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition | Code::DataLoss | Code::Aborted
    )
}
