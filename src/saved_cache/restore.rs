//! Takes in the results of a directory. Nothing in it is believed that can be checked.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use serde::Serialize;

use super::{
    dir::CacheDir,
    error::SavedCacheError,
    list::{List, SavedImage, SavedLayer, SavedResult},
};
use crate::{
    blocking,
    image::{self, Images, Notes},
    model::SnapshotRef,
    source,
    store::{
        Base, BlobFile, Cached, DEFAULT_SCOPE, IdMap, ImageDigest, KeepAs, LayerId, PackedDigests, Snapshot, Store,
        StoreError, TagRow, now_ms,
    },
    userns::UsernsHelper,
};

/// The maximum number of results that are restored at a time. Unpacking a layer takes a processor.
const AT_ONCE: usize = 4;
/// The maximum size of a manifest, enough for a source of about two million files.
const MAX_MANIFEST_BYTES: u64 = 256 << 20;
/// The maximum size of a step's output.
const MAX_LOG_BYTES: u64 = 4 << 30;

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Restored {
    /// The number of results that were taken in.
    pub results: u64,
    /// The number of results that the store had already.
    pub present: u64,
    /// Results that were not taken in, by the reason.
    pub skipped: Vec<Skipped>,
}

/// Results that were not taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Skipped {
    /// The reason.
    pub reason: String,
    /// How many.
    pub results: u64,
}

/// The end of a result.
enum End {
    Restored,
    Present,
    Skipped(String),
}

/// Takes in the results of a directory that [`save`](super::save()) wrote, and pulls the images that they
/// build on. Returns `None` if there is no such directory. A result that is damaged is skipped.
///
/// # Errors
/// Returns an error if the directory is something else, or if the store cannot be written. The results that
/// were taken in until then stay.
///
/// # Cancel safety
/// If the future is dropped, results that are being taken in may be completed or not. Each is whole, or
/// absent.
pub async fn restore(
    store: &Arc<Store>,
    userns: &UsernsHelper,
    images: &Images,
    dir: &Path,
    notes: &impl Notes,
) -> Result<Option<Restored>, SavedCacheError> {
    let opened = dir.to_owned();
    let dir = blocking::run("open a saved cache", move || CacheDir::open(&opened)).await?;
    let Some(dir) = dir.map(Arc::new) else { return Ok(None) };
    let list = dir.list()?;
    claim(store, &dir, &list).await?;
    // Held until the results have their rows.
    let _lease = store.lease()?;
    let id_map = userns.prepare_trees(store).await?;
    let mut ends: Vec<End> = Vec::new();
    let mut wanted: Vec<Arc<SavedResult>> = Vec::new();
    for result in list.results {
        if result.id_map != id_map {
            ends.push(End::Skipped(format!(
                "the owners of their files are mapped in another way there (`{}`, here `{id_map}`)",
                result.id_map
            )));
            continue;
        }
        let (checked, key) = (Arc::clone(store), result.key.0);
        let cached = blocking::run("look a result up", move || Ok::<_, SavedCacheError>(checked.steps().cached(&key)?));
        match cached.await? {
            Cached::Found { .. } => ends.push(End::Present),
            Cached::Absent | Cached::Damaged { .. } => wanted.push(Arc::new(result)),
        }
    }
    let mut pulled: HashMap<ImageDigest, Option<String>> = HashMap::new();
    for result in &wanted {
        if let Entry::Vacant(place) = pulled.entry(result.image) {
            let saved = list.images.get(&result.image);
            place.insert(pull(store, images, id_map, result.image, saved, notes).await?);
        }
    }
    let mut restoring: Vec<BoxFuture<'_, Result<End, SavedCacheError>>> = Vec::new();
    for result in wanted {
        match pulled.get(&result.image) {
            Some(Some(reason)) => ends.push(End::Skipped(reason.clone())),
            _ => restoring.push(restore_one(Arc::clone(store), Arc::clone(&dir), id_map, result).boxed()),
        }
    }
    let mut restoring = stream::iter(restoring).buffer_unordered(AT_ONCE);
    while let Some(end) = restoring.next().await {
        match end {
            Ok(end) => ends.push(end),
            Err(error) if error.is_of_the_store() => return Err(error),
            Err(error) => ends.push(End::Skipped(error.into_line())),
        }
    }
    Ok(Some(report(ends)))
}

