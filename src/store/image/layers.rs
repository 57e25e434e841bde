//! Layers by content: one that lies anywhere as a file becomes one of the store's, once.

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

/// How often somebody else's lock is tried.
const LOCK_EVERY: Duration = Duration::from_millis(50);
/// Locks are shared by the layers whose names begin alike, so that there is a bounded number of files.
const LOCK_DIGITS: usize = 2;

/// Held by who makes a layer of a known name. The kernel drops it with its holder.
#[derive(Debug)]
#[must_use = "a lock is held until it is dropped"]
pub struct LayerLock {
    _file: std::fs::File,
}

/// A tree in the making, named by its content. Dropped it goes, unless it is [kept](Store::keep_tree).
#[derive(Debug)]
pub struct TreeInMaking(Aside);

impl TreeInMaking {
    /// Where its files go.
    pub fn root(&self) -> PathBuf {
        self.0.root()
    }
}

impl Store {
    /// Waits until nobody else makes the layer `layer`. The lock is tried until it is free: waiting for it in the kernel
    /// could not be given up.
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

    /// Finds the layer whose uncompressed tar has this digest, whole, whether an image brought it or it came by itself.
    /// It is kept from now on as if it were an image of its own, until garbage collection finds that nobody used it for
    /// long. Take a [lease](Store::lease) first. Blocks: the first look at a layer walks over it.
    ///
    /// # Errors
    /// Where the index can't be read or written.
    pub fn layer_by_content(&self, diff_id: &ImageDigest, id_map: IdMap) -> Result<Option<LayerId>, StoreError> {
        self.by_content(diff_id, id_map, LayerId::of_image(diff_id, id_map))
    }

    /// Unpacks a layer from the file that has it, and keeps it as [`Store::layer_by_content`] does. To be called with the
    /// layer's [lock](Store::lock_layer). Blocks. `name` is for errors.
    ///
    /// # Errors
    /// Where it can't be unpacked, or is not what `diff_id` says.
    pub fn unpack_layer(
        self: &Arc<Self>,
        name: &str,
        diff_id: &ImageDigest,
        id_map: IdMap,
        blob: BlobFile,
        limits: UnpackLimits,
    ) -> Result<LayerId, ImageError> {
        let layer = LayerId::of_image(diff_id, id_map);
        // What is there is damaged.
        self.discard_from(&self.layer_home(&layer))?;
        unpack(self, name, &layer, diff_id, id_map, blob, limits)?;
        self.keep_by_content(diff_id, id_map, &layer)?;
        Ok(layer)
    }

    /// The name of the layer whose uncompressed tar has this digest, for [`Store::lock_layer`].
    #[must_use]
    pub fn layer_id(diff_id: &ImageDigest, id_map: IdMap) -> LayerId {
        LayerId::of_image(diff_id, id_map)
    }

    /// The name of the tree that is known by the digest `digest`, for [`Store::lock_layer`].
    pub fn tree_id(digest: &ImageDigest) -> LayerId {
        LayerId::of_tree(digest)
    }

    /// Finds a tree that was [kept](Store::keep_tree), whole. Take a [lease](Store::lease) first. Blocks as
    /// [`Store::layer_by_content`] does.
    ///
    /// # Errors
    /// Where the index can't be read or written.
    pub fn tree_by_content(&self, digest: &ImageDigest) -> Result<Option<LayerId>, StoreError> {
        self.by_content(digest, IdMap::Single, LayerId::of_tree(digest))
    }

    /// An empty tree to fill.
    ///
    /// # Errors
    /// Where a directory can't be made.
    pub fn new_tree(self: &Arc<Self>) -> Result<TreeInMaking, StoreError> {
        Aside::new(self).map(TreeInMaking)
    }

    /// Puts a finished tree in its place, to be found by `digest`. To be called with its [lock](Store::lock_layer).
    ///
    /// # Errors
    /// Where it can't be put in its place, or the index not be written.
    pub fn keep_tree(&self, tree: TreeInMaking, digest: &ImageDigest) -> Result<LayerId, StoreError> {
        let layer = LayerId::of_tree(digest);
        self.discard_from(&self.layer_home(&layer))?;
        tree.0.place(&layer)?;
        self.keep_by_content(digest, IdMap::Single, &layer)?;
        Ok(layer)
    }

    /// The lowest layer of every step that does not run on this machine's own system: mount points, and files that name
    /// resolution wants.
    ///
    /// # Errors
    /// Where it is missing and can't be made.
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
        // Without a configuration it is no image: its digest is not that of its configuration.
        let row = ImageRow { stack: vec![layer.clone()], config: String::new() };
        self.keep_image(digest, id_map, &row)
    }
}

/// Makes the layer `layer` from a file; the caller has its lock.
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

/// A full disk is the store's own trouble, whoever met it.
fn failed_to_unpack(image: &str, aside: &Aside, error: UnpackError) -> ImageError {
    if let UnpackError::Io { errno, .. } = &error {
        let store_error = StoreError::io("unpack to", aside.root(), std::io::Error::from_raw_os_error(*errno));
        if matches!(store_error, StoreError::Full { .. }) {
            return store_error.into();
        }
    }
    ImageError::Unpack { image: image.to_owned(), source: error }
}
