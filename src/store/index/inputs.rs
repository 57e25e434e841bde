//! Rows of the digests of files that steps took over from others.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::store::SourceId;

/// What a digest is of.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct InputRow<'a> {
    /// The id of the snapshot.
    pub(in crate::store) snapshot: &'a str,
    pub(in crate::store) source: &'a SourceId,
    pub(in crate::store) path: &'a str,
}

/// Returns a digest.
pub(in crate::store) fn get(connection: &Connection, row: InputRow<'_>) -> rusqlite::Result<Option<[u8; 32]>> {
    let mut select =
        connection.prepare_cached("SELECT digest FROM input_digests WHERE snapshot = ? AND source = ? AND path = ?")?;
    select.query_row(params![row.snapshot, row.source.as_str(), row.path], |row| row.get(0)).optional()
}

/// Adds a digest, if the index has the snapshot.
pub(in crate::store) fn put(
    transaction: &Transaction<'_>,
    row: InputRow<'_>,
    digest: &[u8; 32],
) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached(
        "INSERT OR REPLACE INTO input_digests (snapshot, source, path, digest)
         SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM snapshots WHERE id = ?1)",
    )?;
    insert.execute(params![row.snapshot, row.source.as_str(), row.path, digest]).map(drop)
}

/// Forgets the digests of snapshots and sources that the index no longer has.
pub(super) fn forget_orphans(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let delete = "DELETE FROM input_digests
                  WHERE snapshot NOT IN (SELECT id FROM snapshots) OR source NOT IN (SELECT id FROM sources)";
    transaction.execute(delete, []).map(drop)
}
