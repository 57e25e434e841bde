//! Makes the events that readers see from a journal's records and the logs that they refer to.
//!
//! Every reader, live or later, has a cursor, so all of them see the same events under the same numbers. The
//! module knows neither how to wait nor who reads.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    io,
    ops::RangeInclusive,
    path::Path,
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Map;
use uuid::Uuid;

use super::{
    ActivityCount, BuildEvent, EVENT_SCHEMA_VERSION, JournalError, StdStream,
    activities::activity_of,
    batch::LogLines,
    connections::decode_connection,
    frames::Frames,
    lines::{Line, LineEnd, LineSplitter},
    logs::{LogReader, journal_path},
    record::{CONNECTION_KIND, PROGRESS_KIND, Record, build_status_of, miss_reason_of, step_status_of, stream_of},
    shared::OutputRange,
    table::RunTable,
    trailing::{EndFields, decode_end, decode_retry},
};
use crate::model::{ShadowVerdict, StepIndex};

/// A position in a run's events.
#[derive(Debug)]
pub(super) struct Cursor {
    run: Arc<RunTable>,
    frames: Frames,
    logs: LogReader,
    phase: Phase,
    seq: u64,
    /// The time when the newest output arrived.
    last_at_ms: u64,
    /// The events of one record, after the first.
    ready: VecDeque<BuildEvent>,
    /// The range that is being split into lines, and the data that these lines have in common.
    range: Option<(OutputRange, LineOf)>,
    /// By step and attempt: the unfinished lines of stdout and stderr.
    lines: BTreeMap<(u32, u32), [LineSplitter; 2]>,
    /// The attempts whose log cannot be read. This is reported once per attempt.
    lost: BTreeSet<(u32, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    BuildStart,
    BuildAccepted,
    StepQueued(usize),
    Records,
    Ended,
    BrokenOff,
}

/// The result of advancing a cursor.
#[derive(Debug)]
pub(super) enum Next<T = BuildEvent> {
    Event(T),
    /// No event after a bounded amount of work: the caller must call again.
    Again,
    /// No more events are available yet; more may follow.
    Wait,
    /// The build's end was returned already.
    End,
}

impl<T> Next<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Next<U> {
        match self {
            Self::Event(event) => Next::Event(f(event)),
            Self::Again => Next::Again,
            Self::Wait => Next::Wait,
            Self::End => Next::End,
        }
    }
}

/// An event, or events that are lines.
#[derive(Debug)]
pub(super) enum EventOrLines {
    Event(BuildEvent),
    /// Lines, which [`Cursor::lines`] returns.
    Lines(Batch),
}

/// Whole lines of one range of output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    range: OutputRange,
    of: LineOf,
    seq: u64,
    count: u64,
}

impl Cursor {
    /// Returns a cursor before the first event of the run in `dir`, whose records begin at `first_record` of
    /// its journal.
    pub(super) fn new(run: Arc<RunTable>, dir: &Path, first_record: u64) -> Self {
        Self {
            run,
            frames: Frames::new(journal_path(dir), first_record),
            logs: LogReader::new(dir),
            phase: Phase::BuildStart,
            seq: 0,
            last_at_ms: 0,
            ready: VecDeque::new(),
            range: None,
            lines: BTreeMap::new(),
            lost: BTreeSet::new(),
        }
    }

    /// Returns the next event in the first `limit` bytes of `journal`.
    pub(super) fn next(&mut self, journal: &File, limit: u64) -> Result<Next, JournalError> {
        if let Some(event) = self.ready.pop_front() {
            return Ok(Next::Event(event));
        }
        match self.phase {
            Phase::BuildStart => {
                self.phase = Phase::BuildAccepted;
                Ok(Next::Event(BuildEvent::BuildStart {
                    seq: self.next_seq(),
                    schema_version: EVENT_SCHEMA_VERSION,
                    run_id: self.run.build.run_id,
                    plan: self.run.plan.clone(),
                    started_at: self.run.started_at,
                }))
            }
            Phase::BuildAccepted => {
                self.phase = Phase::StepQueued(0);
                let build = self.run.build.clone();
                Ok(Next::Event(BuildEvent::BuildAccepted {
                    seq: self.next_seq(),
                    build,
                    watch_url: self.run.watch_url.clone(),
                }))
            }
            Phase::StepQueued(step) => Ok(self.step_queued(step)),
            Phase::Records => match self.range {
                Some((range, of)) => Ok(self.next_line(range, of)),
                None => self.next_record(journal, limit),
            },
            Phase::Ended | Phase::BrokenOff => Ok(Next::End),
        }
    }

