//! The files of a run: the journal's location, and one raw log per attempt, written and read by offset.
//!
//! Writers and readers keep a bounded number of files open, however many attempts there are.

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tempfile::TempDir;

use super::MAX_LINE_BYTES;
use crate::{
    log_file::{self, LogFile},
    model::StepIndex,
};

/// The maximum number of logs kept open for writing; any further log is opened for each write.
const MAX_OPEN_FOR_WRITING: usize = 256;

/// The maximum number of logs that one reader keeps open.
const MAX_OPEN_FOR_READING: usize = 16;

/// The number of bytes of a log that are read at a time.
const CHUNK_BYTES: usize = 64 << 10;

// Lines that are read at once need not be cut.
const _: () = assert!(CHUNK_BYTES <= MAX_LINE_BYTES);

/// Returns the journal's path in a run's directory.
pub(super) fn journal_path(dir: &Path) -> PathBuf {
    dir.join("journal")
}

/// Returns the directory of logs in a run's directory.
fn logs_path(dir: &Path) -> PathBuf {
    dir.join("logs")
}

/// Returns the path of a log. It contains a step's number, not its key, because a key may be any text.
fn log_path(logs: &Path, step: u32, attempt: u32) -> PathBuf {
    logs.join(format!("{step}-{attempt}.log"))
}

/// Returns the log of a step's last attempt that printed anything, in the run's directory `dir`. Returns
/// `None` if no attempt printed anything. Read it with [`LogFile::open`], because it may be compressed.
///
/// # Errors
/// Returns an error if the directory cannot be read.
pub fn last_log(dir: impl AsRef<Path>, step: StepIndex) -> io::Result<Option<PathBuf>> {
    let mut last = None;
    each_log(&logs_path(dir.as_ref()), |of, attempt| {
        if of == step {
            last = last.max(Some(attempt));
        }
    })?;
    Ok(last.map(|attempt| log_path(&logs_path(dir.as_ref()), step.0, attempt)))
}

/// Returns the logs of the run in `dir`, by step and attempt. Attempts that printed nothing have none, and
/// neither has a run whose logs were removed. Read them with [`LogFile::open`], because they may be
/// compressed.
///
/// # Errors
/// Returns an error if the directory cannot be read.
pub fn log_files(dir: impl AsRef<Path>) -> io::Result<BTreeMap<(StepIndex, u32), PathBuf>> {
    let logs = logs_path(dir.as_ref());
    let mut found = BTreeMap::new();
    let listed = each_log(&logs, |step, attempt| {
        found.insert((step, attempt), log_path(&logs, step.0, attempt));
    });
    match listed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) | Ok(()) => Ok(found),
    }
}

/// Calls `show` with the step and the attempt of each log in a directory of logs. A log that is being
/// compressed may be shown twice.
fn each_log(logs: &Path, mut show: impl FnMut(StepIndex, u32)) -> io::Result<()> {
    for entry in std::fs::read_dir(logs)? {
        let name = entry?.file_name();
        let numbers = name.to_str().and_then(|name| {
            let name = name.strip_suffix(".zst").unwrap_or(name);
            name.strip_suffix(".log")?.split_once('-')
        });
        if let Some((step, attempt)) = numbers
            && let (Ok(step), Ok(attempt)) = (step.parse(), attempt.parse())
        {
            show(StepIndex(step), attempt);
        }
    }
    Ok(())
}

/// Compresses the long logs of the run in `dir`, a [`RunDir::Kept`](super::RunDir::Kept), if the run has
/// ended. Readers of the run, also those that have begun, find the same bytes as before. If this process is
/// killed, every log is still whole.
///
/// # Errors
/// Returns an error if a log cannot be read, or if its compressed form cannot be written. It is left alone
/// then.
pub fn compress_logs(dir: impl AsRef<Path>) -> io::Result<()> {
    let dir = dir.as_ref();
    let journal = File::open(journal_path(dir))?;
    // The lock also keeps others from compressing the same logs.
    match journal.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(()),
        Err(TryLockError::Error(error)) => Err(error),
        Ok(()) => log_file::compress_dir(&logs_path(dir), &mut |_| {}),
    }
}

