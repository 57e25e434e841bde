//! The runners' handle, which receives output.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{StdStream, connections::ConnectionFields, record::Record, shared::Shared};
use crate::model::Connection;

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
        let log = self
            .shared
            .run
            .step_index(step_id)
            .and_then(|step| self.shared.attempts.lock().log(&self.shared.files, step.0, self.attempt));
        match log {
            Some(log) => log.lock().write(&self.shared, stream, bytes, at_ms),
            None if self.shared.has_warned.swap(true, Relaxed) => {}
            None => {
                tracing::warn!(%step_id, attempt = self.attempt, "ignoring output that belongs to no running attempt")
            }
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
