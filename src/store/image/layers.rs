//! Layers by content: a layer that exists as a file is added to the store, once.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::PathBuf, sync::Arc, time::Duration};

use rustix::fs::FlockOperation;

use super::{ImageDigest, ImageError, aside::Aside, ground};
use crate::store::{
    IdMap, LayerId, Store, StoreError,
    error::Doing,
    index::images::ImageRow,
    layout::make_dir,
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

/// A tree that is being created, named by its content. It is removed when dropped, unless it is
/// [kept](Store::keep_tree).
#[derive(Debug)]
pub struct TreeInMaking(Aside);

impl TreeInMaking {
    /// Returns the directory for its files.
    pub fn root(&self) -> PathBuf {
        self.0.root()
    }
}

impl Store {
    /// Waits until no other process or task is creating the layer `layer`. The lock is polled, because
    /// waiting for it in the kernel could not be cancelled.
    pub async fn lock_layer(&self, layer: &LayerId) -> Result<LayerLock, StoreError> {
        let dir = self.dir().join("pulling");
        make_dir(&dir)?;
        let path = dir.join(&layer.as_str()[..LOCK_DIGITS]);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.doing("open", &path)?;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(LayerLock { _file: lock }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => tokio::time::sleep(LOCK_EVERY).await,
                Err(error) => return Err(StoreError::io("lock", path, error)),
            }
        }
    }

    /// Finds the intact layer whose uncompressed tar has this digest, whether it belongs to an image or was
    /// added separately. From now on it is kept like an image of its own, until garbage collection finds that
    /// it was not used for a long time. Take a [lease](Store::lease) first. Blocks: the first check of a
    /// layer walks it.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read or written.
    pub fn layer_by_content(&self, diff_id: &ImageDigest, id_map: IdMap) -> Result<Option<LayerId>, StoreError> {
        self.by_content(diff_id, id_map, LayerId::of_image(diff_id, id_map))
    }

    /// Unpacks a layer from a file, and keeps it as [`Store::layer_by_content`] does. The caller must hold
    /// the layer's [lock](Store::lock_layer). Blocks. `name` is used in errors.
    ///
    /// # Errors
    /// Returns an error if the layer cannot be unpacked, or does not have the digest `diff_id`.
    pub fn unpack_layer(
        self: &Arc<Self>,
        name: &str,
        diff_id: &ImageDigest,
        id_map: IdMap,
        blob: BlobFile,
        limits: UnpackLimits,
    ) -> Result<LayerId, ImageError> {
        let layer = LayerId::of_image(diff_id, id_map);
        // An existing directory is damaged.
        self.discard_from(&self.layer_home(&layer))?;
        unpack(self, name, &layer, diff_id, id_map, blob, limits)?;
        self.keep_by_content(diff_id, id_map, &layer)?;
        Ok(layer)
    }

    /// Returns the name of the layer whose uncompressed tar has this digest, for [`Store::lock_layer`].
    #[must_use]
    pub fn layer_id(diff_id: &ImageDigest, id_map: IdMap) -> LayerId {
        LayerId::of_image(diff_id, id_map)
    }

    /// Returns the name of the tree with the digest `digest`, for [`Store::lock_layer`].
    pub fn tree_id(digest: &ImageDigest) -> LayerId {
        LayerId::of_tree(digest)
    }

    /// Finds an intact tree that was [kept](Store::keep_tree). Take a [lease](Store::lease) first. Blocks as
    /// [`Store::layer_by_content`] does.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read or written.
    pub fn tree_by_content(&self, digest: &ImageDigest) -> Result<Option<LayerId>, StoreError> {
        self.by_content(digest, IdMap::Single, LayerId::of_tree(digest))
    }

    /// Creates an empty tree to fill.
    ///
    /// # Errors
    /// Returns an error if a directory cannot be created.
    pub fn new_tree(self: &Arc<Self>) -> Result<TreeInMaking, StoreError> {
        Aside::new(self).map(TreeInMaking)
    }

    /// Puts a finished tree in its place, where it is found by `digest`. The caller must hold its
    /// [lock](Store::lock_layer).
    ///
    /// # Errors
    /// Returns an error if the tree cannot be put in its place, or if the index cannot be written.
    pub fn keep_tree(&self, tree: TreeInMaking, digest: &ImageDigest) -> Result<LayerId, StoreError> {
        let layer = LayerId::of_tree(digest);
        self.discard_from(&self.layer_home(&layer))?;
        tree.0.place(&layer)?;
        self.keep_by_content(digest, IdMap::Single, &layer)?;
        Ok(layer)
    }

    /// Returns the lowest layer of every step that does not run on this machine's own system. It contains
    /// mount points and files that name resolution needs.
    ///
    /// # Errors
    /// Returns an error if the layer is missing and cannot be created.
    pub fn ground_layer(self: &Arc<Self>, id_map: IdMap) -> Result<LayerId, StoreError> {
        ground::ensure(self, id_map)?;
        Ok(ground::layer_id(id_map))
    }

    fn by_content(&self, digest: &ImageDigest, id_map: IdMap, layer: LayerId) -> Result<Option<LayerId>, StoreError> {
        if self.kept_image(digest, id_map)?.is_some() {
            self.touch_image(digest, id_map)?;
            return Ok(Some(layer));
        }
        if !self.is_whole(&layer)? {
            return Ok(None);
        }
        self.keep_by_content(digest, id_map, &layer)?;
        Ok(Some(layer))
    }

    fn keep_by_content(&self, digest: &ImageDigest, id_map: IdMap, layer: &LayerId) -> Result<(), StoreError> {
        // The row has no configuration, so it does not describe an image: its digest is not that of a
        // configuration.
        let row = ImageRow { stack: vec![layer.clone()], config: String::new() };
        self.keep_image(digest, id_map, &row)
    }
}

/// Creates the layer `layer` from a file. The caller must hold its lock.
pub(super) fn unpack(
    store: &Arc<Store>,
    name: &str,
    layer: &LayerId,
    diff_id: &ImageDigest,
    id_map: IdMap,
    blob: BlobFile,
    limits: UnpackLimits,
) -> Result<(), ImageError> {
    let aside = Aside::new(store)?;
    let unpacked = store.tree_ops().unpack(blob, &aside.root(), id_map, limits);
    let unpacked = unpacked.map_err(|error| failed_to_unpack(name, &aside, error))?;
    let found = ImageDigest::from_bytes(unpacked.diff_id);
    if found != *diff_id {
        let (image, what) = (name.to_owned(), "a layer".into());
        return Err(ImageError::WrongDigest { image, what, expected: diff_id.to_string(), found: found.to_string() });
    }
    Ok(aside.place(layer)?)
}

/// Returns the error of unpacking a layer. A full disk is reported as an error of the store.
fn failed_to_unpack(image: &str, aside: &Aside, error: UnpackError) -> ImageError {
    if let UnpackError::Io { errno, .. } = &error {
        let store_error = StoreError::io("unpack to", aside.root(), std::io::Error::from_raw_os_error(*errno));
        if matches!(store_error, StoreError::Full { .. }) {
            return store_error.into();
        }
    }
    ImageError::Unpack { image: image.to_owned(), source: error }
}
