//! The output of a command, kept in two files until it has ended, and readable while it grows.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;

use crate::{model::StdStream, runner::sandbox::OutputSink, sync::Mutex};

/// The progress of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SpoolProgress {
    pub(super) length_bytes: u64,
    /// No more data will follow.
    pub(super) finished: bool,
}

/// One stream, kept in a file.
#[derive(Debug)]
pub(super) struct SpoolFile {
    path: PathBuf,
    file: Arc<File>,
    progress: watch::Sender<SpoolProgress>,
}

/// The output of a command.
#[derive(Debug)]
pub(super) struct Spool {
    pub(super) stdout: SpoolFile,
    pub(super) stderr: SpoolFile,
    /// The error of the first failed write. The command continues, because its result may matter more than
    /// its output.
    failure: Mutex<Option<io::Error>>,
}

impl SpoolFile {
    fn new(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { path, file: Arc::new(file), progress: watch::Sender::new(SpoolProgress::default()) })
    }

    fn push(&self, bytes: &[u8]) -> io::Result<()> {
        (&*self.file).write_all(bytes)?;
        self.progress.send_modify(|progress| progress.length_bytes += bytes.len() as u64);
        Ok(())
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file, which can be read at any offset.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Returns a receiver of the stream's progress.
    pub(super) fn follow(&self) -> watch::Receiver<SpoolProgress> {
        self.progress.subscribe()
    }
}

impl Spool {
    /// Creates two empty files in the existing directory `dir`.
    ///
    /// # Errors
    /// Returns an error if they cannot be created.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let file = |name: &str| SpoolFile::new(dir.join(name));
        Ok(Self { stdout: file("stdout")?, stderr: file("stderr")?, failure: Mutex::default() })
    }

    /// Marks both streams as finished.
    ///
    /// # Errors
    /// Returns the error of the first failed write, if any failed.
    pub(super) fn finish(&self) -> io::Result<()> {
        for file in [&self.stdout, &self.stderr] {
            file.progress.send_modify(|progress| progress.finished = true);
        }
        self.failure.lock().take().map_or(Ok(()), Err)
    }
}

impl OutputSink for Spool {
    async fn output(&self, stream: StdStream, bytes: &[u8]) {
        let file = if stream == StdStream::Stdout { &self.stdout } else { &self.stderr };
        if let Err(error) = file.push(bytes) {
            self.failure.lock().get_or_insert(error);
        }
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "leaving a file to the next process that opens the store");
        }
    }
}
