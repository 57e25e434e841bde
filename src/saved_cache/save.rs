//! Writes results of the store to a directory.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use super::{
    dir::CacheDir,
    error::SavedCacheError,
    list::{Blob, Key, List, SavedImage, SavedLayer, SavedResult},
};
use crate::{
    blocking, image,
    log_file::LogFile,
    source,
    store::{Base, CachedStep, IdMap, ImageDigest, LayerId, PackedDigests, Snapshot, SourceId, Store, now_ms},
    userns::UsernsHelper,
};

/// What is saved at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveLimits {
    /// The maximum size of the directory, in bytes.
    pub max_bytes: u64,
    /// The maximum time since a result was last used.
    pub max_age: Duration,
}

/// What a save did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Saved {
    /// The number of results in the directory.
    pub results: u64,
    /// The number of results that were not there before.
    pub new: u64,
    /// The number of results that are no longer there.
    pub dropped: u64,
    /// The size of the directory, in bytes.
    pub bytes: u64,
    /// The bytes that were written.
    pub written_bytes: u64,
    /// Results of the store that were left out.
    pub left_out: LeftOut,
}

/// Results that were left out, by the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeftOut {
    /// They exceed the size.
    pub size: u64,
    /// They were not used for a long time.
    pub age: u64,
    /// They are only valid on this machine, because of their image.
    pub machine: u64,
    /// They are damaged, or another user made them.
    pub damaged: u64,
}

/// Saves the results that were used last. What the directory has already is not written again. If the save
/// fails, the directory has what it had before.
///
/// # Errors
/// Returns an error if the directory contains anything else, or if it cannot be written.
///
/// # Cancel safety
/// If the future is dropped, the save continues to its end.
pub async fn save(
    store: &Arc<Store>,
    userns: &UsernsHelper,
    dir: &Path,
    limits: SaveLimits,
) -> Result<Saved, SavedCacheError> {
    let lease = store.lease()?;
    let id_map = userns.prepare_trees(store).await?;
    let (store, dir) = (Arc::clone(store), dir.to_owned());
    blocking::run("save results", move || {
        // Held until everything is packed.
        let _lease = lease;
        let dir = CacheDir::create(&dir)?;
        let mut old = match dir.list() {
            // What cannot be read is no loss: it is a cache.
            Err(SavedCacheError::Foreign { why, .. }) => {
                tracing::warn!("replacing the list of results: {why}");
                List::default()
            }
            list => list?,
        };
        // A clock that was ahead must not keep a result for ever.
        let now = now_ms();
        old.results.iter_mut().for_each(|result| result.used_at = result.used_at.min(now));
        let saved = Saving::new(&store, &dir, &old, id_map, limits).run();
        if saved.is_err() {
            // By the list that is there now: the save may have failed after it had put its own.
            let swept = match dir.list() {
                Err(SavedCacheError::Foreign { .. }) => dir.sweep(&List::default()),
                list => list.and_then(|list| dir.sweep(&list)),
            };
            if let Err(error) = swept {
                tracing::debug!(%error, "failed to remove what a failed save has written");
            }
        }
        saved
    })
    .await
}

/// One save.
struct Saving<'a> {
    store: &'a Store,
    dir: &'a CacheDir,
    old: HashMap<Key, &'a SavedResult>,
    old_list: &'a List,
    id_map: IdMap,
    limits: SaveLimits,
    /// The blobs of the results that were chosen, and the sum of their sizes.
    chosen: HashSet<ImageDigest>,
    bytes: u64,
    /// Whether a result has exceeded the size. From then on nothing is packed.
    is_full: bool,
    manifests: HashMap<SourceId, Blob>,
    list: List,
    report: Saved,
}

/// A result that may be saved.
enum Candidate<'a> {
    OfStore(CachedStep),
    /// A result that only the directory has.
    OfDir(&'a SavedResult),
}

impl Candidate<'_> {
    fn used_at(&self) -> i64 {
        match self {
            Self::OfStore(step) => step.used_at,
            Self::OfDir(result) => result.used_at,
        }
    }

    fn key(&self) -> Key {
        match self {
            Self::OfStore(step) => Key(step.key),
            Self::OfDir(result) => result.key,
        }
    }
}

