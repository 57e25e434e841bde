//! Layers by content: a layer that exists as a file is added to the store, once.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rustix::fs::FlockOperation;

use super::{ImageDigest, ImageError, partial::Partial};
use crate::{
    store::{
        IdMap, ImageRow, LayerId, Store, StoreError,
        files::{make_dir, open_lock},
    },
    tree::{BlobFile, UnpackError, UnpackLimits},
};

/// The interval for retrying a lock that another process or task holds.
const LOCK_EVERY: Duration = Duration::from_millis(50);
/// Layers whose names have the same prefix share a lock, so that the number of lock files is bounded.
const LOCK_DIGITS: usize = 2;

/// A lock for creating a layer with a known name. The kernel releases it when its holder dies.
#[derive(Debug)]
#[must_use = "a lock is held until it is dropped"]
pub struct LayerLock {
    _file: std::fs::File,
}

/// A layer in a file, to be unpacked.
#[derive(Debug)]
#[non_exhaustive]
pub struct LayerFile<'a> {
    /// Where the layer comes from, for errors.
    pub name: &'a str,
    /// The digest of its uncompressed tar.
    pub diff_id: ImageDigest,
    /// The file.
    pub blob: BlobFile,
    /// What may be unpacked at most.
    pub limits: UnpackLimits,
}

impl<'a> LayerFile<'a> {
    /// Names a layer in a file, with the default limits.
    #[must_use]
    pub fn new(name: &'a str, diff_id: ImageDigest, blob: BlobFile) -> Self {
        Self { name, diff_id, blob, limits: UnpackLimits::default() }
    }
}

/// A tree that is being created, named by its content. It is removed when dropped, unless it is
/// [kept](keep_tree).
#[derive(Debug)]
pub struct PartialTree(Partial);

impl PartialTree {
    /// Returns the directory for its files.
    pub fn root(&self) -> PathBuf {
        self.0.root()
    }
}

/// Waits until no other process or task is creating the layer `layer`. The lock is polled, because
/// waiting for it in the kernel could not be cancelled.
pub async fn lock_layer(store: &Store, layer: &LayerId) -> Result<LayerLock, StoreError> {
    loop {
        match try_lock_layer(store, layer)? {
            Some(lock) => return Ok(lock),
            None => tokio::time::sleep(LOCK_EVERY).await,
        }
    }
}

/// Does the same as [`lock_layer`], but returns `None` at once if another process or task holds the lock.
pub(super) fn try_lock_layer(store: &Store, layer: &LayerId) -> Result<Option<LayerLock>, StoreError> {
    let dir = store.paths().layer_locks();
    make_dir(&dir)?;
    let path = dir.join(&layer.as_str()[..LOCK_DIGITS]);
    let lock = open_lock(&path)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(LayerLock { _file: lock })),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(StoreError::io("lock", path, error)),
    }
}

/// Finds the intact layer whose uncompressed tar has this digest, whether it belongs to an image or was
/// added separately. From now on it is kept like an image of its own, until garbage collection finds that
/// it was not used for a long time. Take a [lease](Store::lease) first. Blocks: the first check of a
/// layer walks it.
///
/// # Errors
/// Returns an error if the index cannot be read or written.
pub fn find_layer(store: &Store, diff_id: &ImageDigest, id_map: IdMap) -> Result<Option<LayerId>, StoreError> {
    find(store, diff_id, id_map, LayerId::of_image(diff_id, id_map))
}

/// Unpacks a layer from a file, and keeps it as [`find_layer`] does. The caller must hold
/// the layer's [lock](lock_layer). Blocks.
///
/// # Errors
/// Returns an error if the layer cannot be unpacked, or does not have the digest `diff_id`.
pub fn unpack_layer(store: &Arc<Store>, file: LayerFile<'_>, id_map: IdMap) -> Result<LayerId, ImageError> {
    let diff_id = file.diff_id;
    let layer = LayerId::of_image(&diff_id, id_map);
    // An existing directory is damaged.
    store.trash().discard_from(&store.layers().home(&layer))?;
    unpack(store, &layer, file, id_map)?;
    keep(store, &diff_id, id_map, &layer)?;
    Ok(layer)
}