/// Returns whether [`compress_logs`] would compress a log of the run in `dir`, if the run has ended.
#[must_use]
pub fn has_long_logs(dir: impl AsRef<Path>) -> bool {
    log_file::has_any_to_compress(&logs_path(dir.as_ref()))
}

/// A run's directory, and the count of its logs that are open for writing.
#[derive(Debug)]
pub(super) struct RunFiles {
    dir: PathBuf,
    open_for_writing: Arc<AtomicUsize>,
    _temporary: Option<TempDir>,
}

impl RunFiles {
    /// Makes the directories in `dir`, which only their owner may enter, and the journal, which must not
    /// exist yet.
    pub(super) fn create(dir: &Path, temporary: Option<TempDir>) -> io::Result<(Self, File)> {
        let logs = logs_path(dir);
        DirBuilder::new().recursive(true).mode(0o700).create(&logs)?;
        let (path, unlocked) = (journal_path(dir), journal_path(dir).with_extension("new"));
        if path.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let journal = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&unlocked)?;
        // The lock shows other processes that the run is alive; the kernel releases it with the process. The
        // journal is locked before it is renamed, so a journal without a lock always belongs to a run that
        // has ended.
        if let Err(error) = journal.try_lock_shared() {
            tracing::debug!(%error, "failed to lock the run's journal");
        }
        std::fs::rename(&unlocked, &path)?;
        Ok((Self { dir: dir.to_owned(), open_for_writing: Arc::default(), _temporary: temporary }, journal))
    }

    /// Returns the run's directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of an attempt's log, which exists once something was written.
    pub(super) fn log_path(&self, step: u32, attempt: u32) -> PathBuf {
        log_path(&logs_path(&self.dir), step, attempt)
    }

    /// Returns the log of an attempt. No file is made before the first write.
    pub(super) fn log(&self, step: u32, attempt: u32) -> LogWriter {
        let open_for_writing = self.open_for_writing.clone();
        LogWriter { path: self.log_path(step, attempt), len: 0, file: None, open_for_writing }
    }
}

/// The log of one attempt, to which output is appended.
#[derive(Debug)]
pub(super) struct LogWriter {
    path: PathBuf,
    len: u64,
    file: Option<File>,
    open_for_writing: Arc<AtomicUsize>,
}

impl LogWriter {
    /// Returns the path of the log.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `bytes`, and returns the offset of the first byte. If only a part could be written, the next
    /// append overwrites it.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let offset = self.len;
        match &self.file {
            Some(file) => file.write_all_at(bytes, offset)?,
            None => {
                let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
                file.write_all_at(bytes, offset)?;
                if self.open_for_writing.fetch_add(1, Relaxed) < MAX_OPEN_FOR_WRITING {
                    self.file = Some(file);
                } else {
                    self.open_for_writing.fetch_sub(1, Relaxed);
                }
            }
        }
        self.len += bytes.len() as u64;
        Ok(offset)
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        if self.file.is_some() {
            self.open_for_writing.fetch_sub(1, Relaxed);
        }
    }
}

/// Reads the logs of a run. The last few of them are kept open.
#[derive(Debug)]
pub(super) struct LogReader {
    logs: PathBuf,
    /// The most recently used log is first.
    open: Vec<OpenLog>,
}

#[derive(Debug)]
struct OpenLog {
    step: u32,
    attempt: u32,
    file: LogFile,
    /// The last bytes that were read, from the beginning. They stay valid because logs only grow.
    chunk: Box<[u8]>,
    chunk_len: usize,
    chunk_offset: u64,
}

