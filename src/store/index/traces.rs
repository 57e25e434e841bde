//! Rows of what steps read, and of what they wrote then.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::now_ms;

/// Returns the records of a key, the last used first, at most `most`.
pub(in crate::store) fn get(connection: &Connection, key: &[u8; 32], most: usize) -> rusqlite::Result<Vec<Vec<u8>>> {
    let mut select =
        connection.prepare_cached("SELECT record FROM traces WHERE key = ? ORDER BY used_at DESC, id LIMIT ?")?;
    select.query_map(params![key, i64::try_from(most).unwrap_or(i64::MAX)], |row| row.get(0))?.collect()
}

/// Returns the id of the record of a key that was added last.
pub(in crate::store) fn newest(connection: &Connection, key: &[u8; 32]) -> rusqlite::Result<Option<[u8; 32]>> {
    let mut select = connection.prepare_cached("SELECT id FROM traces WHERE key = ? ORDER BY rowid DESC LIMIT 1")?;
    select.query_row([key], |row| row.get(0)).optional()
}

/// Returns the record of a key with this id, and when it was last used.
pub(in crate::store) fn find(
    connection: &Connection,
    key: &[u8; 32],
    id: &[u8; 32],
) -> rusqlite::Result<Option<(Vec<u8>, i64)>> {
    let mut select = connection.prepare_cached("SELECT record, used_at FROM traces WHERE key = ? AND id = ?")?;
    select.query_row([key, id], |row| Ok((row.get(0)?, row.get(1)?))).optional()
}

/// Adds a record, or replaces that with its id, and removes all but the `most` last used ones of its key.
pub(in crate::store) fn put(
    transaction: &Transaction<'_>,
    key: &[u8; 32],
    (id, record): (&[u8; 32], &[u8]),
    most: usize,
) -> rusqlite::Result<()> {
    let now = now_ms();
    let mut insert = transaction.prepare_cached(
        "INSERT INTO traces (key, id, record, created_at, used_at) VALUES (?1, ?2, ?3, ?4, ?4)
         ON CONFLICT (key, id) DO UPDATE SET record = ?3, used_at = ?4",
    )?;
    insert.execute(params![key, id, record, now])?;
    let mut trim = transaction.prepare_cached(
        "DELETE FROM traces WHERE key = ?1 AND id NOT IN
             (SELECT id FROM traces WHERE key = ?1 ORDER BY used_at DESC, id = ?3 DESC, id LIMIT ?2)",
    )?;
    trim.execute(params![key, i64::try_from(most).unwrap_or(i64::MAX), id]).map(drop)
}

/// Removes a record.
pub(in crate::store) fn remove(transaction: &Transaction<'_>, key: &[u8; 32], id: &[u8; 32]) -> rusqlite::Result<()> {
    let mut delete = transaction.prepare_cached("DELETE FROM traces WHERE key = ? AND id = ?")?;
    delete.execute(params![key, id]).map(drop)
}

/// Records that a record was just used.
pub(in crate::store) fn touch(transaction: &Transaction<'_>, key: &[u8; 32], id: &[u8; 32]) -> rusqlite::Result<()> {
    let mut update = transaction.prepare_cached("UPDATE traces SET used_at = ? WHERE key = ? AND id = ?")?;
    update.execute(params![now_ms(), key, id]).map(drop)
}

/// Removes the records that were not used since a time, and of the others those that were not used for
/// longest, until the rest has at most so many bytes.
pub(in crate::store) fn expire(transaction: &Transaction<'_>, since: i64, most_bytes: u64) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM traces WHERE used_at < ?", [since])?;
    let mut trim = transaction.prepare_cached(
        "DELETE FROM traces WHERE rowid IN
             (SELECT number FROM
                 (SELECT rowid AS number, sum(length(record)) OVER (ORDER BY used_at DESC, rowid DESC) AS held
                  FROM traces)
              WHERE held > ?)",
    )?;
    trim.execute([i64::try_from(most_bytes).unwrap_or(i64::MAX)]).map(drop)
}

/// Returns the bytes of all records.
pub(in crate::store) fn bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let mut select = connection.prepare_cached("SELECT coalesce(sum(length(record)), 0) FROM traces")?;
    select.query_row([], |row| row.get(0))
}
