//! The output of one attempt: masked, appended to its log, and added to the journal's next flush as a range.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    StdStream,
    logs::{LogWriter, RunFiles},
    mask::Held,
    record::stream_code,
    shared::{OutputRange, Shared},
};
use crate::sync::Mutex;

/// The attempts that have a log, and those that may no longer have one.
#[derive(Debug)]
pub(super) struct Attempts {
    /// By step: the last attempt that ended, or [`u32::MAX`] if the step has ended.
    ended: Vec<u32>,
    open: BTreeMap<(u32, u32), Arc<Mutex<AttemptLog>>>,
    is_over: bool,
}

impl Attempts {
    pub(super) fn new(steps: usize) -> Self {
        Self { ended: vec![0; steps], open: BTreeMap::new(), is_over: false }
    }

    /// Returns the log of an attempt, and makes it at the first output. Returns `None` if the attempt has
    /// ended, or if there is no such step.
    pub(super) fn log(&mut self, files: &RunFiles, step: u32, attempt: u32) -> Option<Arc<Mutex<AttemptLog>>> {
        if self.is_over || *self.ended.get(step as usize)? >= attempt {
            return None;
        }
        let log = self.open.entry((step, attempt)).or_insert_with(|| {
            Arc::new(Mutex::new(AttemptLog {
                step,
                attempt,
                log: files.log(step, attempt),
                held: Default::default(),
                is_in_line: [false; 2],
                is_closed: false,
            }))
        });
        Some(log.clone())
    }

    /// Returns whether an attempt may still have output.
    pub(super) fn is_open(&self, step: u32, attempt: u32) -> bool {
        !self.is_over && self.ended.get(step as usize).is_some_and(|ended| *ended < attempt)
    }

    /// Returns whether the build has not ended.
    pub(super) fn is_running(&self) -> bool {
        !self.is_over
    }

    /// Accepts no more output of `step`'s attempts up to `attempt`. Returns one of the logs that must be
    /// closed for that, or `None`. The caller calls again until it is `None`.
    pub(super) fn end(&mut self, step: u32, attempt: u32) -> Option<Arc<Mutex<AttemptLog>>> {
        let ended = self.ended.get_mut(step as usize)?;
        *ended = (*ended).max(attempt);
        if self.open.is_empty() {
            return None;
        }
        let (&key, _) = self.open.range((step, 0)..=(step, attempt)).next()?;
        self.open.remove(&key)
    }

    /// Accepts no more output at all, because there are no more flushes. Returns the logs that must be closed
    /// for that.
    pub(super) fn end_all(&mut self) -> impl Iterator<Item = Arc<Mutex<AttemptLog>>> + use<> {
        self.is_over = true;
        std::mem::take(&mut self.open).into_values()
    }
}

/// The log of one attempt, and the bytes of each of its streams that masking holds back.
#[derive(Debug)]
pub(super) struct AttemptLog {
    step: u32,
    attempt: u32,
    log: LogWriter,
    held: [Held; 2],
    /// Whether the last line of each stream is unfinished.
    is_in_line: [bool; 2],
    is_closed: bool,
}

impl AttemptLog {
    /// Appends a chunk that was written `at_ms`. After [`close`](Self::close) it is ignored, because the
    /// attempt's end is in the journal already.
    pub(super) fn write(&mut self, shared: &Shared, stream: StdStream, bytes: &[u8], at_ms: u64) {
        if self.is_closed {
            return;
        }
        match &shared.masker {
            None => self.append(shared, stream, bytes, at_ms),
            Some(masker) => {
                let mut masked = Vec::with_capacity(bytes.len());
                masker.push(&mut self.held[usize::from(stream_code(stream))], bytes, &mut masked);
                self.append(shared, stream, &masked, at_ms);
            }
        }
    }

    /// Appends whole lines that are not the command's, and that are masked already.
    pub(super) fn write_beside(&mut self, shared: &Shared, stream: StdStream, lines: &[u8], at_ms: u64) {
        if self.is_closed {
            return;
        }
        if self.is_in_line[usize::from(stream_code(stream))] {
            self.append(shared, stream, b"\n", at_ms);
        }
        self.append(shared, stream, lines, at_ms);
    }

    /// Writes the bytes that were held back. No more output follows.
    pub(super) fn close(&mut self, shared: &Shared) {
        self.is_closed = true;
        let Some(masker) = &shared.masker else { return };
        for stream in [StdStream::Stdout, StdStream::Stderr] {
            let mut masked = Vec::new();
            masker.finish(&mut self.held[usize::from(stream_code(stream))], &mut masked);
            self.append(shared, stream, &masked, shared.elapsed_ms());
        }
    }

    fn append(&mut self, shared: &Shared, stream: StdStream, bytes: &[u8], at_ms: u64) {
        let Some(last) = bytes.last() else { return };
        self.is_in_line[usize::from(stream_code(stream))] = *last != b'\n';
        let appended = self.log.append(bytes);
        let mut pending = shared.pending.lock();
        let was_dirty = pending.is_dirty;
        match appended {
            Ok(offset) => pending.push_output(OutputRange {
                at_ms,
                step: self.step,
                attempt: self.attempt,
                stream: stream_code(stream),
                offset,
                len: bytes.len() as u64,
            }),
            Err(error) => pending.fail(&format!("write a step's output to {}", self.log.path().display()), &error),
        }
        drop(pending);
        if !was_dirty {
            shared.dirty.notify_one();
        }
    }
}
