//! The index: which layers are on disk, and which names they have. It is an SQLite database, shared by all
//! processes that have the store open.
//!
//! The interface consists of rows. Each file handles those of one table. A row is written after the thing
//! that it names is in its place, in one transaction with all related rows, so that a kill at any moment
//! leaves either all of it or nothing. Writes are not synced: [`super::Store::sync`] determines what survives
//! a power failure. This module does not know what rows are used for.

pub(super) mod blobs;
pub(super) mod cache;
pub(super) mod cache_dirs;
pub(super) mod collect;
pub(super) mod images;
pub(super) mod inputs;
pub(super) mod inspection;
pub(super) mod inventory;
pub(super) mod layers;
pub(super) mod runs;
mod schema;
pub(super) mod snapshots;
pub(super) mod sources;
pub(super) mod traces;
pub(super) mod tracing_costs;

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::MutexGuard,
    time::{Duration, SystemTime},
};

pub(super) use layers::{LayerKind, LayerRow};
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, config::DbConfig};

use super::{Filesystem, StoreError, error::IoContext};
use crate::sync::Mutex;

/// How long a writer waits for another process's transaction. Transactions take well under a millisecond.
const BUSY: Duration = Duration::from_secs(10);

/// If less than this is free, in bytes, files of the index cannot grow.
const NEARLY_NOTHING: u64 = 64 << 10;

/// The number of cached prepared statements.
const STATEMENTS: usize = 64;

/// Up to this length, in bytes, the write-ahead log is left to the next process, which has to read all of it.
const LOG_BYTES: u64 = 512 << 10;

/// The index of an open store.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// How the index was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    /// It existed.
    Kept,
    /// There was none, or it could not be read and was set aside.
    New,
}

impl Index {
    /// Opens the index of the store in `dir`. Called by one process at a time.
    ///
    /// # Errors
    /// Returns [`StoreError::Corrupt`] if the index is of a later version, or another error if it cannot be
    /// opened. A damaged index is not an error: it is set aside, with a warning that contains its new path.
    pub(super) fn open(dir: &Path) -> Result<(Self, Opened), StoreError> {
        let path = dir.join("index.db");
        let suspect = suspect(&path);
        let mut opened = if path.exists() { Opened::Kept } else { Opened::New };
        if suspect.exists() {
            set_aside(&path)?;
            fs::remove_file(&suspect).doing("remove", &suspect)?;
            opened = Opened::New;
        }
        let connection = match connect(&path) {
            Err(error) if is_damage(&error) => {
                set_aside(&path)?;
                opened = Opened::New;
                connect(&path)
            }
            connected => connected,
        };
        let connection = connection.map_err(|error| failed(&path, error))?;
        Ok((Self { path, connection: Mutex::new(connection) }, opened))
    }

    /// Runs a read.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        read(&self.connection()).map_err(|error| self.failed(error))
    }

    /// Reads several rows in a consistent state, under one lock instead of one for each.
    pub(super) fn read_at_once<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let mut connection = self.connection();
        // Nothing was written, so the rollback on drop loses nothing.
        let done = connection.transaction().and_then(|transaction| read(&transaction));
        done.map_err(|error| self.failed(error))
    }

    /// Changes rows, all of them or none.
    pub(super) fn write<T>(
        &self,
        write: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let mut connection = self.connection();
        let done = connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(|transaction| {
            let value = write(&transaction)?;
            transaction.commit()?;
            Ok(value)
        });
        done.map_err(|error| self.failed(error))
    }

    /// Returns whether damage was found since the index was opened.
    pub(super) fn is_damaged(&self) -> bool {
        suspect(&self.path).exists()
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A transaction that panicked was rolled back.
        self.connection.lock()
    }

    /// Converts an error, and marks a damaged index. It is examined when the store is opened the next time.
    fn failed(&self, error: rusqlite::Error) -> StoreError {
        if is_damage(&error)
            && let Err(error) = make_private(&suspect(&self.path))
        {
            tracing::warn!(%error, "failed to mark the store's index as damaged");
        }
        failed(&self.path, error)
    }
}

impl Drop for Index {
    /// Closing normally checkpoints the write-ahead log, and the next process begins a new one. That takes
    /// five syncs in total, which is too slow for a warm run. Therefore most processes leave their log as it
    /// is.
    fn drop(&mut self) {
        let is_long = fs::metadata(with_suffix(&self.path, "-wal")).is_ok_and(|log| log.len() > LOG_BYTES);
        if is_long
            && let Err(error) = self.connection().set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
        {
            tracing::debug!(%error, "leaving the index's log to the next process");
        }
    }
}