/// Returns the name of the layer whose uncompressed tar has this digest, for [`lock_layer`].
#[must_use]
pub fn layer_id(diff_id: &ImageDigest, id_map: IdMap) -> LayerId {
    LayerId::of_image(diff_id, id_map)
}

/// Returns the name of the tree with the digest `digest`, for [`lock_layer`].
pub fn tree_id(digest: &ImageDigest) -> LayerId {
    LayerId::of_tree(digest)
}

/// Finds an intact tree that was [kept](keep_tree). Take a [lease](Store::lease) first. Blocks as
/// [`find_layer`] does.
///
/// # Errors
/// Returns an error if the index cannot be read or written.
pub fn find_tree(store: &Store, digest: &ImageDigest) -> Result<Option<LayerId>, StoreError> {
    find(store, digest, IdMap::Single, LayerId::of_tree(digest))
}

/// Creates an empty tree to fill.
///
/// # Errors
/// Returns an error if a directory cannot be created.
pub fn new_tree(store: &Arc<Store>) -> Result<PartialTree, StoreError> {
    Partial::new(store).map(PartialTree)
}

/// Puts a finished tree in its place, where it is found by `digest`. The caller must hold its
/// [lock](lock_layer).
///
/// # Errors
/// Returns an error if the tree cannot be put in its place, or if the index cannot be written.
pub fn keep_tree(store: &Store, tree: PartialTree, digest: &ImageDigest) -> Result<LayerId, StoreError> {
    let layer = LayerId::of_tree(digest);
    store.trash().discard_from(&store.layers().home(&layer))?;
    tree.0.place(&layer)?;
    keep(store, digest, IdMap::Single, &layer)?;
    Ok(layer)
}

/// Finds an intact layer by its digest, and keeps it.
fn find(store: &Store, digest: &ImageDigest, id_map: IdMap, layer: LayerId) -> Result<Option<LayerId>, StoreError> {
    if store.stacks().image(digest, id_map)?.is_some() {
        store.stacks().touch_image(digest, id_map)?;
        return Ok(Some(layer));
    }
    if !store.layers().is_intact(&layer)? {
        return Ok(None);
    }
    keep(store, digest, id_map, &layer)?;
    Ok(Some(layer))
}

/// Keeps a layer like an image of its own.
fn keep(store: &Store, digest: &ImageDigest, id_map: IdMap, layer: &LayerId) -> Result<(), StoreError> {
    // The row has no configuration, so it does not describe an image: its digest is not that of a
    // configuration.
    let row = ImageRow { stack: vec![layer.clone()], config: String::new() };
    store.stacks().keep_image(digest, id_map, &row)
}

/// Creates the layer `layer` from a file. The caller must hold its lock.
pub(super) fn unpack(
    store: &Arc<Store>,
    layer: &LayerId,
    file: LayerFile<'_>,
    id_map: IdMap,
) -> Result<(), ImageError> {
    Ok(unpack_tree(store, file, id_map)?.place(layer)?)
}

/// Unpacks a layer, and verifies its content. The tree is not put in its place.
pub(super) fn unpack_tree(store: &Arc<Store>, file: LayerFile<'_>, id_map: IdMap) -> Result<Partial, ImageError> {
    let LayerFile { name, diff_id, blob, limits } = file;
    let partial = Partial::new(store)?;
    let unpacked = store.trash().tree_ops().unpack(blob, &partial.root(), id_map, limits);
    let unpacked = unpacked.map_err(|error| failed_to_unpack(name, &partial, error))?;
    let found = ImageDigest::from_bytes(unpacked.diff_id);
    if found != diff_id {
        let (image, what) = (name.to_owned(), "a layer".into());
        return Err(ImageError::WrongDigest { image, what, expected: diff_id.to_string(), found: found.to_string() });
    }
    Ok(partial)
}

/// Returns the error of unpacking a layer. A full disk is reported as an error of the store.
fn failed_to_unpack(image: &str, partial: &Partial, error: UnpackError) -> ImageError {
    if let UnpackError::Io { errno, .. } = &error {
        let store_error = StoreError::io("unpack to", partial.root(), std::io::Error::from_raw_os_error(*errno));
        if matches!(store_error, StoreError::Full { .. }) {
            return store_error.into();
        }
    }
    ImageError::Unpack { image: image.to_owned(), source: error }
}
