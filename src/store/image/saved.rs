//! What a daemon saved: an archive in a file of the store, to take layers from.

use std::{io, path::Path, sync::Arc};

use super::{
    ImageDigest, ImageError,
    archive::LocalImage,
    aside::Aside,
    fetch::{Fetch, Origin},
    manifest::Config,
    reference::ImageName,
};
use crate::store::{
    IdMap, Store,
    tree::{BlobFile, UnpackLimits},
};

/// What errors call it.
const NAME: &str = "the saved image";

/// A file of the store for an archive to be written to. It goes with this.
#[derive(Debug)]
pub(crate) struct ArchiveFile(Aside);

impl ArchiveFile {
    /// Nothing is there yet.
    pub(crate) fn new(store: &Arc<Store>) -> Self {
        Self(Aside::free(store))
    }

    /// Where it is to be.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// An image as `docker save` writes it.
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
    /// Where it is no such archive.
    pub(crate) fn open(store: &Arc<Store>, file: ArchiveFile) -> Result<Self, ImageError> {
        let name = ImageName::DockerArchive { path: file.path().into(), tag: None };
        let image = LocalImage::open(store, NAME, &name, UnpackLimits::default().bytes)?;
        let malformed = |reason| ImageError::BadArchive { path: file.path().into(), reason };
        let config =
            Config::parse(&image.config, Some(image.layers.len())).map_err(|wrong| wrong.of(NAME, malformed))?;
        Ok(Self { store: Arc::clone(store), image, diff_ids: config.rootfs.diff_ids, _file: file })
    }

    /// The digests of the uncompressed layers, lowest first.
    pub(crate) fn diff_ids(&self) -> &[ImageDigest] {
        &self.diff_ids
    }

    /// A layer by its place, from the lowest.
    ///
    /// # Errors
    /// Where there is no such layer, or the file can't be opened.
    pub(crate) fn layer(&self, index: usize) -> io::Result<BlobFile> {
        let at = self.image.layers.get(index).ok_or_else(|| io::Error::other("the saved image has fewer layers"))?;
        at.open().map_err(io::Error::other)
    }

    /// Takes the whole of it into the store, as an image to boot from.
    ///
    /// # Errors
    /// Where layers can't be unpacked.
    ///
    /// # Cancel safety
    /// Dropped, layers that were in place already stay.
    pub(crate) async fn keep(self, id_map: IdMap) -> Result<ImageDigest, ImageError> {
        let Self { store, image, _file, .. } = self;
        let (digest, limits) = (image.digest, UnpackLimits::default());
        let origin = Origin::Local(image);
        Fetch { store: &store, name: NAME, digest, origin: &origin, id_map, limits }.run(&()).await?;
        Ok(digest)
    }
}
