//! A run as one struct: what its journal has of its steps, without their output.

use std::{path::Path, sync::Arc};

use chrono::{DateTime, Utc};

use super::{
    JournalError, RunMeta, StepCommand,
    frames::Frames,
    logs::journal_path,
    record::{Record, build_status_of, step_status_of, stream_of},
    replay::{OpenJournal, records},
    trailing::{decode_end, decode_retry},
};
use crate::model::{ArtifactRef, BuildStatus, SnapshotRef, StdStream, StepIndex, StepStatus, StepUsage, TestResults};

/// What the journal has of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunRecord {
    /// The pipeline's name.
    pub pipeline: String,
    /// The start time. Times of steps are milliseconds since then.
    pub started_at: DateTime<Utc>,
    /// The result, and the time from the start to the end in milliseconds. `None` if the run has not ended,
    /// or if `hm` was killed.
    pub end: Option<(BuildStatus, u64)>,
    /// The steps, in the order of the plan.
    pub steps: Vec<StepRecord>,
}

/// The state of a step in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepRecord {
    /// The step's key.
    pub key: Arc<str>,
    /// The name that is displayed to users: the label, or the start of the command.
    pub display_name: Arc<str>,
    /// The runner's name.
    pub runner: Arc<str>,
    /// The image, if the step boots from one.
    pub image: Option<Arc<str>>,
    /// The command. Journals of earlier versions have none.
    pub command: Option<StepCommand>,
    /// The `builds_in` parent.
    pub builds_in: Option<StepIndex>,
    /// The other steps that it waits for. Journals of earlier versions have none.
    pub depends_on: Vec<StepIndex>,
    /// The names of its services. Journals of earlier versions have none.
    pub services: Vec<Arc<str>>,
    /// The result. `None` if it is not in the journal: the step still runs, or `hm` was killed.
    pub status: Option<StepStatus>,
    /// The exit code, as in [`BuildEvent::StepEnd`](super::BuildEvent::StepEnd).
    pub exit_code: Option<i32>,
    /// The snapshot that the step committed, or that was found in the cache.
    pub snapshot: Option<SnapshotRef>,
    /// The last attempt, from 1; 0 if none was started or the step has not ended.
    pub attempts: u32,
    /// When its first attempt started, in milliseconds since the start of the run. `None` if none did.
    pub started_ms: Option<u64>,
    /// When it ended, in milliseconds since the start of the run. `None` if it has not ended.
    pub ended_ms: Option<u64>,
    /// The time from the start of the first attempt to the step's end, in milliseconds. `None` if it has not
    /// ended.
    pub duration_ms: Option<u64>,
    /// The reason for the result, if the status alone does not show it.
    pub message: Option<Arc<str>>,
    /// The attempts whose command failed and that were followed by another, and their exit codes.
    pub failed_attempts: Vec<(u32, i32)>,
    /// The attempts that were started, in order.
    pub attempt_times: Vec<AttemptTimes>,
    /// Its artifacts, such as outputs.
    pub artifacts: Vec<ArtifactRef>,
    /// What its processes used of the machine, if that is known.
    pub usage: Option<StepUsage>,
    /// The results of its tests, if its outputs have some.
    pub tests: Option<Box<TestResults>>,
}

/// When an attempt of a step ran.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttemptTimes {
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// When it started, in milliseconds since the start of the run.
    pub started_ms: u64,
    /// When it ended, in milliseconds since the start of the run. `None` if it has not ended.
    pub ended_ms: Option<u64>,
    /// Why it was followed by another attempt, if it was.
    pub retry: Option<Arc<str>>,
}

/// A piece of a log: bytes that a step wrote to one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogPiece {
    /// The step.
    pub step: StepIndex,
    /// The attempt.
    pub attempt: u32,
    /// The stream.
    pub stream: StdStream,
    /// When it was written, in milliseconds since the start of the run.
    pub at_ms: u64,
    /// The offset of its first byte in the log of the attempt.
    pub offset: u64,
    /// Its length, in bytes.
    pub len: u64,
}

/// Returns what the journal in `dir` has of its run. Logs are not read. Unreadable parts of a truncated
/// journal are left out.
///
/// # Errors
/// Returns the same errors as [`open`](super::open).
pub fn run_record(dir: impl AsRef<Path>) -> Result<RunRecord, JournalError> {
    let dir = dir.as_ref();
    let journal = OpenJournal::open(dir)?;
    let mut frames = Frames::new(journal_path(dir), journal.first_record);
    let (mut steps, mut end) = (planned(&journal.meta), None);
    while let Ok(Some(payload)) = frames.next(&journal.file, journal.len) {
        match Record::decode(payload) {
            Ok(Record::BuildEnd { status, duration_ms, .. }) => {
                end = build_status_of(status).map(|status| (status, duration_ms));
            }
            Ok(record) => apply(&mut steps, &record),
            Err(_) => {}
        }
    }
    Ok(RunRecord { pipeline: journal.meta.build.pipeline, started_at: journal.meta.started_at, end, steps })
}

