//! Snapshots that outlive their run: kept under a name, found again, and checked before anybody relies on them.

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
use crate::runner::SnapshotRef;

/// Something that was used this long ago, in milliseconds, need not be written down as used again.
const FRESH_MS: i64 = 60 * 60 * 1000;

/// Under which name a snapshot is kept.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum KeepAs<'a> {
    /// As the result of a cached step.
    Cached {
        /// The step's cache key.
        key: &'a [u8; 32],
        /// The run that made it.
        run: Uuid,
        /// Its pipeline.
        pipeline: &'a str,
        /// The step's key in the pipeline.
        step: &'a str,
        /// When, in milliseconds since the Unix epoch.
        created_at: i64,
    },
    /// As what a step of a run left, for people to look at.
    Left {
        /// The run.
        run: Uuid,
        /// The step's key in the pipeline.
        step: &'a str,
        /// Whether it passed.
        passed: bool,
    },
}

/// What a cache key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cached {
    /// This snapshot, of which every layer is there as it was made.
    Found {
        /// The snapshot.
        snapshot: SnapshotRef,
        /// The run that made it.
        run: Uuid,
        /// The step's key then.
        step: String,
        /// When, in milliseconds since the Unix epoch.
        created_at: i64,
    },
    /// Nothing.
    Absent,
    /// A snapshot that can't be relied on.
    Damaged {
        /// What is wrong with it.
        reason: String,
    },
}

/// A cached step that garbage collection took.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Evicted {
    /// How much its layers took, in bytes.
    pub bytes: u64,
    /// When, in milliseconds since the Unix epoch.
    pub at: i64,
    /// Why: `size`, `space`, `age`, or `asked`.
    pub cause: String,
}

/// What the index has of a cache key.
enum Row {
    Absent,
    Damaged(String),
    Found(CacheRow, Vec<Made>),
}

/// A layer, and its seal where it has a row.
type Made = (LayerId, Option<tree::Seal>);

/// What became of a look at layers.
enum Checked {
    Whole,
    Damaged(String),
    TooMuch,
}

/// Layers found whole since the store was opened.
#[derive(Debug, Default)]
pub(super) struct Intact(Mutex<HashSet<LayerId>>);

