//! Frozen sources in the store: a row that names the layers, and the manifest in `sources/SOURCE/`.

use std::path::PathBuf;

use super::{FrozenSource, LayerId, SourceId, Store, StoreError, layout::make_dir, manifest::Manifest};

impl Store {
    /// Returns a source whose layers are all in the store, unchanged. Returns `None` if there is no such
    /// source, or not any more.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn frozen_source(&self, id: &SourceId) -> Result<Option<FrozenSource>, StoreError> {
        Ok(self.kept_source(id)?.map(|layers| self.source_of(id, layers)))
    }

    /// Names a stack of layers, all of which are in place. The manifest outlives the layers: snapshots over
    /// this source need it to find out which files were edited since.
    pub(super) fn record_source(
        &self,
        id: &SourceId,
        manifest: &[u8],
        layers: &[LayerId],
    ) -> Result<FrozenSource, StoreError> {
        make_dir(&self.source_home(id))?;
        self.write_file(&self.source_home(id).join("manifest"), manifest)?;
        self.keep_source(id, layers)?;
        Ok(self.source_of(id, layers.to_vec()))
    }

    /// Returns the manifest of a source in the store.
    pub(crate) fn manifest(&self, id: &SourceId) -> Result<Manifest, StoreError> {
        Manifest::read(&self.source_home(id).join("manifest"))
    }

    fn source_of(&self, id: &SourceId, layers: Vec<LayerId>) -> FrozenSource {
        let roots = layers.iter().map(|layer| self.layer_dir(layer)).collect();
        FrozenSource { id: id.clone(), layers, roots }
    }

    pub(super) fn source_home(&self, id: &SourceId) -> PathBuf {
        self.dir().join("sources").join(id.as_str())
    }
}
