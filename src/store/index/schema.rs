//! The index's tables, and the migration of an older index to this version.

use rusqlite::{Connection, TransactionBehavior};

/// The entry at position N migrates an index of version N to version N + 1. Append only.
const MIGRATIONS: [&str; 9] = [V1, V2, V3, V4, V5, V6, V7, V8, V9];

/// Times are milliseconds since the Unix epoch. A `stack` is a list of layer ids, topmost first, one per
/// line. Only the rows of layers determine what is on disk. A name whose stack contains a layer without a row
/// is invalid. What is `doomed` is removed when no process is left that may have found it before: see `gc`.
/// It is no longer found by its name, but a snapshot is still found by its id. Keeping it again cancels the
/// doom.
const V1: &str = "
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('epoch', 1);
INSERT INTO counters VALUES ('collected_at', CAST(strftime('%s', 'now') AS INTEGER) * 1000);

CREATE TABLE layers (
    id         TEXT PRIMARY KEY,
    kind       TEXT NOT NULL,                 -- step, source, image
    boot       TEXT NOT NULL,                 -- which boot of the machine wrote it
    synced     INTEGER NOT NULL DEFAULT 0,    -- 1: on the disk for good
    created_at INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,              -- allocated blocks, hard links within the layer counted once
    seal       BLOB NOT NULL,                 -- what the tree looked like: see `seal`
    entries    INTEGER NOT NULL,              -- how many files and directories
    diff_id    TEXT,                          -- the digest of its OCI form, once it was packed
    doomed     INTEGER                        -- the epoch in which the last stack that had it was doomed
) WITHOUT ROWID;
CREATE INDEX layers_unsynced ON layers (boot) WHERE synced = 0;
CREATE INDEX layers_doomed ON layers (doomed) WHERE doomed IS NOT NULL;

CREATE TABLE snapshots (
    id         TEXT PRIMARY KEY,
    base       TEXT NOT NULL,
    source     TEXT NOT NULL,
    id_map     TEXT NOT NULL,
    stack      TEXT NOT NULL,
    around     TEXT,                          -- JSON of what its step had around it besides files
    created_at INTEGER NOT NULL,
    doomed     INTEGER
) WITHOUT ROWID;

CREATE TABLE sources (
    id         TEXT PRIMARY KEY,
    stack      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    used_at    INTEGER NOT NULL,
    doomed     INTEGER
) WITHOUT ROWID;

CREATE TABLE images (
    digest     TEXT NOT NULL,
    id_map     TEXT NOT NULL,
    stack      TEXT NOT NULL,
    config     TEXT NOT NULL,                 -- JSON of the OCI image configuration
    created_at INTEGER NOT NULL,
    used_at    INTEGER NOT NULL,
    doomed     INTEGER,
    PRIMARY KEY (digest, id_map)
) WITHOUT ROWID;

