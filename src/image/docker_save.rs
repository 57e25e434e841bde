//! Images saved by a daemon: an archive in a file of the store, to read layers from.

use std::{io, path::Path, sync::Arc};

use super::{
    ImageDigest, ImageError,
    archive::LocalImage,
    fetch::{ImageFetch, ImageOrigin},
    manifest::ImageConfig,
    partial::Partial,
    reference::ImageName,
};
use crate::store::{
    IdMap, Store,
    tree::{BlobFile, UnpackLimits},
};

/// The name of the image in errors.
const NAME: &str = "the saved image";

/// A file of the store for an archive to be written to. It is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct ArchiveFile(Partial);

impl ArchiveFile {
    /// Chooses a path. Nothing exists there yet.
    pub(crate) fn new(store: &Arc<Store>) -> Self {
        Self(Partial::free(store))
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// An image in the format of `docker save`.
#[derive(Debug)]
pub(crate) struct SavedImage {
    store: Arc<Store>,
    image: LocalImage,
    diff_ids: Vec<ImageDigest>,
    _file: ArchiveFile,
}

impl SavedImage {
    /// Reads the documents of an archive of one image. Blocks.
    ///
    /// # Errors
    /// Returns an error if the file is not such an archive.
    pub(crate) fn open(store: &Arc<Store>, file: ArchiveFile) -> Result<Self, ImageError> {
        let name = ImageName::DockerArchive { path: file.path().into(), tag: None };
        let image = LocalImage::open(store, NAME, &name, UnpackLimits::default().bytes)?;
        let malformed = |reason| ImageError::BadArchive { path: file.path().into(), reason };
        let config =
            ImageConfig::parse(&image.config, Some(image.layers.len())).map_err(|wrong| wrong.of(NAME, malformed))?;
        Ok(Self { store: Arc::clone(store), image, diff_ids: config.rootfs.diff_ids, _file: file })
    }

    /// Returns the digests of the uncompressed layers, lowest first.
    pub(crate) fn diff_ids(&self) -> &[ImageDigest] {
        &self.diff_ids
    }

    /// Returns a layer by its position, counted from the lowest.
    ///
    /// # Errors
    /// Returns an error if there is no such layer, or if the file cannot be opened.
    pub(crate) fn layer(&self, index: usize) -> io::Result<BlobFile> {
        let at = self.image.layers.get(index).ok_or_else(|| io::Error::other("the saved image has fewer layers"))?;
        at.open().map_err(io::Error::other)
    }

    /// Adds the whole image to the store, as an image to boot from.
    ///
    /// # Errors
    /// Returns an error if layers cannot be unpacked.
    ///
    /// # Cancel safety
    /// If the future is dropped, layers that are in place already stay.
    pub(crate) async fn keep(self, id_map: IdMap) -> Result<ImageDigest, ImageError> {
        let Self { store, image, _file, .. } = self;
        let (digest, limits) = (image.digest, UnpackLimits::default());
        let origin = ImageOrigin::Local(image);
        ImageFetch { store: &store, name: NAME, digest, origin: &origin, id_map, limits }.run(&()).await?;
        Ok(digest)
    }
}
