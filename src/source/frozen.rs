//! Frozen sources in the store: a stack of layers, and the manifest in `sources/SOURCE/`.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use super::{
    SourceTimes,
    manifest::{EntryKind, Manifest},
    tar::write_tree,
    workspace,
};
use crate::store::{LayerId, SourceId, Store, StoreError, files::make_dir};

/// A source tree in the store: a stack of read-only layers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrozenSource {
    /// The name. Equal content, modes and times give equal ids. With [`SourceTimes::Normal`] all times are
    /// equal.
    pub id: SourceId,
    /// The times of its files.
    pub times: SourceTimes,
    /// The layers of the source, topmost first: later changes, over a whole tree.
    pub layers: Vec<LayerId>,
    /// The directories of these layers. Each contains its part of the tree at `workspace`, and marks removed
    /// entries as overlayfs does (with whiteouts, never with opaque directories). They can be an overlay's
    /// lower directories for any user ids of the steps.
    pub roots: Vec<PathBuf>,
    manifest: PathBuf,
}

impl FrozenSource {
    /// Returns a source whose layers are all in the store, unchanged. Returns `None` if there is no such
    /// source, or not any more. `times` are those that it was frozen with.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read.
    pub fn find(store: &Store, id: &SourceId, times: SourceTimes) -> Result<Option<Self>, StoreError> {
        Ok(store.stacks().source(id)?.map(|layers| Self::of(store, (id, times), layers)))
    }

    /// Returns a source that is in the index. Its layers may be damaged.
    pub(super) fn recorded(store: &Store, id: &SourceId, times: SourceTimes) -> Result<Option<Self>, StoreError> {
        Ok(store.stacks().recorded_source(id)?.map(|layers| Self::of(store, (id, times), layers)))
    }

    /// Names a stack of layers, all of which are in place. The manifest outlives the layers: snapshots over
    /// this source need it to find out which files were edited since.
    pub(super) fn record(
        store: &Store,
        (id, times): (&SourceId, SourceTimes),
        manifest: &[u8],
        layers: &[LayerId],
    ) -> Result<Self, StoreError> {
        record_manifest(store, id, manifest)?;
        store.stacks().keep_source(id, layers)?;
        Ok(Self::of(store, (id, times), layers.to_vec()))
    }

    fn of(store: &Store, (id, times): (&SourceId, SourceTimes), layers: Vec<LayerId>) -> Self {
        let roots = layers.iter().map(|layer| store.layers().dir(layer)).collect();
        Self { id: id.clone(), times, layers, roots, manifest: manifest_path(store, id) }
    }

    /// Copies the tree to `dir`, which must not exist. Files belong to this process's user; they keep their
    /// modes, and have the times that steps see. Blocks.
    ///
    /// The tree is in the store as long as the [`RunSource`](super::RunSource) that it comes from.
    ///
    /// # Errors
    /// Returns an error if `dir` exists, or if something cannot be read or written. A part of the copy may be
    /// left then.
    pub fn copy_to(&self, dir: impl AsRef<Path>) -> Result<(), StoreError> {
        workspace::copy_source(self, dir.as_ref(), &AtomicBool::new(false))
    }

    /// Writes the tree as a tar stream, without compression, with paths relative to it. Equal sources give
    /// equal bytes. Blocks.
    ///
    /// # Errors
    /// Returns an error if something cannot be read, or if `out` does.
    pub fn write_tar(&self, out: impl Write) -> Result<(), StoreError> {
        write_tree(self, out)
    }

    /// Reads the manifest.
    pub(super) fn manifest(&self) -> Result<Manifest, StoreError> {
        Manifest::read(&self.manifest)
    }

    /// Returns the path of a file of this source in the store. `path` is relative to the tree.
    pub(crate) fn locate(&self, path: &Path) -> PathBuf {
        let within = Path::new("workspace").join(path);
        let has_it = |root: &&PathBuf| root.join(&within).symlink_metadata().is_ok();
        let root = self.roots.iter().find(has_it).or(self.roots.last());
        root.map_or_else(|| within.clone(), |root| root.join(&within))
    }
}

impl Manifest {
    /// Reads the manifest of a source in the store.
    pub(crate) fn of(store: &Store, id: &SourceId) -> Result<Self, StoreError> {
        Self::read(&manifest_path(store, id))
    }
}

/// Writes a manifest to its place. It is removed if nothing names it for an hour.
pub(super) fn record_manifest(store: &Store, id: &SourceId, manifest: &[u8]) -> Result<(), StoreError> {
    make_dir(&store.paths().source(id))?;
    store.instance().write_file(&manifest_path(store, id), manifest)
}

/// Returns the path of the manifest of a source in the store.
pub(super) fn manifest_path(store: &Store, id: &SourceId) -> PathBuf {
    store.paths().source(id).join("manifest")
}

/// Returns the paths and sizes of the largest files of a source, at most `count`, largest first.
pub(crate) fn largest_files(source: &FrozenSource, count: usize) -> Result<Vec<(PathBuf, u64)>, StoreError> {
    let manifest = source.manifest()?;
    let sizes = manifest.entries().filter_map(|entry| match entry.kind {
        EntryKind::File { size_bytes, .. } => Some((entry.as_path().to_owned(), size_bytes)),
        _ => None,
    });
    let mut sizes: Vec<_> = sizes.collect();
    sizes.sort_by(|(a, a_bytes), (b, b_bytes)| b_bytes.cmp(a_bytes).then_with(|| a.cmp(b)));
    sizes.truncate(count);
    Ok(sizes)
}
