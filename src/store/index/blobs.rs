//! The digests of layers and files outside of the store.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{now_ms, snapshots::from_text};
use crate::store::{LayerId, ListDigest, PackedDigests};

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
             blob = ?2, blob_bytes = ?3, chunks = CASE WHEN diff_id = ?1 THEN chunks END WHERE id = ?5",
    )?;
    let PackedDigests { diff_id, blob, size_bytes, blake3 } = packed;
    update.execute(params![diff_id.to_string(), blob.to_string(), size_bytes, blake3, id.as_str()]).map(drop)
}

/// Returns how many bytes a layer takes on the disk, if it has a row.
pub(in crate::store) fn bytes(connection: &Connection, id: &LayerId) -> rusqlite::Result<Option<u64>> {
    let mut select = connection.prepare_cached("SELECT bytes FROM layers WHERE id = ?")?;
    select.query_row([id.as_str()], |row| row.get(0)).optional()
}

/// Returns the digests that a layer got when it was cut into chunks.
pub(in crate::store) fn list(connection: &Connection, id: &LayerId) -> rusqlite::Result<Option<ListDigest>> {
    let mut select = connection.prepare_cached(
        "SELECT diff_id, chunks FROM layers WHERE id = ? AND diff_id IS NOT NULL AND chunks IS NOT NULL",
    )?;
    let read = |row: &Row<'_>| Ok(ListDigest { diff_id: from_text(0, row.get(0)?)?, list: row.get(1)? });
    select.query_row([id.as_str()], read).optional()
}

/// Remembers the list of a layer's chunks if the layer has a row.
pub(in crate::store) fn put_list(
    transaction: &Transaction<'_>,
    id: &LayerId,
    list: &ListDigest,
) -> rusqlite::Result<()> {
    let mut update = transaction.prepare_cached(
        "UPDATE layers SET blob = CASE WHEN diff_id = ?1 THEN blob END, diff_id = ?1, chunks = ?2 WHERE id = ?3",
    )?;
    update.execute(params![list.diff_id.to_string(), list.list, id.as_str()]).map(drop)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ImageDigest;

    /// Returns an index with one layer.
    fn index() -> (rusqlite::Connection, LayerId) {
        let layer = LayerId::parse("0123456789abcdef0123456789abcdef").unwrap();
        let mut connection = Connection::open_in_memory().unwrap();
        super::super::schema::migrate(&mut connection).unwrap();
        connection
            .execute(
                "INSERT INTO layers (id, kind, boot, created_at, bytes, seal, entries)
                 VALUES (?, 'step', 'boot', 0, 7, x'00', 1)",
                [layer.as_str()],
            )
            .unwrap();
        (connection, layer)
    }

    fn packed_as(diff_id: &[u8]) -> PackedDigests {
        PackedDigests { blake3: Some([2; 32]), ..PackedDigests::new(ImageDigest::of(diff_id), [1; 32], 5) }
    }

    fn cut_as(diff_id: &[u8]) -> ListDigest {
        ListDigest { diff_id: ImageDigest::of(diff_id), list: "list".into() }
    }

    fn write(connection: &mut Connection, put: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>) {
        let transaction = connection.transaction().unwrap();
        put(&transaction).unwrap();
        transaction.commit().unwrap();
    }

    #[test]
    fn both_names_of_a_layer_are_known_while_they_name_the_same_tar() {
        for list_first in [true, false] {
            let (mut connection, layer) = index();
            assert_eq!(bytes(&connection, &layer).unwrap(), Some(7));
            assert_eq!((packed(&connection, &layer).unwrap(), list(&connection, &layer).unwrap()), (None, None));
            for of_list in [list_first, !list_first] {
                write(&mut connection, |transaction| match of_list {
                    true => put_list(transaction, &layer, &cut_as(b"tar")),
                    false => put_packed(transaction, &layer, &packed_as(b"tar")),
                });
            }
            assert_eq!(packed(&connection, &layer).unwrap(), Some(packed_as(b"tar")), "{list_first}");
            assert_eq!(list(&connection, &layer).unwrap(), Some(cut_as(b"tar")), "{list_first}");
        }
    }

    #[test]
    fn a_name_of_another_tar_ends_the_older_one() {
        let (mut connection, layer) = index();
        write(&mut connection, |transaction| put_packed(transaction, &layer, &packed_as(b"old")));
        write(&mut connection, |transaction| put_list(transaction, &layer, &cut_as(b"new")));
        assert_eq!(packed(&connection, &layer).unwrap(), None);
        assert_eq!(list(&connection, &layer).unwrap(), Some(cut_as(b"new")));
        write(&mut connection, |transaction| put_packed(transaction, &layer, &packed_as(b"newest")));
        assert_eq!(packed(&connection, &layer).unwrap(), Some(packed_as(b"newest")));
        assert_eq!(list(&connection, &layer).unwrap(), None);
    }
}
