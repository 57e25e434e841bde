//! Rows of runs.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use rusqlite::{Connection, OptionalExtension, Params, Row, Transaction, params};
use uuid::Uuid;

use super::now_ms;
use crate::store::{NewRun, Run};

const COLUMNS: &str = "SELECT id, source_dir, pipeline, started_at, ended_at, exit_code FROM runs";

/// Adds a run that is in progress.
pub(in crate::store) fn begin(transaction: &Transaction<'_>, run: &NewRun<'_>) -> rusqlite::Result<()> {
    let NewRun { id, source_dir, pipeline, started_at } = run;
    let mut insert = transaction
        .prepare_cached("INSERT OR REPLACE INTO runs (id, source_dir, pipeline, started_at) VALUES (?, ?, ?, ?)")?;
    insert.execute(params![id.to_string(), bytes(source_dir), pipeline, started_at]).map(drop)
}

/// Records the end of a run.
pub(in crate::store) fn end(transaction: &Transaction<'_>, id: Uuid, exit_code: i32) -> rusqlite::Result<()> {
    let mut update = transaction.prepare_cached("UPDATE runs SET ended_at = ?, exit_code = ? WHERE id = ?")?;
    update.execute(params![now_ms(), exit_code, id.to_string()]).map(drop)
}

/// Returns the runs of a source directory, newest first. If a pipeline is named, returns only its runs.
pub(in crate::store) fn of(
    connection: &Connection,
    source_dir: &Path,
    pipeline: Option<&str>,
    limit: u32,
) -> rusqlite::Result<Vec<Run>> {
    let filter = "WHERE source_dir = ?1 AND (?2 IS NULL OR pipeline = ?2) ORDER BY number DESC LIMIT ?3";
    select(connection, filter, params![bytes(source_dir), pipeline, limit])
}

/// Returns the runs whose ids begin with `prefix`, newest first.
pub(in crate::store) fn starting_with(connection: &Connection, prefix: &str, limit: u32) -> rusqlite::Result<Vec<Run>> {
    let filter = "WHERE substr(id, 1, length(?1)) = ?1 ORDER BY number DESC LIMIT ?2";
    select(connection, filter, params![prefix, limit])
}

/// Returns one run.
pub(in crate::store) fn get(connection: &Connection, id: Uuid) -> rusqlite::Result<Option<Run>> {
    let mut select = connection.prepare_cached(&format!("{COLUMNS} WHERE id = ?"))?;
    select.query_row([id.to_string()], read).optional()
}

/// Forgets a run.
pub(in crate::store) fn remove(transaction: &Transaction<'_>, id: Uuid) -> rusqlite::Result<()> {
    transaction.prepare_cached("DELETE FROM runs WHERE id = ?")?.execute([id.to_string()]).map(drop)
}

fn select(connection: &Connection, filter: &str, values: impl Params) -> rusqlite::Result<Vec<Run>> {
    connection.prepare_cached(&format!("{COLUMNS} {filter}"))?.query_map(values, read)?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<Run> {
    Ok(Run {
        id: row.get_ref(0)?.as_str()?.parse().unwrap_or_default(),
        source_dir: OsString::from_vec(row.get(1)?).into(),
        pipeline: row.get(2)?,
        started_at: row.get(3)?,
        ended_at: row.get(4)?,
        exit_code: row.get(5)?,
    })
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
