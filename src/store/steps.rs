//! The results of steps: found by cache key, or by run and step for inspection, with the output of cached
//! ones.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, Transaction};
use uuid::Uuid;

use super::{
    Base, IdMap, LayerId, StoreError,
    error::IoContext,
    index::{
        self,
        cache::{CacheHit, CacheRow},
    },
    layers::{LayerCheck, Layers},
    shared::Shared,
    snapshots,
};
use crate::{log_file::compressed_path, model::SnapshotRef};

/// The scope of results in the remote cache, unless the user sets another one.
pub(crate) const DEFAULT_SCOPE: &str = "trusted";

/// The name under which a snapshot is kept.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum KeepAs<'a> {
    /// As the result of a cached step.
    Cached {
        /// The step's cache key.
        key: &'a [u8; 32],
        /// The run that made it.
        run: Uuid,
        /// The pipeline of the run.
        pipeline: &'a str,
        /// The step's key in the pipeline.
        step: &'a str,
        /// When it was made, in milliseconds since the Unix epoch.
        created_at: i64,
    },
    /// As the result of a step that is found by what it read. Such a result never leaves this store.
    Traced {
        /// The key of the result.
        key: &'a [u8; 32],
        /// The run that made it.
        run: Uuid,
        /// The pipeline of the run.
        pipeline: &'a str,
        /// The step's key in the pipeline.
        step: &'a str,
        /// When it was made, in milliseconds since the Unix epoch.
        created_at: i64,
    },
    /// As the final filesystem of a run's step, for inspection.
    ForInspection {
        /// The run.
        run: Uuid,
        /// The step's key in the pipeline.
        step: &'a str,
        /// Whether the step passed.
        passed: bool,
    },
}

/// The result of looking up a cache key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cached {
    /// A snapshot whose layers are all present and unchanged.
    Found {
        /// The snapshot.
        snapshot: SnapshotRef,
        /// The run that made it.
        run: Uuid,
        /// The step's key at that time.
        step: String,
        /// When it was made, in milliseconds since the Unix epoch.
        created_at: i64,
    },
    /// There is no entry.
    Absent,
    /// A snapshot that cannot be relied on.
    Damaged {
        /// The problem.
        reason: String,
    },
}

/// An entry of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CachedStep {
    pub(crate) key: [u8; 32],
    pub(crate) snapshot: SnapshotRef,
    /// The run that made it, its pipeline, and the step's key there.
    pub(crate) run: Uuid,
    pub(crate) pipeline: String,
    pub(crate) step: String,
    /// When it was made, and last used, in milliseconds since the Unix epoch.
    pub(crate) created_at: i64,
    pub(crate) used_at: i64,
    /// Whether it is found by what the step read.
    pub(crate) traced: bool,
}

/// A cached step that garbage collection removed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Evicted {
    /// The size of its layers, in bytes.
    pub bytes: u64,
    /// When it was removed, in milliseconds since the Unix epoch.
    pub at: i64,
    /// The cause: `size`, `space`, `age`, or `asked`.
    pub cause: String,
}

/// The results of steps that a store keeps.
#[derive(Debug)]
pub struct Steps {
    shared: Arc<Shared>,
    layers: Arc<Layers>,
}

/// The index's entry for a cache key.
enum CacheEntry {
    Absent,
    Damaged(String),
    /// The entry, and all layers of its result.
    Found(CacheRow, Vec<LayerId>),
}

/// Reads the entries of cache keys. Nothing says that the layers of a result are unchanged.
pub(crate) struct CacheReader<'a>(&'a Connection);

impl CacheReader<'_> {
    /// Returns the entry of a key, or `None` if there is none, if it is incomplete, or if it cannot be read.
    pub(crate) fn get(&self, key: &[u8; 32]) -> Option<CacheHit> {
        index::cache::find(self.0, key).ok().flatten()
    }
}

impl Steps {
    pub(super) fn new(shared: Arc<Shared>, layers: Arc<Layers>) -> Self {
        Self { shared, layers }
    }

