//! The dispatcher's handle.

use std::{borrow::Cow, io, path::PathBuf, sync::Arc};

use super::{
    EventStream, StateEvent, StepEndDetails,
    journal::Journal,
    record::{Record, build_status_code, clip, miss_reason_code, step_status_code},
    shared::{Pending, Shared},
    trailing::{Refinement, encode_end, encode_retry},
};
use crate::model::{ArtifactRef, StepIndex, StepStatus};

/// Returns whether an error means that a disk or a quota is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The dispatcher's handle, the only emitter of state events. Dropping it ends the stream, with or without a
/// `build_end`.
#[derive(Debug)]
pub struct EventWriter {
    shared: Arc<Shared>,
    journal: Journal,
    /// The buffer of the last flush, kept for reuse.
    spare: Vec<u8>,
}

impl EventWriter {
    pub(super) fn new(shared: Arc<Shared>, journal: Journal) -> Self {
        Self { shared, journal, spare: Vec::new() }
    }

    /// Appends an event to the buffer. `at_ms` is milliseconds since the start of the run. Texts are masked.
    ///
    /// An attempt's output comes before its `StepRetry` or `StepEnd`, and is ignored afterwards. All output
    /// is ignored after `BuildEnd`.
    pub fn emit(&mut self, at_ms: u64, event: StateEvent) {
        match &event {
            StateEvent::StepRetry { step, attempt, .. } => self.end_attempts(step.0, *attempt),
            StateEvent::StepEnd { step, .. } => self.end_attempts(step.0, u32::MAX),
            StateEvent::BuildEnd { .. } => self.end_all_attempts(),
            _ => {}
        }
        let mask = |text| self.shared.mask_text(text);
        let mut pending = self.shared.pending.lock();
        match event {
            StateEvent::StepStart { step, attempt } => {
                pending.push(&Record::StepStart { at_ms, step: step.0, attempt });
            }
            StateEvent::StepEnd {
                step,
                attempt,
                status,
                exit_code,
                duration_ms,
                snapshot,
                message,
                artifacts,
                details,
            } => {
                let snapshot = snapshot.as_ref().map(|snapshot| mask(&snapshot.0));
                let message = message.as_deref().map(mask);
                let recorded = details.allowed.filter(|_| status == StepStatus::FailedAllowed).unwrap_or(status);
                let trailing = self.shared.trailing_of_end(status, &artifacts, details);
                pending.push(&Record::StepEnd {
                    at_ms,
                    step: step.0,
                    attempt,
                    status: step_status_code(recorded),
                    exit_code,
                    duration_ms,
                    snapshot: snapshot.as_deref().map(clip),
                    message: message.as_deref().map(clip),
                    trailing: &trailing,
                });
            }
            rare => self.push_rare(&mut pending, at_ms, rare),
        }
    }

    /// Records an event that a step which just passes does not have. Apart from [`emit`](Self::emit),
    /// so that the code that runs for each step fits the processor's instruction cache.
    #[inline(never)]
    fn push_rare(&self, pending: &mut Pending, at_ms: u64, event: StateEvent) {
        let mask = |text| self.shared.mask_text(text);
        match event {
            StateEvent::StepRetry { step, attempt, backoff_ms, message, exit_code } => {
                let (message, step) = (mask(&message), step.0);
                let (message, trailing) = (clip(&message), &*encode_retry(exit_code));
                pending.push(&Record::StepRetry { at_ms, step, attempt, backoff_ms, message, trailing });
            }
            StateEvent::StepCacheHit { step, tag } => {
                pending.push(&Record::StepCacheHit { at_ms, step: step.0, tag: clip(&mask(&tag)) });
            }
            StateEvent::StepCacheMiss { step, reason, message } => {
                let message = message.as_deref().map(mask);
                let (reason, message) = (miss_reason_code(reason), message.as_deref().map(clip));
                pending.push(&Record::StepCacheMiss { at_ms, step: step.0, reason, message });
            }
            StateEvent::ChainFailed { step, exit_code, message } => {
                let message = mask(&message);
                pending.push(&Record::ChainFailed { at_ms, step: step.0, exit_code, message: clip(&message) });
            }
            StateEvent::BuildEnd { status, duration_ms } => {
                pending.push(&Record::BuildEnd { at_ms, status: build_status_code(status), duration_ms });
            }
            // Recorded by `emit`.
            StateEvent::StepStart { .. } | StateEvent::StepEnd { .. } => {}
        }
    }

