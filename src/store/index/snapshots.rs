//! Rows of snapshots.

use rusqlite::{Connection, OptionalExtension, Transaction, params, types::Type};
use serde::{Serialize, de::DeserializeOwned};

use super::{images, layers, now_ms};
use crate::store::{ImageDigest, LayerId, Snapshot};

/// Adds a snapshot. A doomed snapshot is no longer doomed afterwards. One that is there already becomes
/// the given one: with the same id, it shows the same, but may consist of other layers over another
/// source. Its layers must have rows already. `config` is JSON.
pub(in crate::store) fn insert(
    transaction: &Transaction<'_>,
    id: &str,
    snapshot: &Snapshot,
    config: Option<&str>,
) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO snapshots (id, base, source, id_map, stack, around, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (id) DO UPDATE SET doomed = NULL, base = excluded.base, source = excluded.source,
             id_map = excluded.id_map, stack = excluded.stack",
    )?;
    let Snapshot { base, source, layers, id_map } = snapshot;
    let values = params![id, base.to_string(), source.as_str(), to_text(id_map), stack(layers), config, now_ms()];
    insert.execute(values).map(drop)
}

/// Returns how a snapshot's step ran, as JSON.
pub(in crate::store) fn config(connection: &Connection, id: &str) -> rusqlite::Result<Option<String>> {
    let mut select = connection.prepare_cached("SELECT around FROM snapshots WHERE id = ?")?;
    Ok(select.query_row([id], |row| row.get(0)).optional()?.flatten())
}

/// Reads a snapshot.
pub(in crate::store) fn get(connection: &Connection, id: &str) -> rusqlite::Result<Option<Snapshot>> {
    let mut select = connection.prepare_cached("SELECT base, source, id_map, stack FROM snapshots WHERE id = ?")?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(Snapshot {
            base: from_text(0, row.get(0)?)?,
            source: from_text(1, row.get(1)?)?,
            id_map: from_text(2, row.get(2)?)?,
            layers: parse_stack(3, row.get_ref(3)?.as_str()?)?,
        })
    };
    select.query_row([id], read).optional()
}

/// Returns whether there is a snapshot, and the image that it starts from. Does not read their layers.
pub(super) fn is_complete(connection: &Connection, id: &str) -> rusqlite::Result<bool> {
    let mut select = connection.prepare_cached("SELECT base, id_map FROM snapshots WHERE id = ?")?;
    let read = |row: &rusqlite::Row<'_>| {
        let (base, id_map) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
        Ok(!base.starts_with(ImageDigest::PREFIX) || images::has_row(connection, base, id_map)?)
    };
    Ok(select.query_row([id], read).optional()?.unwrap_or(false))
}

/// Forgets every row of `table` that contains a layer without a row. Returns how many.
pub(super) fn forget_broken(transaction: &Transaction<'_>, table: &str) -> rusqlite::Result<usize> {
    let layers = r#"json_each('["' || replace(stack, char(10), '","') || '"]')"#;
    transaction.execute(
        &format!(
            "DELETE FROM {table} WHERE stack <> '' AND EXISTS
                  (SELECT 1 FROM {layers} AS layer WHERE layer.value NOT IN (SELECT id FROM layers))"
        ),
        [],
    )
}

/// Formats a stack of layers for a row.
pub(in crate::store) fn stack(layers: &[LayerId]) -> String {
    layers.iter().map(LayerId::as_str).collect::<Vec<_>>().join("\n")
}

/// Parses a stack of layers from a row.
pub(in crate::store) fn parse_stack(column: usize, text: &str) -> rusqlite::Result<Vec<LayerId>> {
    text.lines().map(|line| layers::parse(column, line.to_owned())).collect()
}

/// Formats a value that serializes to a JSON string, without the quotes.
pub(super) fn to_text(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        other => unreachable!("names are texts: {other:?}"),
    }
}

pub(super) fn from_text<T: DeserializeOwned>(column: usize, text: String) -> rusqlite::Result<T> {
    serde_json::from_value(serde_json::Value::String(text))
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into()))
}