impl<'a> Saving<'a> {
    fn new(store: &'a Store, dir: &'a CacheDir, old_list: &'a List, id_map: IdMap, limits: SaveLimits) -> Self {
        Self {
            store,
            dir,
            old: old_list.results.iter().map(|result| (result.key, result)).collect(),
            old_list,
            id_map,
            limits,
            chosen: HashSet::new(),
            bytes: 0,
            is_full: false,
            manifests: HashMap::new(),
            list: List::default(),
            report: Saved::default(),
        }
    }

    fn run(mut self) -> Result<Saved, SavedCacheError> {
        let candidates = self.candidates()?;
        // Read after the results: a run says whose store it is before it has any.
        self.list.set_scope(self.store.steps().scope()?);
        if !self.old.is_empty() && self.old_list.scope() != self.list.scope() {
            let (saved, store) = (self.old_list.scope().to_owned(), self.list.scope().to_owned());
            return Err(SavedCacheError::Scope { path: self.dir.path().into(), saved, store });
        }
        let now = now_ms();
        let max_age = i64::try_from(self.limits.max_age.as_millis()).unwrap_or(i64::MAX);
        for candidate in candidates {
            if now.saturating_sub(candidate.used_at()) > max_age {
                self.report.left_out.age += 1;
                continue;
            }
            let result = match candidate {
                Candidate::OfDir(result) => self.dir_has(result).then(|| result.clone()),
                Candidate::OfStore(step) => self.result(&step)?,
            };
            if let Some(result) = result.filter(|result| self.fits(result)) {
                self.choose(result);
            }
        }
        let keys: HashSet<Key> = self.list.results.iter().map(|result| result.key).collect();
        self.report.dropped = self.old.keys().filter(|key| !keys.contains(key)).count() as u64;
        self.report.results = keys.len() as u64;
        self.dir.put_list(&self.list)?;
        (_, self.report.bytes) = self.dir.sweep(&self.list)?;
        Ok(self.report)
    }

