//! Images in the store: their layers, and the contents of their configurations.

use std::collections::BTreeMap;

use super::Base;
use super::{
    ImageDigest, ImageError, base_layer,
    manifest::{ImageConfig, ImageProgram},
};
use crate::store::{IdMap, ImageRow, LayerId, Store, StoreError};

/// An image in the store that is ready to boot from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredImage {
    /// The layers, topmost first. The lowest one is not part of the image: it contains what every step needs.
    pub(crate) layers: Vec<LayerId>,
    /// The environment variables that the image sets, by name.
    pub(crate) env: BTreeMap<String, String>,
}

impl StoredImage {
    /// Looks up an image whose layers are all present and unchanged.
    ///
    /// # Errors
    /// Returns [`ImageError::Lost`] if there is no such image, or if part of it is missing.
    pub(crate) fn find(store: &Store, digest: &ImageDigest, id_map: IdMap) -> Result<Self, ImageError> {
        let (layers, config) = stored(store, digest, id_map)?;
        Ok(Self { layers, env: config.env() })
    }
}

/// Returns the layers and the configuration of an image.
fn stored(store: &Store, digest: &ImageDigest, id_map: IdMap) -> Result<(Vec<LayerId>, ImageConfig), ImageError> {
    let lost = || ImageError::Lost { digest: *digest };
    let ImageRow { stack, config } = store.stacks().image(digest, id_map)?.ok_or_else(lost)?;
    // A row that was modified is ignored.
    if ImageDigest::of(config.as_bytes()) != *digest {
        return Err(lost());
    }
    let config = ImageConfig::parse(config.as_bytes(), None).map_err(|_| lost())?;
    Ok((stack, config))
}

/// Returns whether an image is in the store with all of its layers, and counts this as a use. Take a
/// [lease](Store::lease) first.
///
/// # Errors
/// Returns an error if the index cannot be written.
pub(crate) fn is_stored(store: &Store, digest: &ImageDigest, id_map: IdMap) -> Result<bool, StoreError> {
    if StoredImage::find(store, digest, id_map).is_err() {
        return Ok(false);
    }
    store.stacks().touch_image(digest, id_map)?;
    Ok(true)
}

/// Returns the environment variables that an image sets, by name.
///
/// # Errors
/// Returns [`ImageError::Lost`], as [`StoredImage::find`] does.
pub(crate) fn env_of(store: &Store, base: &Base, id_map: IdMap) -> Result<BTreeMap<String, String>, ImageError> {
    match base {
        Base::Image(digest) => Ok(StoredImage::find(store, digest, id_map)?.env),
        Base::Host | Base::Rootfs(_) => Ok(BTreeMap::new()),
    }
}

/// Returns the program that an image runs by default, if it names one.
///
/// # Errors
/// Returns [`ImageError::Lost`], as [`StoredImage::find`] does.
pub(crate) fn program_of(store: &Store, base: &Base, id_map: IdMap) -> Result<Option<ImageProgram>, ImageError> {
    match base {
        Base::Image(digest) => Ok(stored(store, digest, id_map)?.1.program()),
        Base::Host | Base::Rootfs(_) => Ok(None),
    }
}

/// Keeps an image whose layers are all in their places.
pub(super) fn keep(
    store: &Store,
    digest: &ImageDigest,
    id_map: IdMap,
    config: &ImageConfig,
    bytes: Vec<u8>,
) -> Result<(), StoreError> {
    let config = ImageRow {
        stack: stack(config, id_map),
        config: String::from_utf8(bytes).map_err(|error| StoreError::Corrupt {
            path: store.dir().into(),
            reason: format!("the configuration of {digest} is not UTF-8: {error}"),
        })?,
    };
    store.stacks().keep_image(digest, id_map, &config)
}

/// Returns the layers of an image, topmost first. A layer that occurs twice counts at its higher position:
/// overlayfs rejects duplicates, and the lower copy shows nothing that the higher one does not.
fn stack(config: &ImageConfig, id_map: IdMap) -> Vec<LayerId> {
    let mut layers: Vec<LayerId> = Vec::new();
    for diff_id in config.rootfs.diff_ids.iter().rev() {
        let layer = LayerId::of_image(diff_id, id_map);
        if !layers.contains(&layer) {
            layers.push(layer);
        }
    }
    layers.push(base_layer::layer_id(id_map));
    layers
}
