//! The state shared by writer, bus and readers of a run: the data of the next flush, the attempts that have
//! logs, and the readers.
//!
//! Locks are taken in the order attempts, one attempt, pending; none is held across an `await`.

use std::{
    fs::File,
    io,
    sync::{Arc, atomic::AtomicBool},
};

use tokio::{sync::Notify, time::Instant};

use super::{attempt::Attempts, logs::RunFiles, mask::Masker, record::Record, table::RunTable, wake::Published};
use crate::sync::Mutex;

/// The state shared by writer, bus and readers of one run. The run's temporary directory is removed with it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) run: Arc<RunTable>,
    pub(super) masker: Option<Masker>,
    /// The clock for the times of output, because the wall clock may jump.
    pub(super) started: Instant,
    pub(super) attempts: Mutex<Attempts>,
    pub(super) pending: Mutex<Pending>,
    /// Notified when `pending` was changed by anyone other than the dispatcher.
    pub(super) dirty: Notify,
    pub(super) journal: Arc<File>,
    /// The offset of the journal's first record, in bytes.
    pub(super) first_record: u64,
    pub(super) published: Published,
    /// Whether readers want to know what the run waits for.
    pub(super) wants_progress: AtomicBool,
    /// Whether an ignored call of `output` was reported.
    pub(super) has_warned: AtomicBool,
    /// The last field, so that files are closed before their directory is removed.
    pub(super) files: RunFiles,
}

impl Shared {
    /// Returns the time since the start of the run, in milliseconds.
    pub(super) fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Appends what others than the dispatcher record, if the attempts are in the state that `is_open` wants.
    /// `record` gets the time. The lock on the attempts is held until the record is pending, so that the end
    /// of the attempt, or of the build, comes after it.
    pub(super) fn append<'r>(&self, is_open: impl FnOnce(&Attempts) -> bool, record: impl FnOnce(u64) -> Record<'r>) {
        let attempts = self.attempts.lock();
        if !is_open(&attempts) {
            return;
        }
        let mut pending = self.pending.lock();
        pending.push(&record(self.elapsed_ms()));
        let was_dirty = std::mem::replace(&mut pending.is_dirty, true);
        drop((pending, attempts));
        if !was_dirty {
            self.dirty.notify_one();
        }
    }
}

/// The data of the next flush.
#[derive(Debug, Default)]
pub(super) struct Pending {
    buffer: Vec<u8>,
    /// The newest output. It is not in the buffer yet, because more output of the same range may follow.
    range: Option<OutputRange>,
    /// Whether output, or a failure to record it, waits for the dispatcher.
    pub(super) is_dirty: bool,
    pub(super) failure: Option<Failure>,
}

/// Bytes of a log that arrived together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutputRange {
    pub(super) at_ms: u64,
    pub(super) step: u32,
    pub(super) attempt: u32,
    pub(super) stream: u8,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Pending {
    /// Appends a record to the pending data.
    pub(super) fn push(&mut self, record: &Record<'_>) {
        self.settle();
        self.encode(record);
    }

    /// Appends output to the pending data. Output that arrives in the same millisecond becomes one range.
    pub(super) fn push_output(&mut self, range: OutputRange) {
        self.is_dirty = true;
        if let Some(last) = &mut self.range {
            let continued = OutputRange { offset: last.offset + last.len, len: range.len, ..*last };
            if continued == range {
                last.len += range.len;
                return;
            }
        }
        self.settle();
        self.range = Some(range);
    }

    /// Swaps the pending data with `empty`.
    pub(super) fn take(&mut self, empty: &mut Vec<u8>) {
        self.settle();
        self.is_dirty = false;
        std::mem::swap(&mut self.buffer, empty);
    }

    /// Stores the first failure for the dispatcher.
    pub(super) fn fail(&mut self, doing: &str, error: &io::Error) {
        self.is_dirty = true;
        self.failure.get_or_insert_with(|| Failure::new(doing, error));
    }

    fn settle(&mut self) {
        if let Some(OutputRange { at_ms, step, attempt, stream, offset, len }) = self.range.take() {
            self.encode(&Record::Output { at_ms, step, attempt, stream, offset, len });
        }
    }

    fn encode(&mut self, record: &Record<'_>) {
        if let Err(error) = record.append_to(&mut self.buffer) {
            self.fail("encode an event", &io::Error::new(io::ErrorKind::InvalidData, error));
        }
    }
}

/// An I/O error that can be reported more than once.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    kind: io::ErrorKind,
    message: String,
}

impl Failure {
    /// Returns the failure; `doing` completes "failed to ...".
    pub(super) fn new(doing: &str, error: &io::Error) -> Self {
        Self { kind: error.kind(), message: format!("failed to {doing}: {error}") }
    }

    pub(super) fn to_error(&self) -> io::Error {
        io::Error::new(self.kind, self.message.clone())
    }
}