/// Returns the state of each step of the run in `dir`, in the order of the plan. Logs are not read.
/// Unreadable parts of a truncated journal are left out.
///
/// # Errors
/// Returns the same errors as [`open`](super::open).
pub fn step_records(dir: impl AsRef<Path>) -> Result<Vec<StepRecord>, JournalError> {
    run_record(dir).map(|run| run.steps)
}

/// Calls `show` with the pieces of the logs of the run in `dir`, in the order in which they were written.
///
/// # Errors
/// Returns the same errors as [`open`](super::open).
pub fn log_pieces(dir: impl AsRef<Path>, mut show: impl FnMut(LogPiece)) -> Result<(), JournalError> {
    records(dir.as_ref(), |_, record| {
        if let Record::Output { at_ms, step, attempt, stream, offset, len } = record
            && let Some(stream) = stream_of(stream)
        {
            show(LogPiece { step: StepIndex(step), attempt, stream, at_ms, offset, len });
        }
        true
    })
}

/// Returns the steps of a plan before anything has happened.
fn planned(meta: &RunMeta) -> Vec<StepRecord> {
    let runner = |index: u16| meta.runners.get(usize::from(index)).cloned().unwrap_or_default();
    let (len, steps) = (meta.steps.len(), meta.steps.iter());
    let mut records: Vec<StepRecord> = steps
        .map(|step| StepRecord {
            key: Arc::clone(&step.key),
            display_name: Arc::clone(&step.display_name),
            runner: runner(step.runner),
            image: step.image.clone(),
            command: None,
            builds_in: step.parent.filter(|parent| parent.get() < len),
            depends_on: Vec::new(),
            services: Vec::new(),
            status: None,
            exit_code: None,
            snapshot: None,
            attempts: 0,
            started_ms: None,
            ended_ms: None,
            duration_ms: None,
            message: None,
            failed_attempts: Vec::new(),
            attempt_times: Vec::new(),
            artifacts: Vec::new(),
            usage: None,
            tests: None,
        })
        .collect();
    for (parent, step) in &meta.details.depends_on {
        if let Some(record) = records.get_mut(step.get()).filter(|_| parent.get() < len) {
            record.depends_on.push(*parent);
        }
    }
    for (record, command) in records.iter_mut().zip(&meta.details.commands) {
        record.command = Some(command.clone());
    }
    for (step, services) in &meta.details.services {
        if let Some(record) = records.get_mut(step.get()) {
            record.services.clone_from(services);
        }
    }
    records
}

/// Adds to the steps what a record says.
fn apply(steps: &mut [StepRecord], record: &Record<'_>) {
    match *record {
        Record::StepCacheHit { step, tag, .. } => {
            if let Some(known) = steps.get_mut(step as usize) {
                known.snapshot = Some(SnapshotRef::from(tag));
            }
        }
        Record::StepStart { at_ms, step, attempt } => {
            if let Some(known) = steps.get_mut(step as usize) {
                known.started_ms.get_or_insert(at_ms);
                known.attempt_times.push(AttemptTimes { attempt, started_ms: at_ms, ended_ms: None, retry: None });
            }
        }
        Record::StepRetry { at_ms, step, attempt, message, trailing, .. } => {
            let Some(known) = steps.get_mut(step as usize) else { return };
            if let Ok(Some(code)) = decode_retry(trailing) {
                known.failed_attempts.push((attempt, code));
            }
            if let Some(last) = known.attempt_times.last_mut() {
                last.ended_ms = Some(at_ms);
                last.retry = Some(message.into());
            }
        }
        Record::StepEnd { at_ms, step, attempt, status, exit_code, duration_ms, snapshot, message, trailing } => {
            let Some(known) = steps.get_mut(step as usize) else { return };
            let fields = decode_end(trailing).unwrap_or_default();
            known.status = step_status_of(status).map(|status| fields.refine(status));
            known.attempts = attempt;
            known.ended_ms = Some(at_ms);
            known.duration_ms = Some(duration_ms);
            known.message = message.map(Arc::from);
            known.exit_code = Some(exit_code);
            known.artifacts = fields.artifacts;
            known.usage = fields.usage;
            known.tests = fields.tests.map(Box::new);
            known.snapshot = snapshot.map(SnapshotRef::from).or(known.snapshot.take());
            if let Some(last) = known.attempt_times.last_mut() {
                last.ended_ms.get_or_insert(at_ms);
            }
        }
        _ => {}
    }
}
