//! The runners' handle, which receives output.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    StdStream,
    attempt::{AttemptLog, Attempts},
    connections::encode_connection,
    mask::Held,
    record::{Record, clip},
    shared::Shared,
};
use crate::{
    model::{Connection, ShadowVerdict},
    sync::Mutex,
};

/// The runners' handle, which receives output. It is cheap to clone, and can be used from any thread.
#[derive(Debug, Clone)]
pub struct EventBus {
    pub(super) shared: Arc<Shared>,
    pub(super) attempt: u32,
}

impl EventBus {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, attempt: 1 }
    }

    /// Appends `bytes` of a step's output, with secrets masked. Chunks may end anywhere, also inside a line,
    /// a character or a secret. Errors are stored for the dispatcher, which ends the build. Output of an
    /// attempt that has ended, or of a step that is not in this run, is ignored with a single warning.
    ///
    /// # Cancel safety
    /// Either all bytes are written, or none.
    pub async fn output(&self, step_id: Uuid, stream: StdStream, bytes: &[u8]) {
        self.write(step_id, stream, bytes, self.shared.elapsed_ms());
    }

    /// Does the same as [`output`](Self::output) for output that was written at another time, on another
    /// machine.
    pub(crate) fn output_at(&self, step_id: Uuid, stream: StdStream, bytes: &[u8], at: DateTime<Utc>) {
        let since_start = (at - self.shared.run.started_at).num_milliseconds();
        self.write(step_id, stream, bytes, u64::try_from(since_start).unwrap_or_default());
    }

    fn write(&self, step_id: Uuid, stream: StdStream, bytes: &[u8], at_ms: u64) {
        if let Some(log) = self.log(step_id) {
            log.lock().write(&self.shared, stream, bytes, at_ms);
        }
    }

    /// Returns the log of this attempt. Warns once if there is none.
    fn log(&self, step_id: Uuid) -> Option<Arc<Mutex<AttemptLog>>> {
        let step = self.shared.run.step_index(step_id);
        let log = step.and_then(|step| self.shared.attempts.lock().log(&self.shared.files, step.0, self.attempt));
        if log.is_none() && !self.shared.has_warned.swap(true, Relaxed) {
            tracing::warn!(%step_id, attempt = self.attempt, "ignoring output that belongs to no running attempt");
        }
        log
    }

    /// Returns what is decided of a stream's next bytes, with secrets masked. The rest is kept in `held`, or
    /// follows at once if the stream `is_over`. For streams that are cut or joined with others before they
    /// are recorded by [`lines_beside`](Self::lines_beside).
    pub(crate) fn masked<'b>(&self, held: &mut Held, bytes: &'b [u8], is_over: bool) -> Cow<'b, [u8]> {
        let Some(masker) = &self.shared.masker else { return Cow::Borrowed(bytes) };
        let mut masked = Vec::with_capacity(bytes.len());
        masker.push(held, bytes, &mut masked);
        if is_over {
            masker.finish(held, &mut masked);
        }
        Cow::Owned(masked)
    }

    /// Returns whether a text contains no secret.
    pub(crate) fn has_no_secret(&self, text: &str) -> bool {
        matches!(self.shared.mask_text(text), Cow::Borrowed(_))
    }

    /// Returns a text with secrets masked.
    pub(crate) fn masked_text<'b>(&self, text: &'b str) -> Cow<'b, str> {
        self.shared.mask_text(text)
    }

    /// Appends whole lines beside the output of a step's command. Secrets must be [masked](Self::masked)
    /// already: the bytes that masking holds back of the command's output stay what they are.
    ///
    /// They start on a new line, even if the last line of the command is not complete yet.
    pub(crate) fn lines_beside(&self, step_id: Uuid, stream: StdStream, lines: &[u8]) {
        if let Some(log) = self.log(step_id) {
            log.lock().write_beside(&self.shared, stream, lines, self.shared.elapsed_ms());
        }
    }

    /// Records a connection that a step made and that has ended, with secrets in names masked. A connection
    /// of an attempt that has ended, or of a step that is not in this run, is ignored.
    pub fn connection(&self, step_id: Uuid, connection: &Connection) {
        let shared = &*self.shared;
        let Some(step) = shared.run.step_index(step_id) else { return };
        let host = connection.host.as_deref().map(|host| shared.mask_text(host));
        let reason = connection.reason.as_deref().map(|reason| shared.mask_text(reason));
        let fields = encode_connection(connection, (host.as_deref(), reason.as_deref()));
        let (step, attempt) = (step.0, self.attempt);
        let is_open = |attempts: &Attempts| attempts.is_open(step, attempt);
        shared.append(is_open, |at_ms| Record::Connection { at_ms, step, attempt, trailing: &fields });
    }

    /// Records what came of a look-up in shadow mode, with secrets masked. That of an attempt that has ended,
    /// or of a step that is not in this run, is ignored.
    pub fn shadow(&self, step_id: Uuid, verdict: &ShadowVerdict) {
        let shared = &*self.shared;
        let Some(step) = shared.run.step_index(step_id) else { return };
        let masked = |text: &Option<String>| text.as_deref().map(|text| shared.mask_text(text).into_owned());
        let (miss, difference) = (masked(&verdict.miss), masked(&verdict.difference));
        // A path may contain the end of a line.
        let reasons: Vec<String> = verdict.reasons.iter().map(|reason| reason.replace('\n', "\\n")).collect();
        let reasons = shared.mask_text(&reasons.join("\n")).into_owned();
        let (step, attempt) = (step.0, self.attempt);
        let is_open = |attempts: &Attempts| attempts.is_open(step, attempt);
        shared.append(is_open, |at_ms| Record::StepShadow {
            at_ms,
            step,
            attempt,
            found: verdict.found,
            miss: miss.as_deref().map(clip),
            difference: difference.as_deref().map(clip),
            reasons: clip(&reasons),
        });
    }

    /// Returns this bus for one attempt of a step. The executor calls it.
    #[must_use]
    pub fn for_attempt(&self, attempt: u32) -> Self {
        Self { shared: self.shared.clone(), attempt }
    }
}
