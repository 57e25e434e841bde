//! Rows of images, and of the images that tags resolved to.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{
    layers, now_ms,
    snapshots::{parse_stack, stack, to_text},
};
use crate::store::{IdMap, ImageDigest, LayerId};

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageRow {
    /// The layers, topmost first.
    pub(crate) stack: Vec<LayerId>,
    /// The configuration, byte for byte.
    pub(crate) config: String,
}

/// Cancels the doom of an image. Returns false if the image, or a layer of it, is gone.
pub(in crate::store) fn spare(
    transaction: &Transaction<'_>,
    digest: &ImageDigest,
    id_map: IdMap,
    stack: &[LayerId],
) -> rusqlite::Result<bool> {
    for layer in stack {
        if !layers::spare(transaction, layer)? {
            return Ok(false);
        }
    }
    let mut update = transaction.prepare_cached("UPDATE images SET doomed = NULL WHERE digest = ? AND id_map = ?")?;
    Ok(update.execute(params![digest.to_string(), to_text(&id_map)])? > 0)
}

/// The last known target of a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TagRow {
    /// The manifest for this machine.
    pub(crate) manifest: ImageDigest,
    /// The image.
    pub(crate) image: ImageDigest,
    /// When the registry was asked, in milliseconds since the Unix epoch.
    pub(crate) fetched_at: i64,
}

/// Names a stack of layers after an image. The layers must have rows already.
pub(in crate::store) fn put(
    transaction: &Transaction<'_>,
    digest: &ImageDigest,
    id_map: IdMap,
    image: &ImageRow,
) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached(
        "INSERT OR REPLACE INTO images (digest, id_map, stack, config, created_at, used_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
    )?;
    let ImageRow { stack: layers, config } = image;
    insert.execute(params![digest.to_string(), to_text(&id_map), stack(layers), config, now_ms()]).map(drop)
}

/// Returns the layers of an image, its configuration, and whether it is removed unless a caller
/// [spares](spare) it.
pub(in crate::store) fn get(
    connection: &Connection,
    digest: &ImageDigest,
    id_map: IdMap,
) -> rusqlite::Result<Option<(ImageRow, bool)>> {
    let mut select = connection
        .prepare_cached("SELECT stack, config, doomed IS NOT NULL FROM images WHERE digest = ? AND id_map = ?")?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok((ImageRow { stack: parse_stack(0, row.get_ref(0)?.as_str()?)?, config: row.get(1)? }, row.get(2)?))
    };
    select.query_row(params![digest.to_string(), to_text(&id_map)], read).optional()
}

/// Returns whether there is a row for an image, whose digest and mapping of owners are given as in a row.
pub(super) fn has_row(connection: &Connection, digest: &str, id_map: &str) -> rusqlite::Result<bool> {
    let mut select = connection.prepare_cached("SELECT 1 FROM images WHERE digest = ? AND id_map = ?")?;
    select.exists([digest, id_map])
}

/// Returns whether there is such an image, with any mapping of owners.
pub(in crate::store) fn exists(connection: &Connection, digest: &ImageDigest) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM images WHERE digest = ? AND doomed IS NULL)")?
        .query_row([digest.to_string()], |row| row.get(0))
}

/// Records that an image was just used.
pub(in crate::store) fn touch(
    transaction: &Transaction<'_>,
    digest: &ImageDigest,
    id_map: IdMap,
) -> rusqlite::Result<()> {
    let mut update = transaction.prepare_cached("UPDATE images SET used_at = ? WHERE digest = ? AND id_map = ?")?;
    update.execute(params![now_ms(), digest.to_string(), to_text(&id_map)]).map(drop)
}

/// Remembers the target of a tag.
pub(in crate::store) fn put_tag(transaction: &Transaction<'_>, reference: &str, tag: &TagRow) -> rusqlite::Result<()> {
    let mut insert = transaction
        .prepare_cached("INSERT OR REPLACE INTO tags (reference, manifest, digest, fetched_at) VALUES (?, ?, ?, ?)")?;
    let TagRow { manifest, image, fetched_at } = tag;
    insert.execute(params![reference, manifest.to_string(), image.to_string(), fetched_at]).map(drop)
}

/// Returns the tag that was last resolved to an image, if there is one.
pub(in crate::store) fn tag_of(
    connection: &Connection,
    image: &ImageDigest,
) -> rusqlite::Result<Option<(String, TagRow)>> {
    use super::snapshots::from_text;
    let mut select = connection.prepare_cached(
        // A restore asks for an image by its digest. That name says nothing about a tag.
        "SELECT reference, manifest, fetched_at FROM tags WHERE digest = ?
         ORDER BY instr(reference, '@') > 0, fetched_at DESC, reference LIMIT 1",
    )?;
    let read = |row: &rusqlite::Row<'_>| {
        let manifest = from_text(1, row.get(1)?)?;
        Ok((row.get(0)?, TagRow { manifest, image: *image, fetched_at: row.get(2)? }))
    };
    select.query_row([image.to_string()], read).optional()
}

/// Returns the last known target of a tag.
pub(in crate::store) fn tag(connection: &Connection, reference: &str) -> rusqlite::Result<Option<TagRow>> {
    use super::snapshots::from_text;
    let mut select = connection.prepare_cached("SELECT manifest, digest, fetched_at FROM tags WHERE reference = ?")?;
    let read = |row: &rusqlite::Row<'_>| {
        let (manifest, image) = (from_text(0, row.get(0)?)?, from_text(1, row.get(1)?)?);
        Ok(TagRow { manifest, image, fetched_at: row.get(2)? })
    };
    select.query_row([reference], read).optional()
}
