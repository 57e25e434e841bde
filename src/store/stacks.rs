//! Stacks of layers with a name of their own: frozen sources, and images.
//!
//! The store keeps them, and forgets those that were not used for a long time. It does not know what is in
//! their layers, and it does not read the configuration of an image.

use std::sync::Arc;

use super::index::images::TagRow;
use super::{
    IdMap, ImageDigest, LayerId, SourceId, StoreError,
    index::{self, LayerKind, images::ImageRow},
    layers::Layers,
    shared::Shared,
};

/// A use is not recorded if the last recorded one is more recent than this, in milliseconds.
const FRESH_MS: i64 = 60 * 60 * 1000;

/// The named stacks of a store.
#[derive(Debug)]
pub(crate) struct Stacks {
    shared: Arc<Shared>,
    layers: Arc<Layers>,
}

impl Stacks {
    pub(super) fn new(shared: Arc<Shared>, layers: Arc<Layers>) -> Self {
        Self { shared, layers }
    }

    /// Names a stack of layers, topmost first, after a source. A layer without a row gets one, after a walk
    /// over it.
    pub(crate) fn keep_source(&self, id: &SourceId, layers: &[LayerId]) -> Result<(), StoreError> {
        self.layers
            .keep(layers, LayerKind::Source, |transaction, _| index::sources::put(transaction, id, layers))
            .map(drop)
    }

    /// Names a stack of layers after an image. A layer without a row gets one, after a walk over it.
    pub(crate) fn keep_image(&self, digest: &ImageDigest, id_map: IdMap, image: &ImageRow) -> Result<(), StoreError> {
        self.layers
            .keep(&image.stack, LayerKind::Image, |transaction, _| {
                index::images::put(transaction, digest, id_map, image)
            })
            .map(drop)
    }

    /// Returns whether there is an image of this digest, in any state.
    pub(crate) fn has_image(&self, digest: &ImageDigest) -> Result<bool, StoreError> {
        self.shared.index.read(|connection| index::images::exists(connection, digest))
    }

    /// Returns the image that a tag was last resolved to.
    pub(crate) fn tag(&self, reference: &str) -> Result<Option<TagRow>, StoreError> {
        self.shared.index.read(|connection| index::images::tag(connection, reference))
    }

    /// Returns the tag that was last resolved to an image, if there is one.
    pub(crate) fn tag_of(&self, image: &ImageDigest) -> Result<Option<(String, TagRow)>, StoreError> {
        self.shared.index.read(|connection| index::images::tag_of(connection, image))
    }

    /// Remembers the image that a tag resolves to.
    pub(crate) fn remember_tag(&self, reference: &str, tag: &TagRow) -> Result<(), StoreError> {
        self.shared.index.write(|transaction| index::images::put_tag(transaction, reference, tag))
    }

    /// Records that an image was just used, so that garbage collection does not remove it first.
    pub(crate) fn touch_image(&self, digest: &ImageDigest, id_map: IdMap) -> Result<(), StoreError> {
        self.shared.index.write(|transaction| index::images::touch(transaction, digest, id_map))
    }

    /// Returns an image if all of its layers are present and unchanged.
    pub(crate) fn image(&self, digest: &ImageDigest, id_map: IdMap) -> Result<Option<ImageRow>, StoreError> {
        let image = self.shared.index.read(|connection| index::images::get(connection, digest, id_map))?;
        let Some((image, is_doomed)) = image else { return Ok(None) };
        if self.layers.damage(&image.stack)?.is_some() {
            return Ok(None);
        }
        let spare =
            || self.shared.index.write(|transaction| index::images::spare(transaction, digest, id_map, &image.stack));
        Ok(if !is_doomed || spare()? { Some(image) } else { None })
    }

    /// Returns the layers of a source, topmost first, if all of them are present and unchanged.
    pub(crate) fn source(&self, id: &SourceId) -> Result<Option<Vec<LayerId>>, StoreError> {
        let Some(layers) = self.recorded_source(id)? else { return Ok(None) };
        Ok(if self.layers.damage(&layers)?.is_none() { Some(layers) } else { None })
    }

    /// Returns the layers of a source, topmost first, without looking at them.
    pub(crate) fn recorded_source(&self, id: &SourceId) -> Result<Option<Vec<LayerId>>, StoreError> {
        let Some(row) = self.shared.index.read(|connection| index::sources::get(connection, id))? else {
            return Ok(None);
        };
        let is_fresh = (0..FRESH_MS).contains(&(index::now_ms() - row.used_at));
        if row.is_doomed || !is_fresh {
            let touched = self.shared.index.write(|transaction| index::sources::touch(transaction, id, &row.stack));
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
}