impl Store {
    /// Keeps a snapshot of this process, or one that is kept already, under a name. From now on only
    /// [garbage collection](Store::gc) removes it. Takes as long as a walk over the layers that were not kept before.
    ///
    /// # Errors
    /// Where there is no such snapshot, or the index can't be written; then nothing is kept.
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
            // Collected meanwhile, which a lease prevents. What was written above has no name and goes like that.
            return Err(self.unknown(snapshot));
        }
        self.own.note_kept(&rows);
        self.kept_new.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// What a cache key stands for. Takes microseconds, and a walk over each layer that was not looked at before.
    ///
    /// # Errors
    /// Where the index can't be read.
    pub fn cached(&self, key: &[u8; 32]) -> Result<Cached, StoreError> {
        // No walk is longer.
        self.cached_within(key, u64::MAX).map(|cached| cached.unwrap_or(Cached::Absent))
    }

    /// [`cached`](Self::cached), where that takes a walk over `entries` files and directories at most; `None` otherwise.
    ///
    /// # Errors
    /// Where the index can't be read.
    pub fn cached_within(&self, key: &[u8; 32], entries: u64) -> Result<Option<Cached>, StoreError> {
        let row = self.index.read_at_once(|connection| {
            let Some(row) = index::cache::get(connection, key)? else { return Ok(Row::Absent) };
            let Some(snapshot) = index::snapshots::get(connection, &row.snapshot)? else {
                return Ok(Row::Damaged("its snapshot is gone".into()));
            };
            let mut layers = snapshot.layers;
            if let Base::Image(digest) = &snapshot.base {
                let Some((image, _)) = index::images::get(connection, digest, snapshot.id_map)? else {
                    return Ok(Row::Damaged(format!("its image {digest} is gone")));
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

    /// Says that cached steps were used just now, so that they are not the first that garbage collection takes.
    ///
    /// # Errors
    /// Where the index can't be written.
    pub fn touch(&self, keys: &[[u8; 32]]) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.index.write(|transaction| index::cache::touch(transaction, keys))
    }

    /// The snapshot that a step of a run left, and whether the step passed.
    ///
    /// # Errors
    /// Where the index can't be read.
    pub fn left(&self, run: Uuid, step: &str) -> Result<Option<(SnapshotRef, bool)>, StoreError> {
        let kept = self.index.read(|connection| index::kept::get(connection, run, step))?;
        Ok(kept.map(|(id, passed)| (SnapshotRef::from(format!("{SCHEME}:{id}")), passed)))
    }

    /// What is missing of a snapshot, or no longer as its steps left it, if anything is. Takes a walk over each layer that
    /// was not looked at before.
    ///
    /// # Errors
    /// Where there is no such snapshot, or the index can't be read.
    pub fn damage_of(&self, snapshot: &SnapshotRef) -> Result<Option<String>, StoreError> {
        self.damage(&self.snapshot(snapshot)?.layers)
    }

    /// Keeps what a cached step printed, for as long as its entry: a link to `log`, or a copy, or nothing where there is no
    /// such file. To be called before the entry is kept.
    ///
    /// # Errors
    /// Where it can't be linked nor copied.
    pub fn keep_log(&self, key: &[u8; 32], log: &Path) -> Result<(), StoreError> {
        let place = self.cached_log(key);
        let aside = self.new_tmp();
        let linked = match fs::hard_link(log, &aside) {
            Err(error) if error.kind() == ErrorKind::NotFound => return self.discard_from(&place),
            // Another file system, or one without links.
            Err(_) => fs::copy(log, &aside).map(drop),
            linked => linked,
        };
        linked.doing("keep", log)?;
        fs::rename(&aside, &place).doing("make", &place)
    }

    /// A random key that is this store's alone, for hashes of what must not be read off them. Made at the first call.
    ///
    /// # Errors
    /// Where it can't be read nor made.
    pub fn secret(&self) -> Result<[u8; 32], StoreError> {
        let path = self.dir().join("secret");
        let read = || fs::read(&path).ok().and_then(|bytes| bytes.try_into().ok());
        if let Some(secret) = read() {
            return Ok(secret);
        }
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let secret = *blake3::hash(&[one.into_bytes(), other.into_bytes()].concat()).as_bytes();
        self.write_file(&path, &secret)?;
        // Another process may have made one at the same time: that of the last one stays.
        Ok(read().unwrap_or(secret))
    }

    /// When garbage collection took what a cache key stood for, if it did.
    ///
    /// # Errors
    /// Where the index can't be read.
    pub fn evicted(&self, key: &[u8; 32]) -> Result<Option<Evicted>, StoreError> {
        self.index.read(|connection| index::cache::evicted(connection, key))
    }

    /// Where the output of a cached step lies, if it printed anything.
    #[must_use]
    pub fn cached_log(&self, key: &[u8; 32]) -> PathBuf {
        self.dir().join("logs").join(blake3::Hash::from_bytes(*key).to_hex().as_str())
    }

    /// What is missing of a kept stack of layers or no longer as it was, if anything is.
    pub(super) fn damage(&self, layers: &[LayerId]) -> Result<Option<String>, StoreError> {
        let unchecked = self.index.read_at_once(|connection| self.unchecked(connection, layers))?;
        // No walk is longer.
        Ok(match self.check(unchecked, u64::MAX) {
            Checked::Damaged(reason) => Some(reason),
            Checked::Whole | Checked::TooMuch => None,
        })
    }

    /// Those of some layers that were not looked at since the store was opened, with what they looked like when they were made.
    fn unchecked(&self, connection: &Connection, layers: &[LayerId]) -> rusqlite::Result<Vec<Made>> {
        let intact = self.intact.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unchecked = layers.iter().filter(|layer| !intact.contains(layer));
        unchecked.map(|layer| Ok((layer.clone(), index::layers::seal(connection, layer)?))).collect()
    }

    /// Looks at layers, by a walk over `entries` files and directories at most.
    fn check(&self, layers: Vec<Made>, mut entries: u64) -> Checked {
        for (layer, made) in layers {
            let Some(made) = made else { return Checked::Damaged(format!("its layer {layer} is gone")) };
            match entries.checked_sub(made.entries) {
                Some(left) => entries = left,
                None => return Checked::TooMuch,
            }
            match tree::seal(&self.layer_dir(&layer)) {
                Ok(found) if found.hash == made.hash => {}
                Ok(_) => return Checked::Damaged(format!("its layer {layer} is no longer as the step left it")),
                Err(error) => return Checked::Damaged(format!("its layer {layer} can't be read: {error}")),
            }
            self.intact.0.lock().unwrap_or_else(PoisonError::into_inner).insert(layer);
        }
        Checked::Whole
    }

    /// Whether a layer of a known name is in its place: as it was made, or made just now and not kept yet. What another boot
    /// wrote without keeping it was removed when the store was opened.
    pub(super) fn is_whole(&self, layer: &LayerId) -> Result<bool, StoreError> {
        if !self.layer_dir(layer).is_dir() {
            return Ok(false);
        }
        let is_kept = self.index.read(|connection| index::layers::seal(connection, layer))?.is_some();
        Ok(!is_kept || (self.damage(std::slice::from_ref(layer))?.is_none() && self.spare(layer)?))
    }

    /// Rows for those of some layers that have none yet.
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
    /// Names a stack of layers, topmost first, after a source. Those without a row get one, each after a walk over it.
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

    /// Names a stack of layers after an image. Those without a row get one, each after a walk over it.
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

    /// Whether there is an image of this digest, in whatever state.
    #[cfg(feature = "registry")]
    pub(super) fn has_image(&self, digest: &ImageDigest) -> Result<bool, StoreError> {
        self.index.read(|connection| index::images::exists(connection, digest))
    }

    /// What a tag stood for.
    #[cfg(feature = "registry")]
    pub(super) fn remembered_tag(&self, reference: &str) -> Result<Option<TagRow>, StoreError> {
        self.index.read(|connection| index::images::tag(connection, reference))
    }

    /// Remembers what a tag stands for.
    #[cfg(feature = "registry")]
    pub(super) fn remember_tag(&self, reference: &str, tag: &TagRow) -> Result<(), StoreError> {
        self.index.write(|transaction| index::images::put_tag(transaction, reference, tag))
    }

    /// Says that an image was used just now, so that it is not the first that garbage collection takes.
    pub(super) fn touch_image(&self, digest: &ImageDigest, id_map: IdMap) -> Result<(), StoreError> {
        self.index.write(|transaction| index::images::touch(transaction, digest, id_map))
    }

    /// An image, where all of its layers are there as they were made.
    pub(super) fn kept_image(&self, digest: &ImageDigest, id_map: IdMap) -> Result<Option<ImageRow>, StoreError> {
        let image = self.index.read(|connection| index::images::get(connection, digest, id_map))?;
        let Some((image, is_doomed)) = image else { return Ok(None) };
        if self.damage(&image.stack)?.is_some() {
            return Ok(None);
        }
        let spare = || self.index.write(|transaction| index::images::spare(transaction, digest, id_map, &image.stack));
        Ok(if !is_doomed || spare()? { Some(image) } else { None })
    }

    /// The layers that show a source, topmost first, where they are all there as they were made.
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
                Err(error) if !row.is_doomed => tracing::debug!(%error, "when the source was used is not written down"),
                // Removed just now.
                Ok(false) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(row.stack))
    }

    /// Whether a delta is there. It is ours from now on.
    pub(super) fn has_delta(&self, id: &LayerId) -> Result<bool, StoreError> {
        Ok(self.layer_home(id).is_dir() && self.spare(id)?)
    }

    /// Takes back the doom of a layer that was found in its place. False where it went before.
    fn spare(&self, id: &LayerId) -> Result<bool, StoreError> {
        if !self.index.read(|connection| index::layers::is_doomed(connection, id))? {
            return Ok(true);
        }
        self.index.write(|transaction| index::layers::spare(transaction, id))?;
        Ok(self.layer_home(id).is_dir())
    }
}