    /// Ends the output of an attempt, and writes the bytes that masking held back. Afterwards the file at
    /// [`log_path`](Self::log_path) is complete.
    pub(crate) fn close_log(&self, step: StepIndex, attempt: u32) {
        self.end_attempts(step.0, attempt);
    }

    /// Returns `text` without secrets.
    pub(crate) fn masked_text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.shared.mask_text(text)
    }

    /// Returns the path of an attempt's log, which exists if the attempt printed anything.
    pub(crate) fn log_path(&self, step: StepIndex, attempt: u32) -> PathBuf {
        self.shared.files.log_path(step.0, attempt)
    }

    /// Returns the run's directory.
    pub(crate) fn dir(&self) -> PathBuf {
        self.shared.files.dir().to_owned()
    }

    /// Writes the buffer, which includes the ranges of output since the last flush, with one `write`, then
    /// wakes readers. An empty flush has almost no cost.
    ///
    /// # Errors
    /// Returns an error if this write or an earlier one, including writes of a step's output, failed: the
    /// build can no longer be recorded. Every later flush returns the error again. If only output failed,
    /// state events are still written.
    pub fn flush(&mut self) -> io::Result<()> {
        let failure = {
            let mut pending = self.shared.pending.lock();
            self.spare.clear();
            pending.take(&mut self.spare);
            pending.failure.clone()
        };
        if !self.spare.is_empty() {
            self.journal.append(&self.spare)?;
            self.shared.published.advance(self.journal.len());
        }
        match failure {
            Some(failure) => Err(failure.to_error()),
            None => Ok(()),
        }
    }

    /// Waits until output, or a failure to record it, needs a flush.
    ///
    /// # Cancel safety
    /// If this is cancelled, nothing is lost.
    pub async fn dirty(&self) {
        while !self.shared.pending.lock().is_dirty {
            self.shared.dirty.notified().await;
        }
    }

    /// Returns a new reader of the whole stream from its start.
    #[must_use]
    pub fn subscribe(&self) -> EventStream {
        EventStream::of_journal(self.shared.clone())
    }

    fn end_all_attempts(&self) {
        let logs = self.shared.attempts.lock().end_all();
        logs.for_each(|log| log.lock().close(&self.shared));
    }

    fn end_attempts(&self, step: u32, attempt: u32) {
        loop {
            let log = self.shared.attempts.lock().end(step, attempt);
            match log {
                Some(log) => log.lock().close(&self.shared),
                None => break,
            }
        }
    }
}

impl Drop for EventWriter {
    fn drop(&mut self) {
        self.end_all_attempts();
        if let Err(error) = self.flush() {
            // The outcome has reported this error already.
            if is_full(&error) {
                tracing::debug!(%error, "failed to write the last events of the build");
            } else {
                tracing::error!(%error, "failed to write the last events of the build");
            }
        }
        self.shared.published.close();
    }
}

impl Shared {
    /// Encodes the fields of a step's end that only some steps have, with secrets masked.
    fn trailing_of_end(&self, status: StepStatus, artifacts: &[ArtifactRef], details: StepEndDetails) -> Vec<u8> {
        let StepEndDetails { usage, mut tests, .. } = details;
        let refinement = Refinement::of(status);
        if artifacts.is_empty() && refinement.is_none() && usage.is_none() && tests.is_none() {
            return Vec::new();
        }
        let mask = |text| self.mask_text(text);
        let artifacts: Vec<_> = artifacts.iter().map(|it| (mask(&it.key), mask(&it.mime), it.size_bytes)).collect();
        let artifacts = artifacts.iter().map(|(key, mime, size)| (&**key, &**mime, *size));
        for failure in tests.iter_mut().flat_map(|tests| &mut tests.failures) {
            failure.name = self.mask_text(&failure.name).into_owned();
            failure.message = self.mask_text(&failure.message).into_owned();
        }
        encode_end(artifacts, (refinement, usage, tests.as_deref()))
    }

    /// Returns `text` without secrets.
    pub(super) fn mask_text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match &self.masker {
            Some(masker) => masker.mask_text(text),
            None => Cow::Borrowed(text),
        }
    }
}