    /// Returns the results of the store, except those by traces, which never leave it, and those that only
    /// the directory has, the one that was used last first.
    fn candidates(&self) -> Result<Vec<Candidate<'a>>, SavedCacheError> {
        let mut steps = self.store.steps().all()?;
        steps.retain(|step| !step.traced);
        let now = now_ms();
        steps.iter_mut().for_each(|step| step.used_at = step.used_at.min(now));
        let known: HashSet<[u8; 32]> = steps.iter().map(|step| step.key).collect();
        let others = self.old_list.results.iter().filter(|result| !known.contains(&result.key.0));
        let mut all: Vec<_> = others.map(Candidate::OfDir).collect();
        all.extend(steps.into_iter().map(Candidate::OfStore));
        all.sort_by_cached_key(|candidate| (Reverse(candidate.used_at()), candidate.key()));
        Ok(all)
    }

    /// Returns the form of a result, after its blobs were put in their places. Returns `None` if it is left
    /// out.
    fn result(&mut self, step: &CachedStep) -> Result<Option<SavedResult>, SavedCacheError> {
        if let Some(old) = self.old.get(&Key(step.key))
            && step.snapshot.0.strip_prefix("hm1:") == Some(&old.snapshot)
            && self.dir_has(old)
        {
            return Ok(Some(SavedResult { used_at: step.used_at.max(old.used_at), ..SavedResult::clone(old) }));
        }
        if self.is_full {
            self.report.left_out.size += 1;
            return Ok(None);
        }
        let Ok(snapshot) = self.store.snapshots().get(&step.snapshot) else {
            self.report.left_out.damaged += 1;
            return Ok(None);
        };
        let image = match &snapshot.base {
            Base::Image(image) => *image,
            Base::Host | Base::Rootfs(_) => {
                self.report.left_out.machine += 1;
                return Ok(None);
            }
        };
        if !self.knows_image(&image)? {
            self.report.left_out.machine += 1;
            return Ok(None);
        }
        // A layer is named by what it contains now, so others would take a damaged one for a valid one.
        if snapshot.id_map != self.id_map || self.store.snapshots().damage(&step.snapshot)?.is_some() {
            self.report.left_out.damaged += 1;
            return Ok(None);
        }
        self.pack(step, &snapshot, image).map(Some)
    }

    fn pack(
        &mut self,
        step: &CachedStep,
        snapshot: &Snapshot,
        image: ImageDigest,
    ) -> Result<SavedResult, SavedCacheError> {
        let layers = snapshot.layers.iter().map(|layer| self.layer(layer)).collect::<Result<_, _>>()?;
        let manifest = self.manifest(&snapshot.source)?;
        Ok(SavedResult {
            key: Key(step.key),
            snapshot: step.snapshot.0.strip_prefix("hm1:").unwrap_or_default().to_owned(),
            id_map: snapshot.id_map,
            run: step.run,
            pipeline: step.pipeline.clone(),
            step: step.step.clone(),
            created_at: step.created_at,
            used_at: step.used_at,
            source: snapshot.source.clone(),
            manifest,
            image,
            layers,
            log: self.log(&step.key)?,
        })
    }

    fn layer(&mut self, layer: &LayerId) -> Result<SavedLayer, SavedCacheError> {
        if let Some(PackedDigests { diff_id, blob, size_bytes, .. }) = self.store.digests().of_layer(layer)? {
            let blob = Blob { digest: blob, bytes: size_bytes };
            if self.dir.has(&blob) {
                return Ok(SavedLayer { diff_id, blob });
            }
        }
        let dir = self.store.layers().dir(layer);
        let packed =
            image::pack_layer_in(self.store, &dir, self.id_map, &self.dir.tmp()).map_err(SavedCacheError::pack)?;
        let diff_id = packed.diff_id();
        let names = PackedDigests::new(diff_id, *packed.digest().as_bytes(), packed.size_bytes());
        let blob = self.dir.put_layer(packed)?;
        self.report.written_bytes += blob.bytes;
        self.store.digests().remember_layer(layer, &names)?;
        Ok(SavedLayer { diff_id, blob })
    }

    fn manifest(&mut self, source: &SourceId) -> Result<Blob, SavedCacheError> {
        if let Some(blob) = self.manifests.get(source) {
            return Ok(*blob);
        }
        let put = self.dir.put_bytes(&source::manifest_bytes(self.store, source)?)?;
        let blob = self.count(put);
        self.manifests.insert(source.clone(), blob);
        Ok(blob)
    }

    fn log(&mut self, key: &[u8; 32]) -> Result<Option<Blob>, SavedCacheError> {
        let path = self.store.steps().log(key);
        let log = match LogFile::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            log => log.map_err(|error| SavedCacheError::io("read", &path, error))?,
        };
        let put = self.dir.put_stream(log, &path)?;
        let blob = self.count(put);
        Ok((blob.bytes > 0).then_some(blob))
    }

    fn count(&mut self, (blob, is_new): (Blob, bool)) -> Blob {
        if is_new {
            self.report.written_bytes += blob.bytes;
        }
        blob
    }

    /// Returns whether it is known where an image comes from.
    fn knows_image(&mut self, image: &ImageDigest) -> Result<bool, SavedCacheError> {
        if self.list.images.contains_key(image) {
            return Ok(true);
        }
        let saved = match self.store.stacks().tag_of(image)? {
            Some((reference, tag)) => SavedImage { reference, manifest: tag.manifest, fetched_at: tag.fetched_at },
            None => match self.old_list.images.get(image) {
                Some(saved) => saved.clone(),
                None => return Ok(false),
            },
        };
        if saved.exact_name().is_none() {
            return Ok(false);
        }
        self.list.images.insert(*image, saved);
        Ok(true)
    }

    fn dir_has(&self, result: &SavedResult) -> bool {
        result.blobs().all(|blob| self.dir.has(&blob)) && self.old_list.images.contains_key(&result.image)
    }

    /// Returns whether a result fits into the directory with those that were chosen before.
    fn fits(&mut self, result: &SavedResult) -> bool {
        let mut own = HashSet::new();
        let is_new = |blob: &Blob| !self.chosen.contains(&blob.digest) && own.insert(blob.digest);
        let bytes: u64 = result.blobs().filter(is_new).map(|blob| blob.bytes).sum();
        if self.bytes + bytes > self.limits.max_bytes {
            self.is_full = true;
            self.report.left_out.size += 1;
            return false;
        }
        self.bytes += bytes;
        self.chosen.extend(own);
        true
    }

    fn choose(&mut self, result: SavedResult) {
        if !self.list.images.contains_key(&result.image)
            && let Some(image) = self.old_list.images.get(&result.image)
        {
            self.list.images.insert(result.image, image.clone());
        }
        if self.old.get(&result.key).is_none_or(|old| old.snapshot != result.snapshot) {
            self.report.new += 1;
        }
        self.list.results.push(result);
    }
}
