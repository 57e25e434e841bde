//! Snapshots that outlive their run: kept under a name, found again, and checked before they are used.

use std::{
    collections::HashSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, atomic::Ordering},
};

use rusqlite::Connection;
use uuid::Uuid;

#[cfg(feature = "registry")]
use super::index::images::TagRow;
use super::{
    Base, IdMap, ImageDigest, LayerId, SourceId, Store, StoreError,
    error::Doing,
    index::{self, LayerKind, LayerRow, cache::CacheRow, images::ImageRow},
    snapshot::{SCHEME, id_of},
    tree,
};
use crate::model::SnapshotRef;

/// A use is not recorded if the last recorded one is more recent than this, in milliseconds.
const FRESH_MS: i64 = 60 * 60 * 1000;

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
    /// As the final filesystem of a run's step, for inspection.
    Left {
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

/// The index's entry for a cache key.
enum Row {
    Absent,
    Damaged(String),
    Found(CacheRow, Vec<Made>),
}

/// A layer, and its seal if it has a row.
type Made = (LayerId, Option<tree::Seal>);

/// The result of checking layers.
enum Checked {
    Whole,
    Damaged(String),
    TooMuch,
}

/// Layers that were found intact since the store was opened.
#[derive(Debug, Default)]
pub(super) struct Intact(Mutex<HashSet<LayerId>>);

impl Store {
    /// Keeps a snapshot of this process, or one that is already kept, under a name. From then on only
    /// [garbage collection](Store::gc) removes it. Takes as long as walking the layers that were not kept
    /// before.
    ///
    /// # Errors
    /// Returns an error if there is no such snapshot, or if the index cannot be written. Nothing is kept
    /// then.
    pub fn keep(&self, snapshot: &SnapshotRef, name: KeepAs<'_>) -> Result<(), StoreError> {
        let id = id_of(snapshot).ok_or_else(|| self.unknown(snapshot))?;
        let found = self.snapshot(snapshot)?;
        let rows = self.missing_rows(&found.layers, LayerKind::Step)?;
        let around = self.own.surroundings(id).and_then(|around| serde_json::to_string(&*around).ok());
        let spared = self.index.write(|transaction| {
            rows.iter().try_for_each(|row| index::layers::insert(transaction, &self.boot, row))?;
            for layer in &found.layers {
                if !index::layers::spare(transaction, layer)? {
                    return Ok(false);
                }
            }
            index::snapshots::insert(transaction, id, &found, around.as_deref())?;
            match name {
                KeepAs::Cached { key, run, pipeline, step, created_at } => {
                    let (snapshot, pipeline, step) = (id.to_owned(), pipeline.to_owned(), step.to_owned());
                    let row = CacheRow { snapshot, run, pipeline, step, created_at };
                    index::cache::put(transaction, key, &row)?;
                }
                KeepAs::Left { run, step, passed } => index::kept::put(transaction, run, step, id, passed)?,
            }
            Ok(true)
        })?;
        if !spared {
            // The layers were collected in the meantime, which a lease prevents. The files written above have
            // no name and are collected the same way.
            return Err(self.unknown(snapshot));
        }
        self.own.note_kept(&rows);
        self.kept_new.store(true, Ordering::Relaxed);
        Ok(())
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
        let row = self.index.read_at_once(|connection| {
            let Some(row) = index::cache::get(connection, key)? else { return Ok(Row::Absent) };
            let Some(snapshot) = index::snapshots::get(connection, &row.snapshot)? else {
                return Ok(Row::Damaged("its snapshot is missing".into()));
            };
            let mut layers = snapshot.layers;
            if let Base::Image(digest) = &snapshot.base {
                let Some((image, _)) = index::images::get(connection, digest, snapshot.id_map)? else {
                    return Ok(Row::Damaged(format!("its image {digest} is missing")));
                };
                layers.extend(image.stack);
            }
            Ok(Row::Found(row, self.unchecked(connection, &layers)?))
        })?;
        let (row, unchecked) = match row {
            Row::Absent => return Ok(Some(Cached::Absent)),
            Row::Damaged(reason) => return Ok(Some(Cached::Damaged { reason })),
            Row::Found(row, unchecked) => (row, unchecked),
        };
        match self.check(unchecked, entries) {
            Checked::TooMuch => return Ok(None),
            Checked::Damaged(reason) => return Ok(Some(Cached::Damaged { reason })),
            Checked::Whole => {}
        }
        let CacheRow { snapshot, run, step, created_at, .. } = row;
        Ok(Some(Cached::Found { snapshot: SnapshotRef::from(format!("{SCHEME}:{snapshot}")), run, step, created_at }))
    }

    /// Records that cached steps were just used, so that garbage collection does not remove them first.
    ///
    /// # Errors
    /// Returns an error if the index cannot be written.
    pub fn touch(&self, keys: &[[u8; 32]]) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.index.write(|transaction| index::cache::touch(transaction, keys))
    }

    /// Returns the snapshot of a run's step, and whether the step passed.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn left(&self, run: Uuid, step: &str) -> Result<Option<(SnapshotRef, bool)>, StoreError> {
        let kept = self.index.read(|connection| index::kept::get(connection, run, step))?;
        Ok(kept.map(|(id, passed)| (SnapshotRef::from(format!("{SCHEME}:{id}")), passed)))
    }

    /// Returns which part of a snapshot is missing or changed, if any. Takes a walk over each layer that was
    /// not checked before.
    ///
    /// # Errors
    /// Returns an error if there is no such snapshot, or if the index cannot be read.
    pub fn damage_of(&self, snapshot: &SnapshotRef) -> Result<Option<String>, StoreError> {
        self.damage(&self.snapshot(snapshot)?.layers)
    }

    /// Keeps the output of a cached step for as long as the step's entry: as a hard link to `log`, or as a
    /// copy. Keeps nothing if there is no such file. Call this before keeping the entry.
    ///
    /// # Errors
    /// Returns an error if the file can be neither linked nor copied.
    pub fn keep_log(&self, key: &[u8; 32], log: &Path) -> Result<(), StoreError> {
        let place = self.cached_log(key);
        let aside = self.new_tmp();
        let linked = match fs::hard_link(log, &aside) {
            Err(error) if error.kind() == ErrorKind::NotFound => return self.discard_from(&place),
            // The file is on another filesystem, or the filesystem does not support hard links.
            Err(_) => fs::copy(log, &aside).map(drop),
            linked => linked,
        };
        linked.doing("keep", log)?;
        fs::rename(&aside, &place).doing("make", &place)
    }

    /// Returns a random key that only this store has, for hashes that must not reveal their input. It is
    /// created by the first call.
    ///
    /// # Errors
    /// Returns an error if the key can be neither read nor created.
    pub fn secret(&self) -> Result<[u8; 32], StoreError> {
        let path = self.dir().join("secret");
        let read = || fs::read(&path).ok().and_then(|bytes| bytes.try_into().ok());
        if let Some(secret) = read() {
            return Ok(secret);
        }
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let secret = *blake3::hash(&[one.into_bytes(), other.into_bytes()].concat()).as_bytes();
        self.write_file(&path, &secret)?;
        // Another process may have created a key at the same time. The last one written stays.
        Ok(read().unwrap_or(secret))
    }

    /// Returns when and why garbage collection removed the entry of a cache key, if it did.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn evicted(&self, key: &[u8; 32]) -> Result<Option<Evicted>, StoreError> {
        self.index.read(|connection| index::cache::evicted(connection, key))
    }

    /// Returns the path of a cached step's output. There is no file if the step printed nothing.
    #[must_use]
    pub fn cached_log(&self, key: &[u8; 32]) -> PathBuf {
        self.dir().join("logs").join(blake3::Hash::from_bytes(*key).to_hex().as_str())
    }

    /// Returns which part of a kept stack of layers is missing or changed, if any.
    pub(super) fn damage(&self, layers: &[LayerId]) -> Result<Option<String>, StoreError> {
        let unchecked = self.index.read_at_once(|connection| self.unchecked(connection, layers))?;
        // No walk is longer.
        Ok(match self.check(unchecked, u64::MAX) {
            Checked::Damaged(reason) => Some(reason),
            Checked::Whole | Checked::TooMuch => None,
        })
    }

    /// Returns those of some layers that were not checked since the store was opened, with the seals recorded
    /// when they were made.
    fn unchecked(&self, connection: &Connection, layers: &[LayerId]) -> rusqlite::Result<Vec<Made>> {
        let intact = self.intact.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unchecked = layers.iter().filter(|layer| !intact.contains(layer));
        unchecked.map(|layer| Ok((layer.clone(), index::layers::seal(connection, layer)?))).collect()
    }

    /// Checks layers by a walk over at most `entries` files and directories.
    fn check(&self, layers: Vec<Made>, mut entries: u64) -> Checked {
        for (layer, made) in layers {
            let Some(made) = made else { return Checked::Damaged(format!("its layer {layer} is missing")) };
            match entries.checked_sub(made.entries) {
                Some(left) => entries = left,
                None => return Checked::TooMuch,
            }
            match tree::seal(&self.layer_dir(&layer)) {
                Ok(found) if found.hash == made.hash => {}
                Ok(_) => return Checked::Damaged(format!("its layer {layer} was modified")),
                Err(error) => return Checked::Damaged(format!("failed to read its layer {layer}: {error}")),
            }
            self.intact.0.lock().unwrap_or_else(PoisonError::into_inner).insert(layer);
        }
        Checked::Whole
    }

    /// Returns whether a layer with a known name is in its place and either unchanged, or just made and not
    /// kept yet. Layers that were written during another boot and not kept were removed when the store was
    /// opened.
    pub(super) fn is_whole(&self, layer: &LayerId) -> Result<bool, StoreError> {
        if !self.layer_dir(layer).is_dir() {
            return Ok(false);
        }
        let is_kept = self.index.read(|connection| index::layers::seal(connection, layer))?.is_some();
        Ok(!is_kept || (self.damage(std::slice::from_ref(layer))?.is_none() && self.spare(layer)?))
    }

    /// Returns rows for those of some layers that do not have one yet.
    fn missing_rows(&self, layers: &[LayerId], kind: LayerKind) -> Result<Vec<LayerRow>, StoreError> {
        let mut rows = Vec::new();
        for layer in layers {
            if self.index.read(|connection| index::layers::seal(connection, layer))?.is_none() {
                let root = self.layer_dir(layer);
                let seal = tree::seal(&root).doing("read", &root)?;
                rows.push(LayerRow { id: layer.clone(), kind, seal });
            }
        }
        Ok(rows)
    }
}