    /// Looks up a cache key. Takes microseconds, plus a walk over each layer that was not checked before.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn cached(&self, key: &[u8; 32]) -> Result<Cached, StoreError> {
        // No walk is longer.
        self.cached_within(key, u64::MAX).map(|cached| cached.unwrap_or(Cached::Absent))
    }

    /// Does the same as [`cached`](Self::cached), but returns `None` if that takes a walk over more than
    /// `entries` files and directories.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn cached_within(&self, key: &[u8; 32], entries: u64) -> Result<Option<Cached>, StoreError> {
        let (entry, unchecked) = self.shared.index.read_at_once(|connection| {
            let entry = entry(connection, key)?;
            let unchecked = match &entry {
                CacheEntry::Found(_, layers) => self.layers.unchecked(connection, layers)?,
                CacheEntry::Absent | CacheEntry::Damaged(_) => Vec::new(),
            };
            Ok((entry, unchecked))
        })?;
        let row = match entry {
            CacheEntry::Absent => return Ok(Some(Cached::Absent)),
            CacheEntry::Damaged(reason) => return Ok(Some(Cached::Damaged { reason })),
            CacheEntry::Found(row, _) => row,
        };
        match self.layers.check(unchecked, entries) {
            LayerCheck::TooMany => return Ok(None),
            LayerCheck::Damaged(reason) => return Ok(Some(Cached::Damaged { reason })),
            LayerCheck::Intact => {}
        }
        Ok(Some(found(row)))
    }

    /// Reads entries in a consistent state, without a look at their layers. Takes microseconds for each.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&CacheReader<'_>) -> T) -> Result<T, StoreError> {
        self.shared.index.read_at_once(|connection| Ok(read(&CacheReader(connection))))
    }

    /// Records that cached steps were just used, so that garbage collection does not remove them first.
    ///
    /// # Errors
    /// Returns an error if the index cannot be written.
    pub fn touch(&self, keys: &[[u8; 32]]) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.shared.index.write(|transaction| index::cache::touch(transaction, keys))
    }

    /// Records when a cached step was last used, as another store tells it.
    pub(crate) fn set_used_at(&self, key: &[u8; 32], used_at: i64) -> Result<(), StoreError> {
        self.shared.index.write(|transaction| index::cache::set_used_at(transaction, key, used_at))
    }

    /// Returns all entries, without a look at their layers.
    pub(crate) fn all(&self) -> Result<Vec<CachedStep>, StoreError> {
        self.shared.index.read(index::cache::all)
    }

    /// Makes this the store of a scope of the remote cache: what one scope brings must not be found in
    /// another. Returns the other scope if it is the store of that one. A store without a scope whose
    /// results were made here is that of the default scope.
    ///
    /// # Errors
    /// Returns an error if the index can be neither read nor written.
    pub(crate) fn claim_scope(&self, scope: &str) -> Result<Option<String>, StoreError> {
        let claimed = self.shared.index.read(index::cache::scope)?;
        if claimed.as_deref() == Some(scope) {
            return Ok(None);
        }
        self.shared.index.write(|transaction| index::cache::claim(transaction, scope, DEFAULT_SCOPE))
    }

    /// Returns the scope of the remote cache whose store this is, if it is known.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub(crate) fn scope(&self) -> Result<Option<String>, StoreError> {
        self.shared.index.read(index::cache::scope)
    }

    /// Returns the layers of the last results of a pipeline's step, topmost first, of at most `most` results.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub(crate) fn last_layers(
        &self,
        pipeline: &str,
        step: &str,
        id_map: IdMap,
        most: u32,
    ) -> Result<Vec<Vec<LayerId>>, StoreError> {
        self.shared.index.read_at_once(|connection| {
            let mut found = Vec::new();
            for id in index::cache::last_of(connection, pipeline, step, most)? {
                let snapshot = index::snapshots::get(connection, &id)?;
                found.extend(snapshot.filter(|it| it.id_map == id_map).map(|it| it.layers));
            }
            Ok(found)
        })
    }

    /// Returns the snapshot of a run's step, and whether the step passed.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn of_run(&self, run: Uuid, step: &str) -> Result<Option<(SnapshotRef, bool)>, StoreError> {
        let kept = self.shared.index.read(|connection| index::inspection::get(connection, run, step))?;
        Ok(kept.map(|(id, passed)| (snapshots::reference(&id), passed)))
    }

    /// Keeps the output of a cached step for as long as the step's entry: as a hard link to `log`, or as a
    /// copy. Keeps nothing if there is no such file. Call this before keeping the entry.
    ///
    /// # Errors
    /// Returns an error if the file can be neither linked nor copied.
    pub fn keep_log(&self, key: &[u8; 32], log: &Path) -> Result<(), StoreError> {
        let place = self.log(key);
        let tmp = self.shared.instance.new_tmp();
        let linked = match fs::hard_link(log, &tmp) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.shared.trash.discard_from(&place)?;
                return self.shared.trash.discard_from(&compressed_path(&place));
            }
            // The file is on another filesystem, or the filesystem does not support hard links.
            Err(_) => fs::copy(log, &tmp).map(drop),
            linked => linked,
        };
        linked.doing("keep", log)?;
        self.put_log(&tmp, &place)
    }

    /// Keeps the output of a cached step as [`keep_log`](Self::keep_log) does, from a file `log` that came
    /// from elsewhere.
    ///
    /// # Errors
    /// Returns an error if the file cannot be put in its place.
    pub(crate) fn import_log(&self, key: &[u8; 32], log: &Path) -> Result<(), StoreError> {
        self.put_log(log, &self.log(key))
    }

    /// Moves a log to its place, and removes the compressed log of an earlier result.
    fn put_log(&self, log: &Path, place: &Path) -> Result<(), StoreError> {
        fs::rename(log, place).doing("make", place)?;
        self.shared.trash.discard_from(&compressed_path(place))
    }

    /// Returns the path of a cached step's output. Open it with [`LogFile`](crate::event::LogFile), because
    /// garbage collection compresses long logs. There is no file if the step printed nothing.
    #[must_use]
    pub fn log(&self, key: &[u8; 32]) -> PathBuf {
        self.shared.paths.log(key)
    }

    /// Returns when and why garbage collection removed the entry of a cache key, if it did.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn evicted(&self, key: &[u8; 32]) -> Result<Option<Evicted>, StoreError> {
        self.shared.index.read(|connection| index::cache::evicted(connection, key))
    }
}

