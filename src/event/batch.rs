//! Lines of output that a reader takes together. They cost a fraction of as many events.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{BuildEvent, StdStream};

/// What a reader gets next: see [`EventStream::next_batch`](super::EventStream::next_batch).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum EventBatch<'a> {
    /// An event.
    Event(BuildEvent),
    /// Consecutive `step_log` events with whole lines.
    Lines(LogLines<'a>),
}

/// Whole lines that arrived together: as many [`BuildEvent::StepLog`]s that differ only in `seq` and `line`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogLines<'a> {
    /// Position of the first line in the stream. That of each other line is one more than that of the line
    /// before.
    pub seq: u64,
    /// The step.
    pub step_id: Uuid,
    /// The stream.
    pub stream: StdStream,
    /// When the lines arrived.
    pub ts: DateTime<Utc>,
    /// The attempt that wrote them.
    pub attempt: u32,
    /// The number of lines; at least one.
    pub count: u64,
    /// The lines with their ends, `\n` or `\r\n`.
    pub text: Cow<'a, str>,
}

impl LogLines<'_> {
    /// Returns the lines without their ends.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        // As `str::lines`, but faster.
        let mut start = 0;
        memchr::memchr_iter(b'\n', self.text.as_bytes()).map(move |end| {
            let line = &self.text[start..end];
            start = end + 1;
            line.strip_suffix('\r').unwrap_or(line)
        })
    }

    /// Returns the events that these lines stand for.
    pub fn events(&self) -> impl Iterator<Item = BuildEvent> {
        let &Self { seq, step_id, stream, ts, attempt, .. } = self;
        self.lines().zip(seq..).map(move |(line, seq)| BuildEvent::StepLog {
            seq,
            step_id,
            stream,
            line: line.to_owned(),
            ts,
            attempt,
            partial: false,
        })
    }
}