/// Makes the store one of the scope whose results are restored. Those of the default scope may be used in
/// any.
async fn claim(store: &Arc<Store>, dir: &CacheDir, list: &List) -> Result<(), SavedCacheError> {
    if list.scope() == DEFAULT_SCOPE {
        return Ok(());
    }
    let (claimed, scope) = (Arc::clone(store), list.scope().to_owned());
    let claim = move || Ok::<_, SavedCacheError>(claimed.steps().claim_scope(&scope)?);
    match blocking::run("look whose results these are", claim).await? {
        None => Ok(()),
        Some(store) => {
            let (path, saved) = (dir.path().into(), list.scope().to_owned());
            Err(SavedCacheError::Scope { path, saved, store })
        }
    }
}

fn report(ends: Vec<End>) -> Restored {
    let (mut restored, mut skipped) = (Restored::default(), BTreeMap::<String, u64>::new());
    for end in ends {
        match end {
            End::Restored => restored.results += 1,
            End::Present => restored.present += 1,
            End::Skipped(reason) => *skipped.entry(reason).or_default() += 1,
        }
    }
    restored.skipped = skipped.into_iter().map(|(reason, results)| Skipped { reason, results }).collect();
    restored
}

/// Brings an image to the store. Returns the reason if that is not possible.
async fn pull(
    store: &Arc<Store>,
    images: &Images,
    id_map: IdMap,
    digest: ImageDigest,
    saved: Option<&SavedImage>,
    notes: &impl Notes,
) -> Result<Option<String>, SavedCacheError> {
    if image::stored::is_stored(store, &digest, id_map)? {
        return Ok(None);
    }
    let Some((saved, name)) = saved.and_then(|saved| Some((saved, saved.exact_name()?))) else {
        return Ok(Some(format!("their image {digest} has no name in a registry")));
    };
    match images.fetch(store, &name, id_map, notes).await {
        Ok(Base::Image(found)) if found == digest => {}
        Ok(_) => return Ok(Some(format!("`{name}` is another image here"))),
        Err(error) => {
            let error = SavedCacheError::from(error);
            return if error.is_of_the_store() { Err(error) } else { Ok(Some(error.into_line())) };
        }
    }
    // A tag that was asked for here is newer, or was chosen here.
    if store.stacks().tag(&saved.reference)?.is_none() {
        let tag = TagRow { manifest: saved.manifest, image: digest, fetched_at: saved.fetched_at.min(now_ms()) };
        store.stacks().remember_tag(&saved.reference, &tag)?;
    }
    Ok(None)
}

async fn restore_one(
    store: Arc<Store>,
    dir: Arc<CacheDir>,
    id_map: IdMap,
    result: Arc<SavedResult>,
) -> Result<End, SavedCacheError> {
    let id = SnapshotRef::from(format!("hm1:{}", result.snapshot));
    if let Ok(existing) = store.snapshots().get(&id) {
        // A list must not name another project's files.
        if !is_same(&store, &existing, &result)? {
            return Ok(End::Skipped("the store has other snapshots with their ids".to_owned()));
        }
        let (checked, name) = (Arc::clone(&store), id.clone());
        let check = move || Ok::<_, SavedCacheError>(checked.snapshots().damage(&name)?);
        if blocking::run("check a result", check).await?.is_none() {
            return blocking::run("keep a result", move || keep(&store, &dir, &id, &result)).await;
        }
    }
    let mut layers = Vec::new();
    // An overlay does not accept the same layer twice, and the lower one shows nothing that the higher one
    // does not.
    let mut seen = HashSet::new();
    for saved in &result.layers {
        let layer = unpack(&store, &dir, id_map, *saved).await?;
        if seen.insert(layer.clone()) {
            layers.push(layer);
        }
    }
    blocking::run("keep a result", move || {
        if !source::has_manifest(&store, &result.source) {
            if result.manifest.bytes > MAX_MANIFEST_BYTES {
                return Ok(End::Skipped("the list of their source's files is too large".to_owned()));
            }
            let mut manifest = Vec::new();
            dir.copy_blob(&result.manifest, &mut manifest)?;
            source::import_manifest(&store, &result.source, &manifest)?;
        }
        let snapshot = Snapshot { base: Base::Image(result.image), source: result.source.clone(), layers, id_map };
        let id = store.snapshots().import(&result.snapshot, snapshot)?;
        keep(&store, &dir, &id, &result)
    })
    .await
}