impl Store {
    /// Names a stack of layers, topmost first, after a source. A layer without a row gets one, after a walk
    /// over it.
    pub(super) fn keep_source(&self, id: &SourceId, layers: &[LayerId]) -> Result<(), StoreError> {
        let rows = self.missing_rows(layers, LayerKind::Source)?;
        self.index.write(|transaction| {
            rows.iter().try_for_each(|row| index::layers::insert(transaction, &self.boot, row))?;
            for layer in layers {
                index::layers::spare(transaction, layer)?;
            }
            index::sources::put(transaction, id, layers)
        })?;
        self.kept_new.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Names a stack of layers after an image. A layer without a row gets one, after a walk over it.
    pub(super) fn keep_image(&self, digest: &ImageDigest, id_map: IdMap, image: &ImageRow) -> Result<(), StoreError> {
        let rows = self.missing_rows(&image.stack, LayerKind::Image)?;
        self.index.write(|transaction| {
            rows.iter().try_for_each(|row| index::layers::insert(transaction, &self.boot, row))?;
            for layer in &image.stack {
                index::layers::spare(transaction, layer)?;
            }
            index::images::put(transaction, digest, id_map, image)
        })?;
        self.kept_new.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Returns whether there is an image of this digest, in any state.
    #[cfg(feature = "registry")]
    pub(super) fn has_image(&self, digest: &ImageDigest) -> Result<bool, StoreError> {
        self.index.read(|connection| index::images::exists(connection, digest))
    }

    /// Returns the image that a tag was last resolved to.
    #[cfg(feature = "registry")]
    pub(super) fn remembered_tag(&self, reference: &str) -> Result<Option<TagRow>, StoreError> {
        self.index.read(|connection| index::images::tag(connection, reference))
    }

    /// Remembers the image that a tag resolves to.
    #[cfg(feature = "registry")]
    pub(super) fn remember_tag(&self, reference: &str, tag: &TagRow) -> Result<(), StoreError> {
        self.index.write(|transaction| index::images::put_tag(transaction, reference, tag))
    }

    /// Records that an image was just used, so that garbage collection does not remove it first.
    pub(super) fn touch_image(&self, digest: &ImageDigest, id_map: IdMap) -> Result<(), StoreError> {
        self.index.write(|transaction| index::images::touch(transaction, digest, id_map))
    }

    /// Returns an image if all of its layers are present and unchanged.
    pub(super) fn kept_image(&self, digest: &ImageDigest, id_map: IdMap) -> Result<Option<ImageRow>, StoreError> {
        let image = self.index.read(|connection| index::images::get(connection, digest, id_map))?;
        let Some((image, is_doomed)) = image else { return Ok(None) };
        if self.damage(&image.stack)?.is_some() {
            return Ok(None);
        }
        let spare = || self.index.write(|transaction| index::images::spare(transaction, digest, id_map, &image.stack));
        Ok(if !is_doomed || spare()? { Some(image) } else { None })
    }

    /// Returns the layers of a source, topmost first, if all of them are present and unchanged.
    pub(super) fn kept_source(&self, id: &SourceId) -> Result<Option<Vec<LayerId>>, StoreError> {
        let Some(row) = self.index.read(|connection| index::sources::get(connection, id))? else { return Ok(None) };
        if self.damage(&row.stack)?.is_some() {
            return Ok(None);
        }
        let is_fresh = (0..FRESH_MS).contains(&(index::now_ms() - row.used_at));
        if row.is_doomed || !is_fresh {
            let touched = self.index.write(|transaction| index::sources::touch(transaction, id, &row.stack));
            match touched {
                Ok(true) => {}
                Err(error) if !row.is_doomed => tracing::debug!(%error, "failed to record the use of the source"),
                // The row was just removed.
                Ok(false) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(row.stack))
    }

    /// Returns whether a delta exists, and protects it from removal if it does.
    pub(super) fn has_delta(&self, id: &LayerId) -> Result<bool, StoreError> {
        Ok(self.layer_home(id).is_dir() && self.spare(id)?)
    }

    /// Cancels the doom of a layer that was found in its place. Returns false if the layer was already
    /// removed.
    fn spare(&self, id: &LayerId) -> Result<bool, StoreError> {
        if !self.index.read(|connection| index::layers::is_doomed(connection, id))? {
            return Ok(true);
        }
        self.index.write(|transaction| index::layers::spare(transaction, id))?;
        Ok(self.layer_home(id).is_dir())
    }
}
