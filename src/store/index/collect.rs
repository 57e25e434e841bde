//! The writes of garbage collection: dooms, epochs, and a history of what was removed.

use std::collections::{BTreeMap, HashSet};

use rusqlite::{Connection, Transaction, params};

use super::inventory::Inventory;
use crate::store::LayerId;

/// A cached step that is removed.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Eviction<'a> {
    pub(in crate::store) key: &'a [u8; 32],
    pub(in crate::store) step: &'a str,
    pub(in crate::store) bytes: u64,
    pub(in crate::store) cause: &'a str,
}

/// Forgets a cached step, and records the eviction.
pub(in crate::store) fn evict(transaction: &Transaction<'_>, now: i64, eviction: Eviction<'_>) -> rusqlite::Result<()> {
    super::cache::remove(transaction, eviction.key)?;
    let mut insert = transaction
        .prepare_cached("INSERT OR REPLACE INTO evictions (key, step, bytes, at, cause) VALUES (?, ?, ?, ?, ?)")?;
    let Eviction { key, step, bytes, cause } = eviction;
    insert.execute(params![key, step, bytes, now, cause]).map(drop)
}

/// Dooms a source.
pub(in crate::store) fn doom_source(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<()> {
    let epoch = super::epoch(transaction)?;
    transaction.prepare_cached("UPDATE sources SET doomed = ? WHERE id = ?")?.execute(params![epoch, id]).map(drop)
}

/// Dooms an image.
pub(in crate::store) fn doom_image(transaction: &Transaction<'_>, digest: &str, id_map: &str) -> rusqlite::Result<()> {
    let epoch = super::epoch(transaction)?;
    let mut update = transaction.prepare_cached("UPDATE images SET doomed = ? WHERE digest = ? AND id_map = ?")?;
    update.execute(params![epoch, digest, id_map]).map(drop)
}

/// Dooms a cache directory.
pub(in crate::store) fn doom_cache_dir(transaction: &Transaction<'_>, key: &[u8; 32]) -> rusqlite::Result<()> {
    let epoch = super::epoch(transaction)?;
    transaction.prepare_cached("UPDATE cache_dirs SET doomed = ? WHERE key = ?")?.execute(params![epoch, key]).map(drop)
}

/// Dooms every snapshot without a name and every layer without a stack. Cancels the doom of those that are
/// used again: an image that a snapshot is based on, a layer in a stack.
pub(in crate::store) fn reconcile(transaction: &Transaction<'_>, inventory: &Inventory) -> rusqlite::Result<()> {
    let epoch = super::epoch(transaction)?;
    let named: HashSet<&str> = inventory.cached.iter().map(|row| row.snapshot.as_str()).collect();
    let left: HashSet<&str> = inventory.inspected.iter().map(|row| row.snapshot.as_str()).collect();
    let mut wanted: HashSet<&LayerId> = HashSet::new();
    let mut bases: HashSet<&str> = HashSet::new();
    let mut doom = transaction.prepare_cached("UPDATE snapshots SET doomed = ? WHERE id = ?")?;
    for row in &inventory.snapshots {
        let is_named = named.contains(row.id.as_str()) || left.contains(row.id.as_str());
        if is_named {
            wanted.extend(&row.stack);
            bases.insert(&row.base);
        }
        if is_named == row.doomed.is_some() {
            doom.execute(params![(!is_named).then_some(epoch), row.id])?;
        }
    }
    let sources = inventory.sources.iter().filter(|row| row.doomed.is_none());
    wanted.extend(sources.flat_map(|row| &row.stack));
    let cache_dirs = inventory.cache_dirs.iter().filter(|row| row.doomed.is_none());
    wanted.extend(cache_dirs.flat_map(|row| &row.stack));
    let mut spare = transaction.prepare_cached("UPDATE images SET doomed = NULL WHERE digest = ?")?;
    for row in &inventory.images {
        let is_base = bases.contains(row.digest.as_str());
        if is_base && row.doomed.is_some() {
            spare.execute([&row.digest])?;
        }
        if is_base || row.doomed.is_none() {
            wanted.extend(&row.stack);
        }
    }
    let mut doom = transaction.prepare_cached("UPDATE layers SET doomed = ? WHERE id = ?")?;
    for (id, row) in &inventory.layers {
        let is_wanted = wanted.contains(id);
        if is_wanted == row.doomed.is_some() {
            doom.execute(params![(!is_wanted).then_some(epoch), id.as_str()])?;
        }
    }
    Ok(())
}

/// Begins a new epoch, and returns the previous one. Leases that are taken later cannot need what is doomed
/// by now.
pub(in crate::store) fn next_epoch(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
    let epoch = super::epoch(transaction)?;
    transaction.execute("UPDATE counters SET value = value + 1 WHERE name = 'epoch'", [])?;
    Ok(epoch)
}

/// Returns the layers that were doomed in an epoch before `end`.
pub(in crate::store) fn doomed_layers(connection: &Connection, end: u64) -> rusqlite::Result<Vec<LayerId>> {
    let mut select = connection.prepare_cached("SELECT id FROM layers WHERE doomed < ?")?;
    select.query_map([end], super::layers::id_of)?.collect()
}

/// Forgets everything except layers that was doomed in an epoch before `end`.
pub(in crate::store) fn forget_doomed(transaction: &Transaction<'_>, end: u64) -> rusqlite::Result<()> {
    for delete in [
        "DELETE FROM snapshots WHERE doomed < ?",
        "DELETE FROM sources WHERE doomed < ?",
        "DELETE FROM images WHERE doomed < ?",
        "DELETE FROM cache_dirs WHERE doomed < ?",
    ] {
        transaction.prepare_cached(delete)?.execute([end])?;
    }
    super::inputs::forget_orphans(transaction)
}

/// Returns the number of doomed layers, and their bytes.
pub(in crate::store) fn doomed(connection: &Connection) -> rusqlite::Result<(usize, u64)> {
    let mut select =
        connection.prepare_cached("SELECT count(*), coalesce(sum(bytes), 0) FROM layers WHERE doomed IS NOT NULL")?;
    select.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Returns whether there is a doomed layer.
pub(in crate::store) fn is_anything_doomed(connection: &Connection) -> rusqlite::Result<bool> {
    let mut select = connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM layers WHERE doomed IS NOT NULL)")?;
    select.query_row([], |row| row.get(0))
}

/// Returns the sources whose manifests may still be needed.
pub(in crate::store) fn sources_with_manifests(connection: &Connection) -> rusqlite::Result<HashSet<String>> {
    let mut select = connection.prepare_cached(
        "SELECT id FROM sources UNION SELECT source FROM snapshots UNION SELECT source FROM cache_dirs",
    )?;
    select.query_map([], |row| row.get(0))?.collect()
}

/// Returns the time of the last garbage collection, in milliseconds since the Unix epoch.
pub(in crate::store) fn collected_at(connection: &Connection) -> rusqlite::Result<i64> {
    let mut select = connection.prepare_cached("SELECT value FROM counters WHERE name = 'collected_at'")?;
    select.query_row([], |row| row.get(0))
}

/// Records the time of a garbage collection.
pub(in crate::store) fn set_collected_at(transaction: &Transaction<'_>, now: i64) -> rusqlite::Result<()> {
    transaction.execute("UPDATE counters SET value = ? WHERE name = 'collected_at'", [now]).map(drop)
}

/// Returns the size of all layers that are not doomed. It is never less than the actual size.
pub(in crate::store) fn layer_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let mut select = connection.prepare_cached("SELECT coalesce(sum(bytes), 0) FROM layers WHERE doomed IS NULL")?;
    select.query_row([], |row| row.get(0))
}