/// Returns the current epoch: see [`super::lease`].
pub(super) fn epoch(connection: &Connection) -> rusqlite::Result<u64> {
    connection.prepare_cached("SELECT value FROM counters WHERE name = 'epoch'")?.query_row([], |row| row.get(0))
}

/// Forgets every stack that contains a layer without a row, and every name of a snapshot that has no row.
/// Returns how many snapshots were forgotten.
pub(super) fn forget_broken(transaction: &Transaction<'_>) -> rusqlite::Result<usize> {
    let snapshots = snapshots::forget_broken(transaction, "snapshots")?;
    snapshots::forget_broken(transaction, "sources")?;
    snapshots::forget_broken(transaction, "images")?;
    snapshots::forget_broken(transaction, "cache_dirs")?;
    cache::forget_broken(transaction)?;
    inspection::forget_broken(transaction)?;
    Ok(snapshots)
}

/// Records, for the user, what was removed after a process died.
pub(super) fn note_reaped(transaction: &Transaction<'_>, reaped: &[(&str, usize)]) -> rusqlite::Result<()> {
    let now = now_ms();
    let mut insert = transaction.prepare_cached("INSERT INTO reaped (what, at, count) VALUES (?, ?, ?)")?;
    reaped.iter().try_for_each(|(what, count)| insert.execute(rusqlite::params![what, now, count]).map(drop))
}

/// Returns the current time as it is stored in rows. It is 0 if the clock is before the Unix epoch.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // SQLite creates its files with the permissions that the umask allows. The files that it creates beside
    // an existing one get that file's permissions.
    if let Err(error) = make_private(path) {
        tracing::debug!(%error, path = %path.display(), "SQLite tells what is wrong");
    }
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    if schema::is_empty(&connection)? {
        // Space of removed rows is returned. On an index with tables the setting would have no effect, but
        // would write to it.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A power failure loses only the last transactions. The layers that they recorded are not on the disk
    // either.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    // See `Index::drop`.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    schema::migrate(&mut connection)?;
    Ok(connection)
}

/// Creates an empty file that only its owner can access, unless it exists.
fn make_private(path: &Path) -> std::io::Result<()> {
    fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
}

/// Returns the path of the file that marks an index in which damage was found.
fn suspect(path: &Path) -> PathBuf {
    path.with_extension("damaged")
}

fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(error, _) => {
            // Unknown: a missing table or column. It is another program's database, or an incomplete one of
            // ours.
            matches!(error.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
        }
        rusqlite::Error::SqlInputError { .. }
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..) => true,
        _ => false,
    }
}

/// Moves the index, and the files that SQLite keeps beside it, out of the way.
fn set_aside(path: &Path) -> Result<(), StoreError> {
    let aside = path.with_file_name(format!("index.db-damaged-{}", now_ms()));
    for suffix in ["-wal", "-shm", ""] {
        match fs::rename(with_suffix(path, suffix), with_suffix(&aside, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("set aside", with_suffix(path, suffix), error));
            }
            _ => {}
        }
    }
    tracing::warn!(
        set_aside = %aside.display(),
        "the store's index was damaged; starting with a new, empty one"
    );
    Ok(())
}

/// Returns whether an error was caused by a lack of space. SQLite does not always report that this is why a
/// file could not be created or grow.
fn is_full(code: ErrorCode, path: &Path) -> bool {
    let no_space = || Filesystem::of(path.parent().unwrap_or(path)).is_ok_and(|of| of.free_bytes < NEARLY_NOTHING);
    code == ErrorCode::DiskFull || matches!(code, ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) && no_space()
}

/// Returns the path of one of the files that SQLite keeps beside the index.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn failed(path: &Path, error: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match error {
        rusqlite::Error::IntegralValueOutOfRange(_, version) => {
            StoreError::Corrupt { path, reason: format!("it has version {version}, written by a newer hm") }
        }
        rusqlite::Error::SqliteFailure(inner, _) if is_full(inner.code, &path) => {
            StoreError::Full { path, source: std::io::Error::other(error) }
        }
        error => StoreError::Io { doing: "use the index", path, source: std::io::Error::other(error) },
    }
}
