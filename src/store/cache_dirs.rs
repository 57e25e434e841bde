//! Cache directories: named stacks of layers that outlive runs and are part of no snapshot.
//!
//! Every step that has a cache directory starts from the content that was kept last, and writes to a layer
//! of its own. What is kept last replaces the rest. See `docs/design/cache-dirs.md`.

use std::sync::Arc;

use super::{
    IdMap, LayerId, SourceId, Staging, Store, StoreError,
    index::{self, LayerKind},
};

/// The maximum number of layers of a cache directory. The lookup of a missing file has to search each layer.
const MAX_CACHE_LAYERS: usize = 16;

/// The name of a cache directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CacheDirName {
    /// The identity.
    pub(crate) key: [u8; 32],
    /// The name in the step, for users.
    pub(crate) name: String,
    /// To whom it belongs, for users.
    pub(crate) scope: String,
}

/// The content of a cache directory, and what it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CacheDir {
    /// The layers, topmost first.
    pub(crate) layers: Vec<LayerId>,
    /// The source that the content was committed with.
    pub(crate) source: SourceId,
    /// The latest time that steps saw in such sources, in seconds since the Unix epoch and nanoseconds.
    pub(crate) latest: (i64, u32),
}

impl Store {
    /// Returns the content of a cache directory. Only the presence of its layers is checked. The caller
    /// needs a lease while it uses them.
    pub(crate) fn cache_dir(&self, name: &CacheDirName) -> Result<Option<CacheDir>, StoreError> {
        let found = self.index().read(|connection| index::cache_dirs::get(connection, &name.key))?;
        let Some((content, is_doomed)) = found else { return Ok(None) };
        match self.index().write(|transaction| index::cache_dirs::touch(transaction, &name.key, &content)) {
            Ok(true) => {}
            // A layer was just removed.
            Ok(false) => return Ok(None),
            Err(error) if is_doomed => return Err(error),
            Err(error) => tracing::debug!(%error, "failed to record the use of a cache directory"),
        }
        let is_whole = content.layers.iter().all(|layer| self.layers().dir(layer).is_dir());
        Ok(is_whole.then_some(content))
    }

    /// Keeps what a step wrote as the content of a cache directory. `content` is what the step started from,
    /// with the source that the step saw. Takes a walk over what the step wrote, and beyond 16 layers as long
    /// as linking all files.
    #[expect(clippy::needless_pass_by_value, reason = "a committed staging is gone")]
    pub(crate) fn keep_cache_dir(
        self: &Arc<Self>,
        name: &CacheDirName,
        staging: Staging,
        mut content: CacheDir,
        id_map: IdMap,
    ) -> Result<(), StoreError> {
        let mut new = None;
        if !staging.prune()? {
            let written = self.layers().place(staging.home())?;
            content.layers.insert(0, written.clone());
            if content.layers.len() > MAX_CACHE_LAYERS {
                let merged = self.merge(&content.layers, id_map);
                self.trash().discard_from(&self.layers().home(&written))?;
                content.layers = vec![merged?];
            }
            new = content.layers.first().cloned();
        }
        if content.layers.is_empty() {
            return Ok(());
        }
        let kept = self.layers().keep(&content.layers, LayerKind::CacheDir, |transaction, is_whole| {
            if is_whole {
                index::cache_dirs::put(transaction, name, &content)?;
            }
            Ok(is_whole)
        });
        if let (Err(_), Some(new)) = (&kept, &new)
            // The index does not have it, so nothing else would remove it before this process ends.
            && let Err(error) = self.trash().discard_from(&self.layers().home(new))
        {
            tracing::debug!(%error, "failed to remove a layer that was not kept");
        }
        let (rows, is_kept) = kept?;
        if !is_kept {
            // A lease prevents that.
            tracing::debug!(name = name.name, rows = rows.len(), "layers of a cache directory were removed");
        }
        Ok(())
    }
}
