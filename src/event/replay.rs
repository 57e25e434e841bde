//! Reads the journal of a run that is over, however it ended.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    BuildEvent, JournalError, RunMeta,
    cursor::{Cursor, Next},
    frames::{Frames, frame_header},
    logs::{journal_path, read_at},
    record::{
        FORMAT_VERSION, FRAME_HEADER_BYTES, MAGIC, MAX_HEADER_BYTES, PREAMBLE_BYTES, Record, decode_header,
        step_status_of,
    },
    trailing::decode_end,
};
use crate::model::StepStatus;

/// Opens the journal of a run in `dir`, the run's [`RunDir::Kept`](super::RunDir::Kept). If the run is still
/// active, events that it writes later are not seen.
///
/// ```no_run
/// for event in hm_exec::event::open("/var/lib/hm/runs/17")? {
///     println!("{}", serde_json::to_string(&event?)?);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Returns an error if there is no journal, if it cannot be read, or if its header is incomplete.
pub fn open(dir: impl AsRef<Path>) -> Result<JournalReader, JournalError> {
    let dir = dir.as_ref();
    let journal = OpenJournal::open(dir)?;
    let cursor = Cursor::new(Arc::new(journal.meta.clone().into()), dir, journal.first_record);
    Ok(JournalReader { journal, cursor, is_over: false })
}

/// Returns the duration of each passed step of the run in `dir`, by key. The duration of a flaky step is left
/// out, because it has the time of the failed attempts. Unreadable parts of a truncated
/// journal are left out, because a scheduler's priorities affect only speed.
///
/// # Errors
/// Returns the same errors as [`open`].
pub fn durations(dir: impl AsRef<Path>) -> Result<BTreeMap<Arc<str>, Duration>, JournalError> {
    let costs = step_costs(dir)?.into_iter();
    Ok(costs.filter_map(|(key, cost)| Some((key, cost.duration?))).collect())
}

/// What a step cost in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct StepCost {
    /// The duration, if the step passed at its first attempt or only infrastructure failed before.
    pub duration: Option<Duration>,
    /// The most memory that it had at a time, in bytes, if it was measured.
    pub peak_memory_bytes: Option<u64>,
}

/// Returns what each step of the run in `dir` cost, by key, as far as the journal shows it. Unreadable parts
/// of a truncated journal are left out.
///
/// # Errors
/// Returns the same errors as [`open`].
pub fn step_costs(dir: impl AsRef<Path>) -> Result<BTreeMap<Arc<str>, StepCost>, JournalError> {
    let dir = dir.as_ref();
    let journal = OpenJournal::open(dir)?;
    let mut frames = Frames::new(journal_path(dir), journal.first_record);
    let mut costs = BTreeMap::new();
    while let Ok(Some(payload)) = frames.next(&journal.file, journal.len) {
        let Ok(Record::StepEnd { step, status, duration_ms, trailing, .. }) = Record::decode(payload) else { continue };
        let Some(step) = journal.meta.steps.get(step as usize) else { continue };
        let fields = decode_end(trailing).unwrap_or_default();
        let status = step_status_of(status).map(|status| fields.refine(status));
        let duration = (status == Some(StepStatus::Passed)).then_some(Duration::from_millis(duration_ms));
        let peak_memory_bytes = fields.usage.map(|usage| usage.peak_memory_bytes);
        if duration.is_some() || peak_memory_bytes.is_some() {
            costs.insert(step.key.clone(), StepCost { duration, peak_memory_bytes });
        }
    }
    Ok(costs)
}

/// Calls `show` with the run's constant data and each record of the journal in `dir`, until it returns false.
/// Unreadable parts of a truncated journal are left out.
pub(super) fn records(dir: &Path, mut show: impl FnMut(&RunMeta, Record<'_>) -> bool) -> Result<(), JournalError> {
    let journal = OpenJournal::open(dir)?;
    let mut frames = Frames::new(journal_path(dir), journal.first_record);
    while let Ok(Some(payload)) = frames.next(&journal.file, journal.len) {
        if let Ok(record) = Record::decode(payload)
            && !show(&journal.meta, record)
        {
            break;
        }
    }
    Ok(())
}

/// The events of a run that is over: an iterator over the same events that a live reader saw.
///
/// If the build was interrupted, the events end without a `build_end`. If the journal is truncated or
/// damaged, the last item is the error.
#[derive(Debug)]
pub struct JournalReader {
    journal: OpenJournal,
    cursor: Cursor,
    is_over: bool,
}

impl JournalReader {
    /// Returns the constant data of the run.
    #[must_use]
    pub fn meta(&self) -> &RunMeta {
        &self.journal.meta
    }

    /// Returns whether the build's end was returned, or is the next event. This is false for a run that was
    /// interrupted.
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

/// A journal whose header has been read.
#[derive(Debug)]
pub(super) struct OpenJournal {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) len: u64,
    pub(super) meta: RunMeta,
    pub(super) first_record: u64,
}

impl OpenJournal {
    pub(super) fn open(dir: &Path) -> Result<Self, JournalError> {
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
        let meta = decode_header(&payload).map_err(|_| corrupt("the header cannot be decoded"))?;
        Ok(Self { path, file, len, meta, first_record })
    }
}

/// Reads until `buffer` is full or the file ends; returns the number of bytes.
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