CREATE TABLE tags (
    reference  TEXT PRIMARY KEY,
    manifest   TEXT NOT NULL,                 -- the manifest for this machine
    digest     TEXT NOT NULL,                 -- the image
    fetched_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE cache (
    key        BLOB PRIMARY KEY,
    snapshot   TEXT NOT NULL,
    run        TEXT NOT NULL,
    pipeline   TEXT NOT NULL,
    step       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    used_at    INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE evictions (
    key        BLOB PRIMARY KEY,
    step       TEXT NOT NULL,
    bytes      INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    cause      TEXT NOT NULL                  -- size, space, age, asked
) WITHOUT ROWID;

CREATE TABLE kept (
    run        TEXT NOT NULL,
    step       TEXT NOT NULL,
    snapshot   TEXT NOT NULL,
    passed     INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (run, step)
) WITHOUT ROWID;

CREATE TABLE runs (
    number     INTEGER PRIMARY KEY AUTOINCREMENT, -- their order, whatever the clock said
    id         TEXT NOT NULL UNIQUE,
    source_dir BLOB NOT NULL,
    pipeline   TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at   INTEGER,                       -- NULL: it goes on, or was killed
    exit_code  INTEGER
);
CREATE INDEX runs_of ON runs (source_dir, pipeline);

CREATE TABLE reaped (
    what       TEXT NOT NULL,
    at         INTEGER NOT NULL,
    count      INTEGER NOT NULL,
    shown      INTEGER NOT NULL DEFAULT 0     -- 1: somebody was told
);
";

/// The digests of layers and files outside of the store: those of the packed form, and SHA-256 for contents
/// that we identify by BLAKE3.
const V2: &str = "
ALTER TABLE layers ADD COLUMN blob TEXT;                -- the digest of its packed form, compressed
ALTER TABLE layers ADD COLUMN blob_bytes INTEGER;
CREATE TABLE contents (
    content    BLOB PRIMARY KEY,              -- the hash that manifests have
    sha256     BLOB NOT NULL,
    made_at    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX contents_made ON contents (made_at);
";

/// The names of packed layers at engines that use BLAKE3.
const V3: &str = "
ALTER TABLE layers ADD COLUMN blob_blake3 BLOB;         -- the BLAKE3 of its packed form, once it was computed
";

/// Cache directories of steps: stacks of layers that are part of no snapshot.
const V4: &str = "
CREATE TABLE cache_dirs (
    key            BLOB PRIMARY KEY,
    name           TEXT NOT NULL,
    scope          TEXT NOT NULL,             -- for users
    stack          TEXT NOT NULL,
    source         TEXT NOT NULL,             -- the source that it was committed with
    latest_seconds INTEGER NOT NULL,          -- the latest time that steps saw in that source
    latest_nanos   INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    used_at        INTEGER NOT NULL,
    doomed         INTEGER
) WITHOUT ROWID;
";

/// What steps took over from others: the digest of a path in a snapshot, as a step over a source sees it.
const V5: &str = "
CREATE TABLE input_digests (
    snapshot   TEXT NOT NULL,
    source     TEXT NOT NULL,
    path       TEXT NOT NULL,
    digest     BLOB NOT NULL,
    PRIMARY KEY (snapshot, source, path)
) WITHOUT ROWID;
";

/// What steps read, by what is known before they run: see `docs/design/trace-cache.md`.
const V6: &str = "
CREATE TABLE traces (
    key        BLOB NOT NULL,
    id         BLOB NOT NULL,                 -- the hash of the record
    created_at INTEGER NOT NULL,
    used_at    INTEGER NOT NULL,
    record     BLOB NOT NULL,                 -- last: the others are read without it
    PRIMARY KEY (key, id)
);
CREATE INDEX traces_used ON traces (used_at);
";

/// The names of lists of chunks at engines, and whose results the store has.
const V7: &str = "
ALTER TABLE layers ADD COLUMN chunks TEXT;              -- the digest of the list of its chunks
CREATE TABLE scopes (scope TEXT PRIMARY KEY) WITHOUT ROWID; -- of the remote cache; at most one row
";

/// Which results are found by what their steps read. Those never leave the store.
const V8: &str = "ALTER TABLE cache ADD COLUMN traced INTEGER NOT NULL DEFAULT 0";

/// What tracing steps took, and what it saved.
const V9: &str = "
CREATE TABLE tracing_costs (
    project    TEXT NOT NULL,
    pipeline   TEXT NOT NULL,
    step       TEXT NOT NULL,
    runs       INTEGER NOT NULL,              -- in how many it was traced
    spent_us   INTEGER NOT NULL,
    saved_ms   INTEGER NOT NULL,
    last_ms    INTEGER NOT NULL,              -- how long the last of them took
    left_out   INTEGER NOT NULL,              -- in how many it was left untraced since
    used_at    INTEGER NOT NULL,
    PRIMARY KEY (project, pipeline, step)
) WITHOUT ROWID;
";

/// Migrates the tables to this version.
///
/// # Errors
/// Returns SQLite's error, or [`rusqlite::Error::IntegralValueOutOfRange`] if the index is of a later
/// version.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    if version(connection)? == latest() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&transaction)?;
    let done = usize::try_from(found).ok().filter(|done| *done <= MIGRATIONS.len());
    let done = done.ok_or(rusqlite::Error::IntegralValueOutOfRange(0, found))?;
    for migration in &MIGRATIONS[done..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", latest())?;
    transaction.commit()
}

/// Returns whether there are no tables yet.
///
/// # Errors
/// Returns SQLite's error.
pub(super) fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    Ok(version(connection)? == 0)
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn latest() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}