/// Returns whether a snapshot of the store is the one that a list describes.
fn is_same(store: &Store, snapshot: &Snapshot, result: &SavedResult) -> Result<bool, StoreError> {
    let Snapshot { base, source, layers, id_map } = snapshot;
    if (base, source, *id_map) != (&Base::Image(result.image), &result.source, result.id_map) {
        return Ok(false);
    }
    let mut expected: Vec<ImageDigest> = Vec::new();
    for layer in &result.layers {
        if !expected.contains(&layer.diff_id) {
            expected.push(layer.diff_id);
        }
    }
    if layers.len() != expected.len() {
        return Ok(false);
    }
    for (layer, diff_id) in layers.iter().zip(expected) {
        let is_of_content = *layer == image::layer_id(&diff_id, *id_map);
        if !is_of_content && store.digests().of_layer(layer)?.is_none_or(|packed| packed.diff_id != diff_id) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Brings a layer to the store, unless it is there already.
async fn unpack(
    store: &Arc<Store>,
    dir: &Arc<CacheDir>,
    id_map: IdMap,
    saved: SavedLayer,
) -> Result<LayerId, SavedCacheError> {
    let SavedLayer { diff_id, blob } = saved;
    let _lock = image::lock_layer(store, &image::layer_id(&diff_id, id_map)).await?;
    let (store, dir) = (Arc::clone(store), Arc::clone(dir));
    blocking::run("unpack a layer", move || {
        if let Some(layer) = image::find_layer(&store, &diff_id, id_map)? {
            return Ok(layer);
        }
        let file = BlobFile { file: dir.open_blob(&blob)?, offset: 0, length: blob.bytes };
        let layer = image::unpack_layer(&store, image::LayerFile::new("the saved cache", diff_id, file), id_map)?;
        // So that the next save need not pack it.
        store.digests().remember_layer(&layer, &PackedDigests::new(diff_id, *blob.digest.as_bytes(), blob.bytes))?;
        Ok(layer)
    })
    .await
}

/// Keeps a result whose files are all in the store.
fn keep(
    store: &Arc<Store>,
    dir: &CacheDir,
    snapshot: &SnapshotRef,
    result: &SavedResult,
) -> Result<End, SavedCacheError> {
    let aside = store.instance().new_tmp();
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside);
    let mut file = file.map_err(|error| StoreError::io("write", &aside, error))?;
    // The step may have printed nothing. An empty file replaces any older one.
    if let Some(log) = &result.log {
        if log.bytes > MAX_LOG_BYTES {
            return Ok(End::Skipped("their output is too large".to_owned()));
        }
        dir.copy_blob(log, &mut file).map_err(|error| match error {
            SavedCacheError::Full { source, .. } => StoreError::io("write", &aside, source).into(),
            error => error,
        })?;
    }
    store.steps().import_log(&result.key.0, &aside)?;
    let SavedResult { key, run, pipeline, step, created_at, .. } = result;
    store.keep(snapshot, KeepAs::Cached { key: &key.0, run: *run, pipeline, step, created_at: *created_at })?;
    store.steps().set_used_at(&key.0, result.used_at.min(now_ms()))?;
    Ok(End::Restored)
}