impl LogReader {
    /// Returns a reader for the run in `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        Self { logs: logs_path(dir), open: Vec::new() }
    }

    /// Returns between one and `len` bytes at `offset`.
    ///
    /// # Errors
    /// Returns `UnexpectedEof` if the log is shorter, otherwise the error of reading it.
    pub(super) fn read(&mut self, step: u32, attempt: u32, offset: u64, len: u64) -> io::Result<&[u8]> {
        self.bring_to_front(step, attempt)?;
        let log = &mut self.open[0];
        let in_chunk = offset.checked_sub(log.chunk_offset).and_then(|at| usize::try_from(at).ok());
        let at = match in_chunk.filter(|&at| at < log.chunk_len) {
            Some(at) => at,
            None => {
                log.chunk_len = 0;
                log.chunk_len = log.file.read_at(&mut log.chunk, offset)?;
                log.chunk_offset = offset;
                0
            }
        };
        let bytes = &log.chunk[at..log.chunk_len];
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(&bytes[..usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len())])
    }

    /// Returns bytes that the last [`read`](Self::read) returned.
    pub(super) fn seen(&self, offset: u64, len: u64) -> &[u8] {
        let Some(log) = self.open.first() else { return &[] };
        let at = offset.checked_sub(log.chunk_offset).and_then(|at| usize::try_from(at).ok());
        let end = at.zip(usize::try_from(len).ok()).and_then(|(at, len)| at.checked_add(len));
        at.zip(end).and_then(|(at, end)| log.chunk[..log.chunk_len].get(at..end)).unwrap_or_default()
    }

    /// Closes the log of an attempt that is not read any further.
    pub(super) fn close(&mut self, step: u32, attempt: u32) {
        self.open.retain(|log| (log.step, log.attempt) != (step, attempt));
    }

    fn bring_to_front(&mut self, step: u32, attempt: u32) -> io::Result<()> {
        if let Some(at) = self.open.iter().position(|log| (log.step, log.attempt) == (step, attempt)) {
            self.open[..=at].rotate_right(1);
            return Ok(());
        }
        self.open.truncate(MAX_OPEN_FOR_READING - 1);
        let path = log_path(&self.logs, step, attempt);
        let file = LogFile::open(&path).or_else(|error| {
            // The process may have no descriptors left; closing the logs here frees some.
            if self.open.is_empty() || error.kind() == io::ErrorKind::NotFound {
                return Err(error);
            }
            self.open.clear();
            LogFile::open(&path)
        })?;
        let chunk = vec![0; CHUNK_BYTES].into();
        self.open.insert(0, OpenLog { step, attempt, file, chunk, chunk_len: 0, chunk_offset: 0 });
        Ok(())
    }
}

/// Reads once at `offset`; retries if interrupted.
pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_logs_than_may_be_open_are_all_written_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let (files, _journal) = RunFiles::create(dir.path(), None).unwrap();
        let count = u32::try_from(2 * MAX_OPEN_FOR_WRITING).unwrap();
        let mut logs: Vec<LogWriter> = (0..count).map(|step| files.log(step, 1)).collect();
        for round in 0..3u64 {
            for (step, log) in logs.iter_mut().enumerate() {
                assert_eq!(log.append(format!("{step:06}").as_bytes()).unwrap(), round * 6);
            }
        }
        assert_eq!(logs.iter().filter(|log| log.file.is_some()).count(), MAX_OPEN_FOR_WRITING);
        drop(logs);
        assert_eq!(files.open_for_writing.load(Relaxed), 0);

        let mut reader = LogReader::new(dir.path());
        for round in 0..3 {
            for step in 0..count {
                assert_eq!(reader.read(step, 1, round * 6, 6).unwrap(), format!("{step:06}").as_bytes());
            }
        }
        assert_eq!(reader.open.len(), MAX_OPEN_FOR_READING);
        assert_eq!(reader.read(0, 1, 18, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(reader.read(0, 2, 0, 1).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_chunk_is_read_once_and_what_was_appended_later_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (files, _journal) = RunFiles::create(dir.path(), None).unwrap();
        let mut log = files.log(0, 1);
        log.append(b"abc").unwrap();
        let mut reader = LogReader::new(dir.path());
        assert_eq!(reader.read(0, 1, 0, 2).unwrap(), b"ab");
        log.append(b"def").unwrap();
        assert_eq!(reader.read(0, 1, 2, 100).unwrap(), b"c");
        assert_eq!(reader.read(0, 1, 3, 100).unwrap(), b"def");
    }
}
