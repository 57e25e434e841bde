//! The index: which layers lie on disk, and which names they have. SQLite, shared by all processes that have the store
//! open.
//!
//! In go and out come rows; each file has those of one table. A row is written after what it names is in its place, in one
//! transaction with all rows that belong together, so that a kill at any moment leaves either all of it or nothing.
//! Writes are not synced: [`super::Store::sync`] says what survives a power cut. Knows nothing of what rows are for.

#[cfg(feature = "cloud")]
pub(super) mod blobs;
pub(super) mod cache;
pub(super) mod collect;
pub(super) mod images;
pub(super) mod inventory;
pub(super) mod kept;
pub(super) mod layers;
pub(super) mod runs;
mod schema;
pub(super) mod snapshots;
pub(super) mod sources;

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

pub(super) use layers::{LayerKind, LayerRow};
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, config::DbConfig};

use super::{Filesystem, StoreError, error::Doing};

/// How long a writer waits for another process's transaction. Those take well under a millisecond.
const BUSY: Duration = Duration::from_secs(10);

/// Where less than this is free, in bytes, files of the index can't grow.
const NEARLY_NOTHING: u64 = 64 << 10;

/// Statements kept prepared.
const STATEMENTS: usize = 64;

/// Up to this length, in bytes, the write-ahead log is left to the next process, which has to read all of it.
const LOG_BYTES: u64 = 512 << 10;

/// The index of an open store.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// How an index came to be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    /// It was there.
    Kept,
    /// There was none, or one that can't be read, which was set aside.
    New,
}

impl Index {
    /// Opens the index of the store in `dir`. Called by one process at a time.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where it is of a later version; otherwise why it can't be opened. One that is damaged is
    /// none: it is set aside, with a warning that says where.
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

    /// Reads.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        read(&self.connection()).map_err(|error| self.failed(error))
    }

    /// Reads several rows as of one moment, under one lock instead of one for each.
    pub(super) fn read_at_once<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let mut connection = self.connection();
        // Nothing was written, so what ends it at its drop is no loss.
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

    /// Whether damage was found since it was opened.
    pub(super) fn is_damaged(&self) -> bool {
        suspect(&self.path).exists()
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A transaction that panicked was rolled back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is found damaged is looked at when the store is opened the next time.
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
    /// Closing brings over what lies in the log, and begins a new one the next time: five syncs in all, for which a warm run
    /// has no time. So most processes leave their log as it is.
    fn drop(&mut self) {
        let is_long = fs::metadata(with_suffix(&self.path, "-wal")).is_ok_and(|log| log.len() > LOG_BYTES);
        if is_long
            && let Err(error) = self.connection().set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
        {
            tracing::debug!(%error, "the index's log is left to the next process");
        }
    }
}

/// The current epoch: see [`super::lease`].
pub(super) fn epoch(connection: &Connection) -> rusqlite::Result<u64> {
    connection.prepare_cached("SELECT value FROM counters WHERE name = 'epoch'")?.query_row([], |row| row.get(0))
}

/// Forgets every stack that has a layer without a row, and every name of a snapshot that has no row. Tells how many
/// snapshots.
pub(super) fn forget_broken(transaction: &Transaction<'_>) -> rusqlite::Result<usize> {
    let snapshots = snapshots::forget_broken(transaction, "snapshots")?;
    snapshots::forget_broken(transaction, "sources")?;
    snapshots::forget_broken(transaction, "images")?;
    cache::forget_broken(transaction)?;
    kept::forget_broken(transaction)?;
    Ok(snapshots)
}

/// Remembers, for people, what was removed after a process died.
pub(super) fn note_reaped(transaction: &Transaction<'_>, reaped: &[(&str, usize)]) -> rusqlite::Result<()> {
    let now = now_ms();
    let mut insert = transaction.prepare_cached("INSERT INTO reaped (what, at, count) VALUES (?, ?, ?)")?;
    reaped.iter().try_for_each(|(what, count)| insert.execute(rusqlite::params![what, now, count]).map(drop))
}

/// Now, as rows have it. A clock that stands before the epoch says 0.
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // SQLite's own files are for everybody, as far as the umask lets them be; what it makes beside a file is
    // like that.
    if let Err(error) = make_private(path) {
        tracing::debug!(%error, path = %path.display(), "SQLite tells what is wrong");
    }
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    if schema::is_empty(&connection)? {
        // What is forgotten is given back. On an index with tables it would have no effect, but write to it.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A power cut takes the last transactions, and nothing before them; what they said is not on the disk either.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    // See `Index::drop`.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    schema::migrate(&mut connection)?;
    Ok(connection)
}

/// Makes an empty file for its owner alone, unless there is one.
fn make_private(path: &Path) -> std::io::Result<()> {
    fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
}

/// The mark of an index in which damage was found.
fn suspect(path: &Path) -> PathBuf {
    path.with_extension("damaged")
}

fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(error, _) => {
            // Unknown: a table or a column that is not there. It is somebody else's database, or half of ours.
            matches!(error.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
        }
        rusqlite::Error::SqlInputError { .. }
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..) => true,
        _ => false,
    }
}

/// Moves the index, and the files that SQLite has beside it, out of the way.
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
        "the store's index was damaged: a new one is begun, and what the cache had is made again"
    );
    Ok(())
}

/// SQLite does not always tell that it was for want of space that a file could not be made or grow.
fn is_full(code: ErrorCode, path: &Path) -> bool {
    let no_space = || Filesystem::of(path.parent().unwrap_or(path)).is_ok_and(|of| of.free_bytes < NEARLY_NOTHING);
    code == ErrorCode::DiskFull || matches!(code, ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) && no_space()
}

/// The path of what SQLite has beside the index.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn failed(path: &Path, error: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match error {
        rusqlite::Error::IntegralValueOutOfRange(_, version) => {
            StoreError::Corrupt { path, reason: format!("it is of version {version}, which a later hm wrote") }
        }
        rusqlite::Error::SqliteFailure(inner, _) if is_full(inner.code, &path) => {
            StoreError::Full { path, source: std::io::Error::other(error) }
        }
        error => StoreError::Io { doing: "use the index", path, source: std::io::Error::other(error) },
    }
}
