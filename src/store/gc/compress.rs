//! Compresses the logs of runs that have ended, and those of cached steps.
//!
//! Both may be the same file. Then both names lead to the same compressed file afterwards.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;

use super::{lock, sweep::names_if_any};
use crate::{
    log_file::{self, Compressed},
    store::{Store, StoreError, error::IoContext},
};

impl Store {
    /// Compresses the logs of runs that have ended, and of cached steps, unless another process is collecting
    /// garbage. [`gc`](Self::gc) does so, too. Returns how many bytes that frees.
    ///
    /// [`LogFile`](crate::event::LogFile) and the readers of journals read compressed logs like others.
    ///
    /// # Errors
    /// Returns an error if the store's directories cannot be listed, or if the disk is full. Logs that cannot
    /// be compressed for other reasons are left alone, with a warning.
    pub fn compress_logs(&self) -> Result<u64, StoreError> {
        match lock(self, false)? {
            Some(_lock) => compress_logs(self),
            None => Ok(0),
        }
    }
}

/// Does the same as [`Store::compress_logs`], in a process that has locked garbage collection.
pub(super) fn compress_logs(store: &Store) -> Result<u64, StoreError> {
    let mut freed_bytes = 0;
    // The compressed logs whose raw files have other names, by device and inode of those.
    let mut shared = HashMap::new();
    let dir = store.paths().runs();
    for name in names_if_any(&dir)? {
        let run = dir.join(name);
        let Some(_claim) = claim(&run) else { continue };
        let logs = run.join("logs");
        let compressed = log_file::compress_dir(&logs, &mut |log| match log.is_shared {
            true => drop(shared.insert(log.raw, log.path)),
            false => freed_bytes += log.freed_bytes,
        });
        skip(compressed.doing("compress the logs in", &logs))?;
    }
    let logs = store.paths().logs();
    for name in names_if_any(&logs)?.iter().filter(|name| !name.contains('.')) {
        let log = logs.join(name);
        if let Some(compressed) = skip(compress_cached(store, &log, &shared))?.flatten() {
            freed_bytes += compressed.freed_bytes;
        }
    }
    Ok(freed_bytes)
}

/// Compresses the log of a cached step, or replaces it by the same log of a run.
fn compress_cached(
    store: &Store,
    log: &Path,
    shared: &HashMap<(u64, u64), PathBuf>,
) -> Result<Option<Compressed>, StoreError> {
    let Ok(found) = fs::symlink_metadata(log) else { return Ok(None) };
    if !found.is_file() || found.len() < log_file::MIN_BYTES {
        return Ok(None);
    }
    let tmp = store.instance().new_tmp();
    let compressed = match shared.get(&(found.dev(), found.ino())) {
        Some(of_run) => fs::hard_link(of_run, &tmp).and_then(|()| log_file::replace(log, &tmp)),
        // It is also the log of a run that is still going on: both are compressed after that.
        None if found.nlink() > 1 => Ok(None),
        None => log_file::compress(log, &tmp),
    };
    compressed.doing("compress", log)
}

/// Locks the journal of a run, so that no one takes the run for one that has ended, and removes it. Returns
/// `None` if the run is still going on, or if it has no journal.
fn claim(run: &Path) -> Option<File> {
    let journal = File::open(run.join("journal")).ok()?;
    rustix::fs::flock(&journal, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(journal)
}

/// Reports what could not be compressed. Returns an error only if the disk is full.
fn skip<T>(done: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(error @ StoreError::Full { .. }) => Err(error),
        Err(error) => {
            tracing::warn!(error = %error.to_line(), "failed to compress a log");
            Ok(None)
        }
    }
}
