//! Which layers a frozen source is made of: the record `sources/SOURCE/{manifest,stack}`.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use super::{
    FrozenSource, LayerId, SourceId, Store, StoreError, error::Doing, layout::make_dir, layout::names,
    manifest::Manifest,
};

impl Store {
    /// The layers of a source, topmost first; `None` where the store does not have it.
    pub(super) fn source_stack(&self, id: &SourceId) -> Result<Option<Vec<LayerId>>, StoreError> {
        let path = self.source_home(id).join("stack");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", path, error)),
        };
        // A damaged record is none: the source is frozen again.
        Ok(text.lines().map(LayerId::parse).collect::<Option<Vec<_>>>().filter(|stack| !stack.is_empty()))
    }

    /// A source that the store has, with all its layers.
    pub(super) fn frozen_source(&self, id: &SourceId) -> Result<Option<FrozenSource>, StoreError> {
        let Some(layers) = self.source_stack(id)? else { return Ok(None) };
        let roots: Vec<PathBuf> = layers.iter().map(|layer| self.layer_dir(layer)).collect();
        Ok(roots.iter().all(|root| root.is_dir()).then(|| FrozenSource { id: id.clone(), layers, roots }))
    }

    /// Names a stack of layers, all of which are in place. Where another process was faster with the same source, that
    /// one's stays, and the topmost layer of this one goes.
    pub(super) fn record_source(
        &self,
        id: &SourceId,
        manifest: &[u8],
        layers: &[LayerId],
    ) -> Result<FrozenSource, StoreError> {
        let (aside, home) = (self.new_tmp(), self.source_home(id));
        make_dir(&aside)?;
        let stack: String = layers.iter().map(|layer| format!("{layer}\n")).collect();
        for (name, bytes) in [("manifest", manifest), ("stack", stack.as_bytes())] {
            let path = aside.join(name);
            fs::write(&path, bytes).doing("write", &path)?;
        }
        if fs::rename(&aside, &home).is_err() {
            if let Some(frozen) = self.frozen_source(id)? {
                self.discard(aside);
                if let Some(topmost) = layers.first().filter(|layer| !frozen.layers.contains(layer)) {
                    self.discard_from(&self.layer_home(topmost))?;
                }
                return Ok(frozen);
            }
            // A record whose layers are lost.
            self.discard_from(&home)?;
            fs::rename(&aside, &home).doing("make the source", &home)?;
        }
        let roots = layers.iter().map(|layer| self.layer_dir(layer)).collect();
        Ok(FrozenSource { id: id.clone(), layers: layers.to_vec(), roots })
    }

    /// The layers that any source is made of.
    pub(super) fn source_layers(&self) -> Result<BTreeSet<LayerId>, StoreError> {
        let mut layers = BTreeSet::new();
        for name in names(&self.dir().join("sources"))? {
            if let Some(id) = SourceId::parse(&name) {
                layers.extend(self.source_stack(&id)?.into_iter().flatten());
            }
        }
        Ok(layers)
    }

    /// What a source in the store consists of.
    pub(super) fn manifest(&self, id: &SourceId) -> Result<Manifest, StoreError> {
        Manifest::read(&self.source_home(id).join("manifest"))
    }

    fn source_home(&self, id: &SourceId) -> PathBuf {
        self.dir().join("sources").join(id.as_str())
    }
}
