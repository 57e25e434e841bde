//! Rows of cached steps.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use uuid::Uuid;

use super::{now_ms, snapshots};
use crate::{
    model::SnapshotRef,
    store::{CachedStep, Evicted, snapshots::reference},
};

/// The snapshot of a cache key, and its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct CacheRow {
    pub(in crate::store) snapshot: String,
    pub(in crate::store) run: Uuid,
    pub(in crate::store) pipeline: String,
    pub(in crate::store) step: String,
    pub(in crate::store) created_at: i64,
}

/// Sets the snapshot of `key`, and replaces any previous one.
pub(in crate::store) fn put(
    transaction: &Transaction<'_>,
    key: &[u8; 32],
    row: &CacheRow,
    traced: bool,
) -> rusqlite::Result<()> {
    let CacheRow { snapshot, run, pipeline, step, created_at } = row;
    let mut insert = transaction.prepare_cached(
        "INSERT OR REPLACE INTO cache (key, snapshot, run, pipeline, step, created_at, used_at, traced)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    insert.execute(params![key, snapshot, run.to_string(), pipeline, step, created_at, now_ms(), traced]).map(drop)
}

/// Returns the entry of `key`.
pub(in crate::store) fn get(connection: &Connection, key: &[u8; 32]) -> rusqlite::Result<Option<CacheRow>> {
    let mut select =
        connection.prepare_cached("SELECT snapshot, run, pipeline, step, created_at FROM cache WHERE key = ?")?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(CacheRow {
            snapshot: row.get(0)?,
            run: row.get_ref(1)?.as_str()?.parse().unwrap_or_default(),
            pipeline: row.get(2)?,
            step: row.get(3)?,
            created_at: row.get(4)?,
        })
    };
    select.query_row([key], read).optional()
}

/// An entry whose snapshot has its rows.
#[derive(Debug)]
pub(crate) struct CacheHit {
    pub(crate) snapshot: SnapshotRef,
    pub(crate) run: Uuid,
    pub(crate) step: Arc<str>,
    /// When the result was made, in milliseconds since the Unix epoch.
    pub(crate) created_at: i64,
    /// The last recorded use, in milliseconds since the Unix epoch.
    pub(crate) used_at: i64,
}

/// Returns the entry of `key` if its snapshot is in the index, and the image that it starts from. Does not
/// read which layers these have.
pub(in crate::store) fn find(connection: &Connection, key: &[u8; 32]) -> rusqlite::Result<Option<CacheHit>> {
    // Not a join: SQLite, with the statistics that the bundled one has, compiles a join anew for each key.
    let mut select =
        connection.prepare_cached("SELECT snapshot, run, step, created_at, used_at FROM cache WHERE key = ?")?;
    let read = |row: &rusqlite::Row<'_>| {
        let id = row.get_ref(0)?.as_str()?;
        if !snapshots::is_complete(connection, id)? {
            return Ok(None);
        }
        Ok(Some(CacheHit {
            snapshot: reference(id),
            run: row.get_ref(1)?.as_str()?.parse().unwrap_or_default(),
            step: row.get_ref(2)?.as_str()?.into(),
            created_at: row.get(3)?,
            used_at: row.get(4)?,
        }))
    };
    Ok(select.query_row([key], read).optional()?.flatten())
}

/// Records that keys were just used.
pub(in crate::store) fn touch(transaction: &Transaction<'_>, keys: &[[u8; 32]]) -> rusqlite::Result<()> {
    let now = now_ms();
    let mut update = transaction.prepare_cached("UPDATE cache SET used_at = ? WHERE key = ?")?;
    keys.iter().try_for_each(|key| update.execute(params![now, key]).map(drop))
}

/// Records when a key was last used.
pub(in crate::store) fn set_used_at(
    transaction: &Transaction<'_>,
    key: &[u8; 32],
    used_at: i64,
) -> rusqlite::Result<()> {
    transaction.prepare_cached("UPDATE cache SET used_at = ? WHERE key = ?")?.execute(params![used_at, key]).map(drop)
}

/// Returns all entries.
pub(in crate::store) fn all(connection: &Connection) -> rusqlite::Result<Vec<CachedStep>> {
    let mut select = connection
        .prepare_cached("SELECT key, snapshot, run, pipeline, step, created_at, used_at, traced FROM cache")?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(CachedStep {
            key: row.get(0)?,
            snapshot: reference(row.get_ref(1)?.as_str()?),
            run: row.get_ref(2)?.as_str()?.parse().unwrap_or_default(),
            pipeline: row.get(3)?,
            step: row.get(4)?,
            created_at: row.get(5)?,
            used_at: row.get(6)?,
            traced: row.get(7)?,
        })
    };
    select.query_map([], read)?.collect()
}