    /// Returns the next event as [`next`](Self::next) does, or as many whole lines as can be had at once.
    pub(super) fn next_batch(&mut self, journal: &File, limit: u64) -> Result<Next<EventOrLines>, JournalError> {
        if self.ready.is_empty()
            && self.phase == Phase::Records
            && let Some((range, of)) = self.range
            && let Some(batch) = self.whole_lines(range, of)
        {
            return Ok(Next::Event(EventOrLines::Lines(batch)));
        }
        Ok(self.next(journal, limit)?.map(EventOrLines::Event))
    }

    /// Returns the lines of the batch that was returned last.
    pub(super) fn lines(&self, batch: Batch) -> LogLines<'_> {
        let Batch { range: OutputRange { offset, len, .. }, of, seq, count } = batch;
        let LineOf { step_id, attempt, stream, ts } = of;
        let bytes = self.logs.seen(offset, len);
        // Many times as fast as `from_utf8_lossy` if everything is valid.
        let text = str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed);
        LogLines { seq, step_id, stream, ts, attempt, count, text }
    }

    /// Takes whole lines from `range`, the current range. Returns `None` if it begins inside a line, or if it
    /// has no line end that is read at once with its beginning. No line is longer than the maximum, because
    /// that is more than is read at once.
    fn whole_lines(&mut self, range: OutputRange, of: LineOf) -> Option<Batch> {
        let OutputRange { step, attempt, stream, offset, len, .. } = range;
        let splitters = self.lines.entry((step, attempt)).or_default();
        if len == 0 || self.lost.contains(&(step, attempt)) || !splitters[usize::from(stream)].is_at_line_start() {
            return None;
        }
        // An error occurs again, and is reported, when the range is read line by line.
        let bytes = self.logs.read(step, attempt, offset, len).ok()?;
        let bytes = &bytes[..=memchr::memrchr(b'\n', bytes)?];
        let (taken, count) = (bytes.len() as u64, memchr::memchr_iter(b'\n', bytes).count() as u64);
        let batch = Batch { range: OutputRange { len: taken, ..range }, of, seq: self.seq, count };
        self.seq += count;
        let rest = OutputRange { offset: offset + taken, len: len - taken, ..range };
        self.range = (rest.len > 0).then_some((rest, of));
        Some(batch)
    }

    /// Handles a run that ended without a build's end: the unfinished lines become events.
    pub(super) fn break_off(&mut self) {
        if self.phase == Phase::Records {
            self.phase = Phase::BrokenOff;
            self.finish_all_lines(self.last_at_ms);
        }
    }

    /// Returns whether the build's end was returned.
    pub(super) fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    fn step_queued(&mut self, step: usize) -> Next {
        let run = &*self.run;
        let index = StepIndex(u32::try_from(step).unwrap_or(u32::MAX));
        let (Some(key), Some(display_name), Some(chain_idx)) =
            (run.key(index), run.display_name(index), run.chain(index))
        else {
            self.phase = Phase::Records;
            return Next::Again;
        };
        let event = BuildEvent::StepQueued {
            seq: self.seq,
            step_id: run.step_id(index),
            key: key.clone(),
            chain_idx,
            parent_key: run.parent_key(index).cloned(),
            display_name: display_name.clone(),
        };
        self.phase = Phase::StepQueued(step + 1);
        self.seq += 1;
        Next::Event(event)
    }

    fn next_record(&mut self, journal: &File, limit: u64) -> Result<Next, JournalError> {
        let offset = self.frames.offset();
        let corrupt = |reason| JournalError::Corrupt { offset, reason };
        let Some(payload) = self.frames.next(journal, limit)? else { return Ok(Next::Wait) };
        let record = Record::decode(payload).map_err(|_| corrupt("a record cannot be decoded"))?;
        let seq = self.seq;
        let run = &self.run;
        let unknown_step = || corrupt("a record refers to an unknown step");
        let id_of = |step: u32| match StepIndex(step) {
            step if step.get() < run.len() => Ok(run.step_id(step)),
            _ => Err(unknown_step()),
        };
        let key_of = |step: u32| run.key(StepIndex(step)).cloned().ok_or_else(unknown_step);
        let event = match record {
            Record::Output { at_ms, step, attempt, stream, offset, len } => {
                let step_id = id_of(step)?;
                let name = stream_of(stream).ok_or_else(|| corrupt("a record refers to an unknown stream"))?;
                if offset.checked_add(len).is_none() {
                    return Err(corrupt("a range of output is too long"));
                }
                self.last_at_ms = self.last_at_ms.max(at_ms);
                let of = LineOf { step_id, attempt, stream: name, ts: timestamp(run, at_ms) };
                self.range = Some((OutputRange { at_ms, step, attempt, stream, offset, len }, of));
                return Ok(Next::Again);
            }
            Record::StepStart { step, attempt, .. } => {
                let step_id = id_of(step)?;
                let ground = run.ground(StepIndex(step)).ok_or_else(unknown_step)?;
                let runner = ground.runner.clone().ok_or_else(|| corrupt("a record refers to an unknown runner"))?;
                BuildEvent::StepStart { seq, step_id, runner, image: ground.image.clone(), attempt }
            }
            Record::StepRetry { at_ms, step, attempt, backoff_ms, message, trailing } => {
                let step_id = id_of(step)?;
                let message = message.into();
                let exit_code =
                    decode_retry(trailing).map_err(|_| corrupt("the fields of a retry cannot be decoded"))?;
                let seq = self.finish_attempts(step, attempt..=attempt, at_ms);
                return Ok(self.last(BuildEvent::StepRetry { seq, step_id, attempt, backoff_ms, message, exit_code }));
            }
            Record::StepCacheHit { step, tag, .. } => {
                BuildEvent::StepCacheHit { seq, step_id: id_of(step)?, key: key_of(step)?, tag: tag.into() }
            }
            Record::StepCacheMiss { step, reason, message, .. } => {
                let (step_id, key) = (id_of(step)?, key_of(step)?);
                let reason = miss_reason_of(reason).ok_or_else(|| corrupt("the reason for a miss is unknown"))?;
                let message = message.map(Into::into);
                BuildEvent::StepCacheMiss { seq, step_id, key, reason, message }
            }
            Record::StepEnd { at_ms, step, attempt, status, exit_code, duration_ms, snapshot, message, trailing } => {
                let step_id = id_of(step)?;
                let status = step_status_of(status).ok_or_else(|| corrupt("a step's status is unknown"))?;
                let (snapshot, message) = (snapshot.map(Into::into), message.map(Into::into));
                let fields =
                    decode_end(trailing).map_err(|_| corrupt("the fields of a step's end cannot be decoded"))?;
                let status = fields.refine(status);
                let EndFields { artifacts, usage, tests, .. } = fields;
                let tests = tests.map(Box::new);
                let seq = self.finish_attempts(step, 0..=u32::MAX, at_ms);
                return Ok(self.last(BuildEvent::StepEnd {
                    seq,
                    step_id,
                    exit_code,
                    duration_ms,
                    snapshot,
                    status,
                    attempt,
                    message,
                    artifacts,
                    usage,
                    tests,
                }));
            }
            Record::ChainFailed { at_ms, step, exit_code, message } => BuildEvent::ChainFailed {
                seq,
                chain_idx: run.chain(StepIndex(step)).ok_or_else(unknown_step)?,
                failed_step_id: id_of(step)?,
                failed_step_key: key_of(step)?,
                exit_code,
                message: message.into(),
                ts: timestamp(run, at_ms),
            },
            Record::BuildEnd { at_ms, status, duration_ms } => {
                let status = build_status_of(status).ok_or_else(|| corrupt("the build's status is unknown"))?;
                self.finish_all_lines(at_ms);
                self.phase = Phase::Ended;
                let seq = self.next_seq();
                return Ok(self.last(BuildEvent::BuildEnd { seq, exit_code: status.exit_code(), duration_ms, status }));
            }
            Record::Connection { at_ms, step, attempt, trailing } => {
                let step_id = id_of(step)?;
                let fields = decode_connection(trailing);
                match fields.map_err(|_| corrupt("the fields of a connection cannot be decoded"))? {
                    Some(connection) => {
                        let (ts, connection) = (timestamp(run, at_ms), Box::new(connection));
                        BuildEvent::Connection { seq, step_id, attempt, ts, connection }
                    }
                    None => unknown_record(CONNECTION_KIND, seq),
                }
            }
            Record::Progress { at_ms, step, activity, count } => {
                let step_id = step.map(id_of).transpose()?;
                match activity_of(activity) {
                    Some(activity) => {
                        let count = count.map(|(done, total)| ActivityCount::new(done, total));
                        BuildEvent::Progress { seq, step_id, ts: timestamp(run, at_ms), activity, count }
                    }
                    None => unknown_record(PROGRESS_KIND, seq),
                }
            }
            Record::StepShadow { step, attempt, found, miss, difference, reasons, .. } => {
                let (step_id, text) = (id_of(step)?, |text: &str| text.to_owned());
                let (miss, difference) = (miss.map(text), difference.map(text));
                let verdict = ShadowVerdict { found, miss, difference, reasons: reasons.lines().map(text).collect() };
                BuildEvent::StepShadow { seq, step_id, attempt, verdict: Box::new(verdict) }
            }
            Record::Unknown { kind } => unknown_record(kind, seq),
        };
        self.seq += 1;
        Ok(Next::Event(event))
    }

    /// Returns the next line of `range`, the current range.
    fn next_line(&mut self, range: OutputRange, of: LineOf) -> Next {
        let OutputRange { step, attempt, stream, offset, len, .. } = range;
        if len == 0 || self.lost.contains(&(step, attempt)) {
            self.range = None;
            return Next::Again;
        }
        let mut bytes = match self.logs.read(step, attempt, offset, len) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.range = None;
                self.lost.insert((step, attempt));
                let message = match error.kind() {
                    io::ErrorKind::NotFound => "the log was removed".into(),
                    io::ErrorKind::UnexpectedEof => "the log is truncated".into(),
                    io::ErrorKind::InvalidData => "the log is damaged".into(),
                    _ => format!("failed to read the log: {error}").into(),
                };
                let step_id = of.step_id;
                return Next::Event(BuildEvent::StepLogLost { seq: self.next_seq(), step_id, attempt, message });
            }
        };
        let before = bytes.len();
        let splitter = &mut self.lines.entry((step, attempt)).or_default()[usize::from(stream)];
        let line = splitter.next(&mut bytes);
        let used = (before - bytes.len()) as u64;
        let event = line.map(|line| {
            let event = of.event(self.seq, line);
            self.seq += 1;
            event
        });
        let rest = OutputRange { offset: offset + used, len: len - used, ..range };
        self.range = (rest.len > 0).then_some((rest, of));
        event.map_or(Next::Again, Next::Event)
    }

    /// Appends the unfinished lines of `step`'s attempts to `ready`, and forgets the attempts. Returns the
    /// number of the event that follows.
    fn finish_attempts(&mut self, step: u32, attempts: RangeInclusive<u32>, at_ms: u64) -> u64 {
        let bounds = (step, *attempts.start())..=(step, *attempts.end());
        while let Some((&key, _)) = self.lines.range(bounds.clone()).next() {
            self.finish_lines(key, at_ms);
        }
        while let Some(&key) = self.lost.range(bounds.clone()).next() {
            self.lost.remove(&key);
        }
        self.next_seq()
    }

    /// Returns `event` after the events in `ready`.
    fn last(&mut self, event: BuildEvent) -> Next {
        match self.ready.pop_front() {
            None => Next::Event(event),
            Some(earlier) => {
                self.ready.push_back(event);
                Next::Event(earlier)
            }
        }
    }

    fn finish_all_lines(&mut self, at_ms: u64) {
        while let Some((&key, _)) = self.lines.first_key_value() {
            self.finish_lines(key, at_ms);
        }
    }

    /// Appends the unfinished lines of an attempt's streams to `ready`.
    fn finish_lines(&mut self, (step, attempt): (u32, u32), at_ms: u64) {
        self.logs.close(step, attempt);
        let Some(splitters) = self.lines.remove(&(step, attempt)) else { return };
        let (step_id, ts) = (self.run.step_id(StepIndex(step)), timestamp(&self.run, at_ms));
        for (mut splitter, stream) in splitters.into_iter().zip([StdStream::Stdout, StdStream::Stderr]) {
            if let Some(line) = splitter.finish() {
                self.ready.push_back(LineOf { step_id, attempt, stream, ts }.event(self.seq, line));
                self.seq += 1;
            }
        }
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq - 1
    }
}

