//! Follows the output of one job, over as many connections as that takes.
//!
//! ```text
//! Connecting -- 200 --> Streaming -- done --> complete
//!   ^   ^  \               |
//!   |   |   401: new token |  broke, silent, not understood
//!   |   +------------------+
//!   +--- pause -------------  too many failures after the job's end --> incomplete, with a reason
//! ```
//!
//! Every connection begins with the history. Parts up to the highest position that was written are repeats.
//! Only if a job runs again, its log may begin anew: then even the history ends below that position.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use uuid::Uuid;

use super::{
    client::{Pace, Service},
    error::ServiceError,
    sse::{Chunk, LogBreak, LogEvent, LogStream},
    tokens::LogTokens,
};
use crate::{backoff::Backoff, event::EventBus, sync::Mutex};

/// How many failures in a row end the log of a job that has ended.
const MAX_FAILURES: u32 = 6;
/// How many tokens in a row the service may refuse.
const MAX_REFUSALS: u32 = 3;
/// How often in a row the service may not know the log of a job that has ended.
const MAX_MISSES: u32 = 2;
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How long the log of a running job may be silent before the connection is replaced. It doubles twice.
const SILENCE: Duration = Duration::from_secs(300);

/// The highest position of a job's output that was written. It outlives the job's attempts.
#[derive(Debug, Default)]
pub(super) struct Written(Mutex<Option<i64>>);

impl Written {
    /// Returns whether a position is above all others, and then notes it.
    fn advance(&self, seq: i64) -> bool {
        let mut last = self.0.lock();
        let is_new = last.is_none_or(|last| seq > last);
        if is_new {
            *last = Some(seq);
        }
        is_new
    }

    /// Forgets the position if the history ends below it.
    fn begin_anew_below(&self, end: Option<i64>) {
        let mut last = self.0.lock();
        if end < *last {
            *last = None;
        }
    }
}

/// The output of one attempt of a job.
#[derive(Debug)]
pub(super) struct JobLog {
    pub(super) service: Service,
    pub(super) job: Uuid,
    /// The step's id in the journal.
    pub(super) step: Uuid,
    pub(super) tokens: Arc<LogTokens>,
    /// Receives the output of this attempt.
    pub(super) bus: EventBus,
    pub(super) written: Arc<Written>,
    /// Whether an earlier attempt of this job had output, too.
    pub(super) is_continued: bool,
    /// Whether the job has ended.
    pub(super) has_ended: watch::Receiver<bool>,
    /// Limits the logs that are open at once.
    pub(super) slots: Arc<Semaphore>,
}

/// The progress of following a log.
#[derive(Debug, Default)]
struct Progress {
    /// Failures since the last new output.
    failures: u32,
    refusals: u32,
    misses: u32,
    /// The last event that was not understood.
    malformed: Option<String>,
    silences: u32,
    refused_token: Option<Arc<str>>,
}

impl JobLog {
    /// Writes the job's output until it is complete. Returns the reason if it cannot be completed.
    pub(super) async fn follow(mut self) -> Option<String> {
        let mut progress = Progress::default();
        loop {
            let why = match self.connect(&mut progress).await {
                Ok(()) => return None,
                Err(Failed::Again) => continue,
                Err(Failed::Broken(why)) => why,
                Err(Failed::Lost(why)) => return Some(why),
            };
            progress.failures += 1;
            tracing::debug!(job = %self.job, failures = progress.failures, why, "the log of a job broke off");
            if *self.has_ended.borrow() && progress.failures >= MAX_FAILURES {
                return Some(why);
            }
            let Pace { log_retry, .. } = self.service.pace;
            let pause = Backoff { first: log_retry, longest: LONGEST_PAUSE }.pause(progress.failures);
            tokio::time::sleep(pause).await;
        }
    }

    /// Opens the log once, and writes it until its end.
    async fn connect(&mut self, progress: &mut Progress) -> Result<(), Failed> {
        let slots = Arc::clone(&self.slots);
        // The semaphore is never closed.
        let _slot = slots.acquire().await;
        let token = self.tokens.get(progress.refused_token.as_deref()).await;
        let token = token.map_err(|error| match error {
            ServiceError::Unauthorized => Failed::Lost("the service does not accept the token".into()),
            error => Failed::Broken(error.to_string()),
        })?;
        match self.service.open_log(self.job, &token).await {
            Ok(stream) => {
                (progress.refusals, progress.misses) = (0, 0);
                self.read(stream, progress).await
            }
            Err(ServiceError::Unauthorized) => {
                progress.refused_token = Some(token);
                progress.refusals += 1;
                match progress.refusals {
                    MAX_REFUSALS.. => Err(Failed::Lost("the service refuses its own log tokens".into())),
                    _ => Err(Failed::Again),
                }
            }
            Err(ServiceError::NotFound { .. }) => {
                progress.misses += u32::from(*self.has_ended.borrow());
                let why = "the service has no log of it".to_owned();
                Err(if progress.misses >= MAX_MISSES { Failed::Lost(why) } else { Failed::Broken(why) })
            }
            Err(error) => Err(Failed::Broken(error.to_string())),
        }
    }

    async fn read(&mut self, mut stream: LogStream, progress: &mut Progress) -> Result<(), Failed> {
        let mut heard = Instant::now();
        loop {
            let has_ended = *self.has_ended.borrow_and_update();
            let patience = match has_ended {
                true => self.service.pace.log_end,
                false => SILENCE * (1 << progress.silences.min(2)),
            };
            let event = tokio::select! {
                event = stream.next() => event,
                () = tokio::time::sleep_until(heard + patience) => {
                    progress.silences += u32::from(!has_ended);
                    return Err(Failed::Broken("the stream is silent".into()));
                }
                // An error means that the watch is over, and then so is this.
                Ok(()) = self.has_ended.changed() => {
                    heard = Instant::now();
                    continue;
                }
            };
            heard = Instant::now();
            match event {
                Ok(LogEvent::Output(chunks)) => self.write(chunks, progress),
                Ok(LogEvent::Done) => return Ok(()),
                Ok(LogEvent::Alive) => {}
                Err(LogBreak::Connection(why)) => return Err(Failed::Broken(why)),
                Err(LogBreak::Malformed(why)) => {
                    let is_again = progress.malformed.replace(why.clone()).is_some_and(|before| before == why);
                    return Err(if is_again { Failed::Lost(why) } else { Failed::Broken(why) });
                }
            }
        }
    }

    /// Writes what is new.
    fn write(&mut self, mut chunks: Vec<Chunk>, progress: &mut Progress) {
        chunks.sort_by_key(|chunk| chunk.seq);
        // The first that comes is the history.
        if std::mem::take(&mut self.is_continued) {
            self.written.begin_anew_below(chunks.last().map(|chunk| chunk.seq));
        }
        for chunk in chunks {
            if !self.written.advance(chunk.seq) {
                continue;
            }
            (progress.failures, progress.silences, progress.malformed) = (0, 0, None);
            let at = chunk.at().unwrap_or_else(chrono::Utc::now);
            self.bus.output_at(self.step, chunk.stream(), chunk.content.as_bytes(), at);
        }
    }
}

/// The end of one connection before the log was complete.
enum Failed {
    /// Connect again at once.
    Again,
    /// Connect again after a pause.
    Broken(String),
    /// Give up.
    Lost(String),
}
