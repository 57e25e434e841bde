//! The digests of layers and files outside of the store.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{now_ms, snapshots::from_text};
use crate::store::{LayerId, PackedDigests};

/// Rows of contents older than this, in milliseconds, are removed. The only cost is that a file is hashed
/// again.
const CONTENTS_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// Returns the digests that a layer got when it was packed.
pub(in crate::store) fn packed(connection: &Connection, id: &LayerId) -> rusqlite::Result<Option<PackedDigests>> {
    let mut select = connection.prepare_cached(
        "SELECT diff_id, blob, blob_bytes, blob_blake3 FROM layers WHERE id = ? AND diff_id IS NOT NULL AND blob IS NOT NULL",
    )?;
    let read = |row: &Row<'_>| {
        Ok(PackedDigests {
            diff_id: from_text(0, row.get(0)?)?,
            blob: from_text(1, row.get(1)?)?,
            size_bytes: row.get(2)?,
            blake3: row.get(3)?,
        })
    };
    select.query_row([id.as_str()], read).optional()
}

/// Remembers the digests of a packed layer if it has a row.
pub(in crate::store) fn put_packed(
    transaction: &Transaction<'_>,
    id: &LayerId,
    packed: &PackedDigests,
) -> rusqlite::Result<()> {
    // The same bytes keep their other name.
    let mut update = transaction.prepare_cached(
        "UPDATE layers SET diff_id = ?1, blob_blake3 = coalesce(?4, CASE WHEN blob = ?2 THEN blob_blake3 END),
             blob = ?2, blob_bytes = ?3 WHERE id = ?5",
    )?;
    let PackedDigests { diff_id, blob, size_bytes, blake3 } = packed;
    update.execute(params![diff_id.to_string(), blob.to_string(), size_bytes, blake3, id.as_str()]).map(drop)
}

/// Returns the SHA-256 of each of some contents, if it is known.
pub(in crate::store) fn sha256(
    connection: &Connection,
    contents: &[[u8; 32]],
) -> rusqlite::Result<Vec<Option<[u8; 32]>>> {
    let mut select = connection.prepare_cached("SELECT sha256 FROM contents WHERE content = ?")?;
    contents.iter().map(|content| select.query_row([content], |row| row.get(0)).optional()).collect()
}

/// Remembers the SHA-256 of contents, and forgets the oldest.
pub(in crate::store) fn put_sha256(
    transaction: &Transaction<'_>,
    known: &[([u8; 32], [u8; 32])],
) -> rusqlite::Result<()> {
    let now = now_ms();
    transaction.execute("DELETE FROM contents WHERE made_at < ?", [now - CONTENTS_MS])?;
    let mut insert =
        transaction.prepare_cached("INSERT OR REPLACE INTO contents (content, sha256, made_at) VALUES (?, ?, ?)")?;
    known.iter().try_for_each(|(content, sha256)| insert.execute(params![content, sha256, now]).map(drop))
}