/// Returns the snapshots of the last results of a pipeline's step, the newest first.
pub(in crate::store) fn last_of(
    connection: &Connection,
    pipeline: &str,
    step: &str,
    most: u32,
) -> rusqlite::Result<Vec<String>> {
    let mut select = connection.prepare_cached(
        "SELECT snapshot FROM cache WHERE pipeline = ? AND step = ? ORDER BY created_at DESC, key LIMIT ?",
    )?;
    select.query_map(params![pipeline, step, most], |row| row.get(0))?.collect()
}

/// Returns the scope of the remote cache whose results the store has, if it is known.
pub(in crate::store) fn scope(connection: &Connection) -> rusqlite::Result<Option<String>> {
    connection.query_row("SELECT scope FROM scopes", [], |row| row.get(0)).optional()
}

/// Records that the store has results of a scope, unless it has those of another one, which is returned.
/// Results from before any scope was known are those of `default`.
pub(in crate::store) fn claim(
    transaction: &Transaction<'_>,
    claimed_by: &str,
    default: &str,
) -> rusqlite::Result<Option<String>> {
    if let Some(found) = scope(transaction)? {
        return Ok(Some(found).filter(|found| found != claimed_by));
    }
    let has_results: bool = transaction.query_row(
        "SELECT EXISTS (SELECT 1 FROM cache) OR EXISTS (SELECT 1 FROM cache_dirs)
             OR EXISTS (SELECT 1 FROM snapshots)",
        [],
        |row| row.get(0),
    )?;
    if has_results && claimed_by != default {
        return Ok(Some(default.to_owned()));
    }
    transaction.execute("INSERT INTO scopes (scope) VALUES (?)", [claimed_by]).map(|_| None)
}

/// Forgets a key.
pub(in crate::store) fn remove(transaction: &Transaction<'_>, key: &[u8; 32]) -> rusqlite::Result<()> {
    transaction.prepare_cached("DELETE FROM cache WHERE key = ?")?.execute([key]).map(drop)
}

/// Forgets every key whose snapshot has no row. Returns how many.
pub(in crate::store) fn forget_broken(transaction: &Transaction<'_>) -> rusqlite::Result<usize> {
    transaction.execute("DELETE FROM cache WHERE snapshot NOT IN (SELECT id FROM snapshots)", [])
}

/// Returns the eviction of a key that garbage collection removed.
pub(in crate::store) fn evicted(connection: &Connection, key: &[u8; 32]) -> rusqlite::Result<Option<Evicted>> {
    let mut select = connection.prepare_cached("SELECT bytes, at, cause FROM evictions WHERE key = ?")?;
    select.query_row([key], |row| Ok(Evicted { bytes: row.get(0)?, at: row.get(1)?, cause: row.get(2)? })).optional()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        super::super::schema::migrate(&mut connection).unwrap();
        connection
    }

    fn claimed(connection: &mut Connection, by: &str) -> Option<String> {
        let transaction = connection.transaction().unwrap();
        let other = claim(&transaction, by, "trusted").unwrap();
        transaction.commit().unwrap();
        other
    }

    #[test]
    fn a_store_is_that_of_the_first_scope_and_of_the_default_one_if_it_has_results() {
        let mut new = index();
        assert_eq!(scope(&new).unwrap(), None);
        assert_eq!(claimed(&mut new, "pr-1"), None);
        assert_eq!(claimed(&mut new, "pr-1"), None);
        assert_eq!(claimed(&mut new, "trusted").as_deref(), Some("pr-1"));
        assert_eq!(scope(&new).unwrap().as_deref(), Some("pr-1"));

        let mut used = index();
        used.execute("INSERT INTO cache VALUES (x'00', 'snapshot', 'run', 'ci', 'build', 0, 0, 0)", []).unwrap();
        assert_eq!(claimed(&mut used, "pr-1").as_deref(), Some("trusted"));
        assert_eq!(claimed(&mut used, "trusted"), None);
        assert_eq!(claimed(&mut used, "pr-1").as_deref(), Some("trusted"));
    }
}
