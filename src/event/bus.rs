//! The runners' handle, which receives output.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    StdStream, attempt::AttemptLog, connections::ConnectionFields, mask::Held, record::Record, shared::Shared,
};
use crate::{model::Connection, sync::Mutex};

/// The runners' handle, which receives output. It is cheap to clone, and can be used from any thread.
#[derive(Debug, Clone)]
pub struct EventBus {
    shared: Arc<Shared>,
    attempt: u32,
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
        let fields = ConnectionFields::of(connection, (host.as_deref(), reason.as_deref()));
        // Held until the record is pending, so that the end of the attempt comes after it.
        let attempts = shared.attempts.lock();
        if !attempts.is_open(step.0, self.attempt) {
            return;
        }
        let mut pending = shared.pending.lock();
        let at_ms = shared.elapsed_ms();
        let was_dirty = pending.is_dirty;
        pending.push(&Record::Connection { at_ms, step: step.0, attempt: self.attempt, connection: fields });
        pending.is_dirty = true;
        drop((pending, attempts));
        if !was_dirty {
            shared.dirty.notify_one();
        }
    }

    /// Returns this bus for one attempt of a step. The executor calls it.
    #[must_use]
    pub fn for_attempt(&self, attempt: u32) -> Self {
        Self { shared: self.shared.clone(), attempt }
    }
}
