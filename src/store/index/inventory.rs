//! Everything that has a name or is in a stack, for garbage collection and `du`.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::{layers, snapshots::parse_stack};
use crate::store::LayerId;

/// The rows that determine what is kept, and why.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in crate::store) struct Inventory {
    pub(in crate::store) layers: BTreeMap<LayerId, LayerFacts>,
    pub(in crate::store) snapshots: Vec<SnapshotFacts>,
    pub(in crate::store) cached: Vec<CachedFacts>,
    pub(in crate::store) inspected: Vec<InspectedFacts>,
    pub(in crate::store) sources: Vec<SourceFacts>,
    pub(in crate::store) images: Vec<ImageFacts>,
    pub(in crate::store) cache_dirs: Vec<CacheDirFacts>,
}

/// A layer on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct LayerFacts {
    /// In the form of [`super::LayerKind::as_str`].
    pub(in crate::store) kind: String,
    pub(in crate::store) bytes: u64,
    pub(in crate::store) doomed: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct SnapshotFacts {
    pub(in crate::store) id: String,
    pub(in crate::store) base: String,
    pub(in crate::store) source: String,
    pub(in crate::store) stack: Vec<LayerId>,
    pub(in crate::store) doomed: Option<u64>,
}

/// A cached step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct CachedFacts {
    pub(in crate::store) key: [u8; 32],
    pub(in crate::store) snapshot: String,
    pub(in crate::store) pipeline: String,
    pub(in crate::store) step: String,
    pub(in crate::store) used_at: i64,
}

/// The snapshot of a run's step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct InspectedFacts {
    pub(in crate::store) run: Uuid,
    pub(in crate::store) step: String,
    pub(in crate::store) snapshot: String,
    pub(in crate::store) created_at: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct SourceFacts {
    pub(in crate::store) id: String,
    pub(in crate::store) stack: Vec<LayerId>,
    pub(in crate::store) used_at: i64,
    pub(in crate::store) doomed: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct ImageFacts {
    pub(in crate::store) digest: String,
    pub(in crate::store) id_map: String,
    pub(in crate::store) stack: Vec<LayerId>,
    pub(in crate::store) used_at: i64,
    pub(in crate::store) doomed: Option<u64>,
}

/// A cache directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct CacheDirFacts {
    pub(in crate::store) key: [u8; 32],
    pub(in crate::store) stack: Vec<LayerId>,
    pub(in crate::store) used_at: i64,
    pub(in crate::store) doomed: Option<u64>,
}

/// Reads the inventory in a consistent state. Takes a few microseconds for each row.
pub(in crate::store) fn read(connection: &Connection) -> rusqlite::Result<Inventory> {
    let layer = |row: &Row<'_>| {
        let facts = LayerFacts { kind: row.get(1)?, bytes: row.get(2)?, doomed: row.get(3)? };
        Ok((layers::id_of(row)?, facts))
    };
    let snapshot = |row: &Row<'_>| {
        Ok(SnapshotFacts {
            id: row.get(0)?,
            base: row.get(1)?,
            source: row.get(2)?,
            stack: stack(row, 3)?,
            doomed: row.get(4)?,
        })
    };
    let cached = |row: &Row<'_>| {
        Ok(CachedFacts {
            key: row.get(0)?,
            snapshot: row.get(1)?,
            pipeline: row.get(2)?,
            step: row.get(3)?,
            used_at: row.get(4)?,
        })
    };
    let left = |row: &Row<'_>| {
        let run = row.get_ref(0)?.as_str()?.parse().unwrap_or_default();
        Ok(InspectedFacts { run, step: row.get(1)?, snapshot: row.get(2)?, created_at: row.get(3)? })
    };
    let source = |row: &Row<'_>| {
        Ok(SourceFacts { id: row.get(0)?, stack: stack(row, 1)?, used_at: row.get(2)?, doomed: row.get(3)? })
    };
    let image = |row: &Row<'_>| {
        Ok(ImageFacts {
            digest: row.get(0)?,
            id_map: row.get(1)?,
            stack: stack(row, 2)?,
            used_at: row.get(3)?,
            doomed: row.get(4)?,
        })
    };
    let cache_dir = |row: &Row<'_>| {
        Ok(CacheDirFacts { key: row.get(0)?, stack: stack(row, 1)?, used_at: row.get(2)?, doomed: row.get(3)? })
    };
    Ok(Inventory {
        layers: rows(connection, "SELECT id, kind, bytes, doomed FROM layers", layer)?.into_iter().collect(),
        snapshots: rows(connection, "SELECT id, base, source, stack, doomed FROM snapshots", snapshot)?,
        cached: rows(connection, "SELECT key, snapshot, pipeline, step, used_at FROM cache", cached)?,
        inspected: rows(connection, "SELECT run, step, snapshot, created_at FROM kept", left)?,
        sources: rows(connection, "SELECT id, stack, used_at, doomed FROM sources", source)?,
        images: rows(connection, "SELECT digest, id_map, stack, used_at, doomed FROM images", image)?,
        cache_dirs: rows(connection, "SELECT key, stack, used_at, doomed FROM cache_dirs", cache_dir)?,
    })
}

fn rows<T>(
    connection: &Connection,
    select: &str,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    connection.prepare_cached(select)?.query_map([], read)?.collect()
}

fn stack(row: &Row<'_>, column: usize) -> rusqlite::Result<Vec<LayerId>> {
    parse_stack(column, row.get_ref(column)?.as_str()?)
}
