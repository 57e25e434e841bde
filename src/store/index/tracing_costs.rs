//! What tracing steps took, and what it saved.

use rusqlite::{Connection, Row, Transaction, params};

use super::now_ms;
use crate::store::TracingCost;

/// Returns what is known of the steps of a project's pipeline.
pub(in crate::store) fn of(
    connection: &Connection,
    (project, pipeline): (&str, &str),
) -> rusqlite::Result<Vec<(String, TracingCost)>> {
    let mut select = connection.prepare_cached(
        "SELECT step, runs, spent_us, saved_ms, last_ms, left_out FROM tracing_costs WHERE project = ? AND pipeline = ?",
    )?;
    let rows = select.query_map([project, pipeline], |row| Ok((row.get(0)?, of_row(row)?)))?;
    rows.collect()
}

fn of_row(row: &Row<'_>) -> rusqlite::Result<TracingCost> {
    Ok(TracingCost {
        runs: row.get(1)?,
        spent_us: row.get(2)?,
        saved_ms: row.get(3)?,
        last_ms: row.get(4)?,
        left_out: row.get(5)?,
    })
}

/// Replaces what is known of a step.
pub(in crate::store) fn put(
    transaction: &Transaction<'_>,
    (project, pipeline, step): (&str, &str, &str),
    cost: &TracingCost,
) -> rusqlite::Result<()> {
    let TracingCost { runs, spent_us, saved_ms, last_ms, left_out } = *cost;
    let [spent_us, saved_ms, last_ms] =
        [spent_us, saved_ms, last_ms].map(|time| i64::try_from(time).unwrap_or(i64::MAX));
    let mut insert = transaction.prepare_cached(
        "INSERT OR REPLACE INTO tracing_costs (project, pipeline, step, runs, spent_us, saved_ms, last_ms, left_out, used_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    insert.execute(params![project, pipeline, step, runs, spent_us, saved_ms, last_ms, left_out, now_ms()]).map(drop)
}

/// Removes what was not used since a time.
pub(in crate::store) fn expire(transaction: &Transaction<'_>, since: i64) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM tracing_costs WHERE used_at < ?", [since]).map(drop)
}
