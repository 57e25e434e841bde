//! Rows of layers.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params, types::Type};

use super::now_ms;
use crate::store::{LayerId, tree::Seal};

/// The kind of a layer's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store) enum LayerKind {
    /// The changes of a step.
    Step,
    /// A source tree, or its difference from another.
    Source,
    /// A part of an image.
    Image,
    /// The content of a cache directory, or its changes.
    CacheDir,
}

impl LayerKind {
    /// Returns the kind as it is stored in rows.
    pub(in crate::store) fn as_str(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Source => "source",
            Self::Image => "image",
            Self::CacheDir => "cache_dir",
        }
    }
}

/// A layer that is in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct LayerRow {
    pub(in crate::store) id: LayerId,
    pub(in crate::store) kind: LayerKind,
    pub(in crate::store) seal: Seal,
}

/// Adds a layer, unless it exists. A doomed layer is no longer doomed afterwards.
pub(in crate::store) fn insert(transaction: &Transaction<'_>, boot: &str, layer: &LayerRow) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO layers (id, kind, boot, created_at, bytes, seal, entries) VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET doomed = NULL, kind = excluded.kind",
    )?;
    let LayerRow { id, kind, seal } = layer;
    let Seal { hash, bytes, entries } = seal;
    insert.execute(params![id.as_str(), kind.as_str(), boot, now_ms(), bytes, hash, entries])?;
    Ok(())
}

/// Cancels the doom of a layer that gets a name again. Returns false if there is no such layer.
pub(in crate::store) fn spare(transaction: &Transaction<'_>, id: &LayerId) -> rusqlite::Result<bool> {
    let mut update = transaction.prepare_cached("UPDATE layers SET doomed = NULL WHERE id = ?")?;
    Ok(update.execute([id.as_str()])? > 0)
}

/// Returns whether a layer is doomed.
pub(in crate::store) fn is_doomed(connection: &Connection, id: &LayerId) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM layers WHERE id = ? AND doomed IS NOT NULL)")?
        .query_row([id.as_str()], |row| row.get(0))
}

/// Returns the seal that was recorded when a layer was made, or `None` if there is no such layer.
pub(in crate::store) fn seal(connection: &Connection, id: &LayerId) -> rusqlite::Result<Option<Seal>> {
    let mut select = connection.prepare_cached("SELECT bytes, seal, entries FROM layers WHERE id = ?")?;
    let read = |row: &Row<'_>| Ok(Seal { bytes: row.get(0)?, hash: row.get(1)?, entries: row.get(2)? });
    select.query_row([id.as_str()], read).optional()
}

/// Forgets every layer that was written during another boot and not synced. Returns how many.
pub(in crate::store) fn forget_unsynced(transaction: &Transaction<'_>, boot: &str) -> rusqlite::Result<usize> {
    transaction.execute("DELETE FROM layers WHERE synced = 0 AND boot <> ?", [boot])
}

/// Returns whether there are layers that were written during another boot and not synced.
pub(in crate::store) fn any_of_another_boot(connection: &Connection, boot: &str) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM layers WHERE synced = 0 AND boot <> ?)")?
        .query_row([boot], |row| row.get(0))
}

/// Returns the layers that are not synced. Once the store is open, all of them are from this boot.
pub(in crate::store) fn unsynced(connection: &Connection) -> rusqlite::Result<Vec<LayerId>> {
    let mut select = connection.prepare_cached("SELECT id FROM layers WHERE synced = 0")?;
    select.query_map([], id_of)?.collect()
}

/// Marks layers as synced.
pub(in crate::store) fn mark_synced(transaction: &Transaction<'_>, layers: &[LayerId]) -> rusqlite::Result<()> {
    let mut update = transaction.prepare_cached("UPDATE layers SET synced = 1 WHERE id = ?")?;
    layers.iter().try_for_each(|layer| update.execute([layer.as_str()]).map(drop))
}

/// Returns every layer's id.
pub(in crate::store) fn all(connection: &Connection) -> rusqlite::Result<Vec<LayerId>> {
    connection.prepare_cached("SELECT id FROM layers")?.query_map([], id_of)?.collect()
}

/// Forgets a layer.
pub(in crate::store) fn remove(transaction: &Transaction<'_>, id: &LayerId) -> rusqlite::Result<()> {
    transaction.prepare_cached("DELETE FROM layers WHERE id = ?")?.execute([id.as_str()]).map(drop)
}

/// Returns the id in the first column.
pub(super) fn id_of(row: &Row<'_>) -> rusqlite::Result<LayerId> {
    parse(0, row.get(0)?)
}

/// Parses an id from a row.
pub(super) fn parse(column: usize, text: String) -> rusqlite::Result<LayerId> {
    LayerId::try_from(text).map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into()))
}
