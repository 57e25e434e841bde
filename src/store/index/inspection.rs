//! Rows of snapshots that are kept for inspection.

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use uuid::Uuid;

use super::now_ms;

/// Keeps a snapshot under the name of a run's step.
pub(in crate::store) fn put(
    transaction: &Transaction<'_>,
    run: Uuid,
    step: &str,
    snapshot: &str,
    passed: bool,
) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached(
        "INSERT OR REPLACE INTO kept (run, step, snapshot, passed, created_at) VALUES (?, ?, ?, ?, ?)",
    )?;
    insert.execute(params![run.to_string(), step, snapshot, passed, now_ms()]).map(drop)
}

/// Returns the snapshot kept for a run's step, and whether the step passed.
pub(in crate::store) fn get(
    connection: &Connection,
    run: Uuid,
    step: &str,
) -> rusqlite::Result<Option<(String, bool)>> {
    let mut select = connection.prepare_cached("SELECT snapshot, passed FROM kept WHERE run = ? AND step = ?")?;
    select.query_row(params![run.to_string(), step], |row| Ok((row.get(0)?, row.get(1)?))).optional()
}

/// Forgets the snapshot kept for a run's step.
pub(in crate::store) fn remove(transaction: &Transaction<'_>, run: Uuid, step: &str) -> rusqlite::Result<()> {
    let mut delete = transaction.prepare_cached("DELETE FROM kept WHERE run = ? AND step = ?")?;
    delete.execute(params![run.to_string(), step]).map(drop)
}

/// Forgets every kept entry whose snapshot has no row. Returns how many.
pub(in crate::store) fn forget_broken(transaction: &Transaction<'_>) -> rusqlite::Result<usize> {
    transaction.execute("DELETE FROM kept WHERE snapshot NOT IN (SELECT id FROM snapshots)", [])
}