/// Returns the entry of a key.
fn entry(connection: &Connection, key: &[u8; 32]) -> rusqlite::Result<CacheEntry> {
    let Some(row) = index::cache::get(connection, key)? else { return Ok(CacheEntry::Absent) };
    let Some(snapshot) = index::snapshots::get(connection, &row.snapshot)? else {
        return Ok(CacheEntry::Damaged("its snapshot is missing".into()));
    };
    let mut layers = snapshot.layers;
    if let Base::Image(digest) = &snapshot.base {
        let Some((image, _)) = index::images::get(connection, digest, snapshot.id_map)? else {
            return Ok(CacheEntry::Damaged(format!("its image {digest} is missing")));
        };
        layers.extend(image.stack);
    }
    Ok(CacheEntry::Found(row, layers))
}

fn found(row: CacheRow) -> Cached {
    let CacheRow { snapshot, run, step, created_at, .. } = row;
    Cached::Found { snapshot: snapshots::reference(&snapshot), run, step, created_at }
}

/// Gives the snapshot `id` a name.
pub(super) fn name(transaction: &Transaction<'_>, id: &str, name: KeepAs<'_>) -> rusqlite::Result<()> {
    let traced = matches!(name, KeepAs::Traced { .. });
    match name {
        KeepAs::Cached { key, run, pipeline, step, created_at }
        | KeepAs::Traced { key, run, pipeline, step, created_at } => {
            let (snapshot, pipeline, step) = (id.to_owned(), pipeline.to_owned(), step.to_owned());
            index::cache::put(transaction, key, &CacheRow { snapshot, run, pipeline, step, created_at }, traced)
        }
        KeepAs::ForInspection { run, step, passed } => index::inspection::put(transaction, run, step, id, passed),
    }
}
