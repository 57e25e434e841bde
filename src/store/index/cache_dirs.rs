//! Rows of cache directories.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{
    layers, now_ms,
    snapshots::{from_text, parse_stack, stack},
};
use crate::store::{CacheDir, CacheDirName};

/// Names a stack of layers after a cache directory, in place of what has the name. The layers must have rows
/// already.
pub(in crate::store) fn put(
    transaction: &Transaction<'_>,
    name: &CacheDirName,
    content: &CacheDir,
) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached(
        "INSERT OR REPLACE INTO cache_dirs
             (key, name, scope, stack, source, latest_seconds, latest_nanos, created_at, used_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
    )?;
    let CacheDirName { key, name, scope } = name;
    let CacheDir { layers, source, latest } = content;
    insert.execute(params![key, name, scope, stack(layers), source.as_str(), latest.0, latest.1, now_ms()]).map(drop)
}

/// Returns the content of a cache directory, and whether it is removed unless a caller [uses](touch) it.
pub(in crate::store) fn get(connection: &Connection, key: &[u8; 32]) -> rusqlite::Result<Option<(CacheDir, bool)>> {
    let mut select = connection.prepare_cached(
        "SELECT stack, source, latest_seconds, latest_nanos, doomed IS NOT NULL FROM cache_dirs WHERE key = ?",
    )?;
    let read = |row: &rusqlite::Row<'_>| {
        let content = CacheDir {
            layers: parse_stack(0, row.get_ref(0)?.as_str()?)?,
            source: from_text(1, row.get(1)?)?,
            latest: (row.get(2)?, row.get(3)?),
        };
        Ok((content, row.get(4)?))
    };
    select.query_row([key], read).optional()
}

/// Records that a cache directory was just used, and cancels its doom. Returns false if it, or a layer of
/// it, is gone.
pub(in crate::store) fn touch(
    transaction: &Transaction<'_>,
    key: &[u8; 32],
    content: &CacheDir,
) -> rusqlite::Result<bool> {
    for layer in &content.layers {
        if !layers::spare(transaction, layer)? {
            return Ok(false);
        }
    }
    let mut update = transaction.prepare_cached("UPDATE cache_dirs SET used_at = ?, doomed = NULL WHERE key = ?")?;
    Ok(update.execute(params![now_ms(), key])? > 0)
}
