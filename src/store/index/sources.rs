//! Rows of frozen sources.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{
    layers, now_ms,
    snapshots::{parse_stack, stack},
};
use crate::store::{LayerId, SourceId};

/// Names a stack of layers after a source. The layers must have rows already.
pub(in crate::store) fn put(transaction: &Transaction<'_>, id: &SourceId, layers: &[LayerId]) -> rusqlite::Result<()> {
    let mut insert = transaction
        .prepare_cached("INSERT OR REPLACE INTO sources (id, stack, created_at, used_at) VALUES (?1, ?2, ?3, ?3)")?;
    insert.execute(params![id.as_str(), stack(layers), now_ms()]).map(drop)
}

/// The layers of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct SourceRow {
    /// The layers, topmost first.
    pub(in crate::store) stack: Vec<LayerId>,
    /// The time of the last use, in milliseconds since the Unix epoch.
    pub(in crate::store) used_at: i64,
    /// Whether it is removed unless a caller [touches](touch) it.
    pub(in crate::store) is_doomed: bool,
}

/// Returns the layers of a source.
pub(in crate::store) fn get(connection: &Connection, id: &SourceId) -> rusqlite::Result<Option<SourceRow>> {
    let mut select =
        connection.prepare_cached("SELECT stack, used_at, doomed IS NOT NULL FROM sources WHERE id = ?")?;
    let read = |row: &rusqlite::Row<'_>| {
        let stack = parse_stack(0, row.get_ref(0)?.as_str()?)?;
        Ok(SourceRow { stack, used_at: row.get(1)?, is_doomed: row.get(2)? })
    };
    select.query_row([id.as_str()], read).optional()
}

/// Records that a source was just used, which cancels its doom. Returns false if the source, or a layer of
/// it, is gone.
pub(in crate::store) fn touch(
    transaction: &Transaction<'_>,
    id: &SourceId,
    stack: &[LayerId],
) -> rusqlite::Result<bool> {
    for layer in stack {
        if !layers::spare(transaction, layer)? {
            return Ok(false);
        }
    }
    let mut update = transaction.prepare_cached("UPDATE sources SET used_at = ?, doomed = NULL WHERE id = ?")?;
    Ok(update.execute(params![now_ms(), id.as_str()])? > 0)
}