/// The columns with the time when a name was last used.
const USED_AT: [(&str, &str); 6] = [
    ("cache", "used_at"),
    ("cache_dirs", "used_at"),
    ("sources", "used_at"),
    ("images", "used_at"),
    ("traces", "used_at"),
    ("kept", "created_at"),
];

/// Removes a period in which the store was not used, or by which the clock jumped, from the ages of names:
/// those from before `edge` become younger by `shift`, and none become older. Times in the future become
/// `now`.
pub(in crate::store) fn shift_times(
    transaction: &Transaction<'_>,
    now: i64,
    shift: Option<(i64, i64)>,
) -> rusqlite::Result<()> {
    for (table, column) in USED_AT {
        if let Some((edge, shift)) = shift {
            let update = format!("UPDATE {table} SET {column} = max({column}, min({column}, ?) + ?)");
            transaction.execute(&update, [edge, shift])?;
        }
        transaction.execute(&format!("UPDATE {table} SET {column} = ?1 WHERE {column} > ?1"), [now])?;
    }
    Ok(())
}

/// Forgets evictions, tags whose image is gone, and counts of reaped files from before `before`.
pub(in crate::store) fn forget_history(transaction: &Transaction<'_>, before: i64) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM evictions WHERE at < ?", [before])?;
    transaction
        .execute("DELETE FROM tags WHERE fetched_at < ? AND digest NOT IN (SELECT digest FROM images)", [before])?;
    transaction.execute("DELETE FROM reaped WHERE at < ?", [before]).map(drop)
}

/// Returns the numbers of things that were removed after processes died and that were not shown to the user
/// yet, by kind.
pub(in crate::store) fn reaped(connection: &Connection) -> rusqlite::Result<BTreeMap<String, u64>> {
    let mut select = connection.prepare_cached("SELECT what, sum(count) FROM reaped WHERE shown = 0 GROUP BY what")?;
    select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Records that they were shown.
pub(in crate::store) fn mark_reaped_shown(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute("UPDATE reaped SET shown = 1", []).map(drop)
}

/// Returns unused pages to the filesystem, and truncates the write-ahead log. Other processes may be using
/// the index.
pub(in crate::store) fn shrink(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")
}