/// The origin of a line: the same for all lines of a range.
#[derive(Debug, Clone, Copy)]
struct LineOf {
    step_id: Uuid,
    attempt: u32,
    stream: StdStream,
    ts: DateTime<Utc>,
}

impl LineOf {
    fn event(self, seq: u64, line: Line<'_>) -> BuildEvent {
        let Self { step_id, attempt, stream, ts } = self;
        let partial = line.end == LineEnd::Cut;
        let line = match str::from_utf8(line.bytes) {
            Ok(line) => line.to_owned(),
            Err(_) => String::from_utf8_lossy(line.bytes).into_owned(),
        };
        BuildEvent::StepLog { seq, step_id, stream, line, ts, attempt, partial }
    }
}

/// Returns the event of a record of a newer version.
fn unknown_record(kind: u32, seq: u64) -> BuildEvent {
    let fields = [("kind", "unknown_record".into()), ("record", kind.into()), ("seq", seq.into())];
    BuildEvent::Unknown(Map::from_iter(fields.map(|(name, value)| (name.to_owned(), value))))
}

fn timestamp(run: &RunTable, at_ms: u64) -> DateTime<Utc> {
    let delta = i64::try_from(at_ms).ok().and_then(TimeDelta::try_milliseconds);
    delta.and_then(|delta| run.started_at.checked_add_signed(delta)).unwrap_or(run.started_at)
}
