//! Reads the journal of a run that is over, however it ended.

use std::{collections::BTreeMap, fs::File, io, path::Path, sync::Arc, time::Duration};

use super::{
    BuildEvent, JournalError, RunMeta,
    cursor::{Cursor, Next},
    frames::{Frames, frame_header},
    logs::{journal_path, read_at},
    record::{
        FORMAT_VERSION, FRAME_HEADER_BYTES, MAGIC, MAX_HEADER_BYTES, PREAMBLE_BYTES, Record, step_status_code,
        step_status_of,
    },
};
use crate::{outcome::StepStatus, runner::SnapshotRef};

/// Opens the journal of a run in `dir`, which [`RunDir::Kept`](super::RunDir::Kept) named when it ran. What a run that is
/// still going on writes later is not seen.
///
/// ```no_run
/// for event in hm_exec::event::open("/var/lib/hm/runs/17")? {
///     println!("{}", serde_json::to_string(&event?)?);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Where there is no journal, it can't be read, or its header is not whole.
pub fn open(dir: impl AsRef<Path>) -> Result<JournalReader, JournalError> {
    let dir = dir.as_ref();
    let journal = OpenJournal::open(dir)?;
    let cursor = Cursor::new(journal.meta.clone(), dir, journal.first_record);
    Ok(JournalReader { journal, cursor, is_over: false })
}

/// How long each step took that passed in the run in `dir`, by key. What can't be read of a journal that breaks off is
/// left out: a scheduler's priorities are a matter of speed alone.
///
/// # Errors
/// As [`open`].
pub fn durations(dir: impl AsRef<Path>) -> Result<BTreeMap<Arc<str>, Duration>, JournalError> {
    let dir = dir.as_ref();
    let journal = OpenJournal::open(dir)?;
    let mut frames = Frames::new(journal_path(dir), journal.first_record);
    let mut durations = BTreeMap::new();
    while let Ok(Some(payload)) = frames.next(&journal.file, journal.len) {
        let Ok(Record::StepEnd { step, status, duration_ms, .. }) = Record::decode(payload) else { continue };
        let Some(step) = journal.meta.steps.get(step as usize) else { continue };
        if status == step_status_code(StepStatus::Passed) {
            durations.insert(step.key.clone(), Duration::from_millis(duration_ms));
        }
    }
    Ok(durations)
}

/// How far a step came in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepRecord {
    /// The step's key.
    pub key: Arc<str>,
    /// The runner's name.
    pub runner: Arc<str>,
    /// How it ended; `None` where that is not in the journal: it still runs, or `hm` was killed.
    pub status: Option<StepStatus>,
    /// As in [`BuildEvent::StepEnd`].
    pub exit_code: Option<i32>,
    /// The snapshot that it committed, or that was found in the cache.
    pub snapshot: Option<SnapshotRef>,
}

/// How far each step came in the run in `dir`, in the order of the plan. Logs are not read. What can't be read of a journal
/// that breaks off is left out.
///
/// # Errors
/// As [`open`].
pub fn step_records(dir: impl AsRef<Path>) -> Result<Vec<StepRecord>, JournalError> {
    let dir = dir.as_ref();
    let journal = OpenJournal::open(dir)?;
    let mut frames = Frames::new(journal_path(dir), journal.first_record);
    let runner = |index: u16| journal.meta.runners.get(usize::from(index)).cloned().unwrap_or_default();
    let steps = journal.meta.steps.iter();
    let mut records: Vec<StepRecord> = steps
        .map(|step| StepRecord {
            key: Arc::clone(&step.key),
            runner: runner(step.runner),
            status: None,
            exit_code: None,
            snapshot: None,
        })
        .collect();
    while let Ok(Some(payload)) = frames.next(&journal.file, journal.len) {
        match Record::decode(payload) {
            Ok(Record::StepCacheHit { step, tag, .. }) => {
                if let Some(record) = records.get_mut(step as usize) {
                    record.snapshot = Some(SnapshotRef::from(tag));
                }
            }
            Ok(Record::StepEnd { step, status, exit_code, snapshot, .. }) => {
                if let Some(record) = records.get_mut(step as usize) {
                    record.status = step_status_of(status);
                    record.exit_code = Some(exit_code);
                    record.snapshot = snapshot.map(SnapshotRef::from).or(record.snapshot.take());
                }
            }
            _ => {}
        }
    }
    Ok(records)
}

/// The events of a run that is over. Iterates over the same events that a live reader saw.
///
/// Where the build broke off, the events end without a `build_end`; where the journal does, the last item is the error.
#[derive(Debug)]
pub struct JournalReader {
    journal: OpenJournal,
    cursor: Cursor,
    is_over: bool,
}

impl JournalReader {
    /// What never changed about the run.
    #[must_use]
    pub fn meta(&self) -> &RunMeta {
        &self.journal.meta
    }

    /// Whether the build's end was given, or is the next to be: false for a run that broke off.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.cursor.has_ended()
    }
}

impl Iterator for JournalReader {
    type Item = Result<BuildEvent, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_over {
            match self.cursor.next(&self.journal.file, self.journal.len) {
                Ok(Next::Event(event)) => return Some(Ok(event)),
                Ok(Next::Again) => {}
                Ok(Next::Wait) => self.cursor.break_off(),
                Ok(Next::End) => self.is_over = true,
                Err(error) => {
                    self.is_over = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// A journal whose header was read.
#[derive(Debug)]
struct OpenJournal {
    file: File,
    len: u64,
    meta: Arc<RunMeta>,
    first_record: u64,
}

impl OpenJournal {
    fn open(dir: &Path) -> Result<Self, JournalError> {
        let path = journal_path(dir);
        let failed = |source| JournalError::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();

        let mut preamble = [0; PREAMBLE_BYTES + FRAME_HEADER_BYTES];
        let have = read_full(&file, &mut preamble, 0).map_err(failed)?;
        if !preamble[..have].starts_with(&MAGIC) {
            return Err(JournalError::NotAJournal { path });
        }
        let offset = PREAMBLE_BYTES as u64;
        if have < preamble.len() {
            return Err(JournalError::Truncated { offset });
        }
        let (magic_and_version, header) = preamble.split_at(PREAMBLE_BYTES);
        let [.., a, b, c, d] = *magic_and_version else { return Err(JournalError::NotAJournal { path }) };
        let found = u32::from_le_bytes([a, b, c, d]);
        if found != FORMAT_VERSION {
            return Err(JournalError::UnsupportedVersion { found, supported: FORMAT_VERSION });
        }
        let (header_len, crc) = frame_header(header);
        let corrupt = |reason| JournalError::Corrupt { offset, reason };
        if header_len > MAX_HEADER_BYTES {
            return Err(corrupt("the header is too long"));
        }
        let first_record = (preamble.len() + header_len) as u64;
        if first_record > len {
            return Err(JournalError::Truncated { offset });
        }
        let mut payload = vec![0; header_len];
        if read_full(&file, &mut payload, preamble.len() as u64).map_err(failed)? < header_len {
            return Err(JournalError::Truncated { offset });
        }
        if crc32fast::hash(&payload) != crc {
            return Err(corrupt("the header's checksum is wrong"));
        }
        let (meta, _later_fields) =
            postcard::take_from_bytes::<RunMeta>(&payload).map_err(|_| corrupt("the header can't be decoded"))?;
        Ok(Self { file, len, meta: Arc::new(meta), first_record })
    }
}

/// Reads until `buffer` is full or the file ends; says how much.
fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match read_at(file, &mut buffer[have..], offset + have as u64)? {
            0 => break,
            more => have += more,
        }
    }
    Ok(have)
}
