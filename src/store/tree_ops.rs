//! Operations on trees that steps wrote.

use std::{
    fs::{self, File},
    io::{self, BufWriter},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    IdMap,
    tree::{self, BlobFile, Retimed, Retiming, UnpackError, UnpackLimits, Unpacked},
};
use crate::sync::Mutex;

/// Operations on trees whose files may belong to other user ids than the caller's.
///
/// The default performs them directly. If steps run with a range of subordinate user ids, the sandbox
/// installs an implementation that performs them inside the steps' user namespace.
pub trait TreeOps: Send + Sync + std::fmt::Debug {
    /// Removes a tree as [`tree::remove_tree`] does.
    ///
    /// # Errors
    /// Returns the first failure.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;

    /// Renames a file or a directory.
    ///
    /// # Errors
    /// Returns an error if it cannot be renamed. It keeps its old name then.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Merges layers as [`tree::flatten`] does.
    ///
    /// # Errors
    /// Returns the first failure.
    fn flatten(&self, layers: &[PathBuf], into: &Path, id_map: IdMap) -> io::Result<()>;

    /// Packs a layer as [`tree::layer_tar`] does.
    ///
    /// # Errors
    /// Returns the first failure.
    fn layer_tar(&self, root: &Path, out: File, id_map: IdMap) -> io::Result<()>;

    /// Copies a layer with other times as [`tree::retime`] does.
    ///
    /// # Errors
    /// Returns the first failure.
    fn retime(&self, layer: &Path, into: &Path, id_map: IdMap, request: &Retiming) -> io::Result<Retimed>;

    /// Unpacks a part of a file as [`tree::unpack`] does.
    ///
    /// # Errors
    /// Returns the first problem found.
    fn unpack(&self, blob: BlobFile, into: &Path, id_map: IdMap, limits: UnpackLimits)
    -> Result<Unpacked, UnpackError>;
}

#[derive(Debug)]
struct Direct;

impl TreeOps for Direct {
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        tree::remove_tree(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn flatten(&self, layers: &[PathBuf], into: &Path, id_map: IdMap) -> io::Result<()> {
        tree::flatten(layers, into, id_map)
    }

    fn layer_tar(&self, root: &Path, out: File, id_map: IdMap) -> io::Result<()> {
        tree::layer_tar(root, BufWriter::with_capacity(1 << 17, out), id_map)
    }

    fn retime(&self, layer: &Path, into: &Path, id_map: IdMap, request: &Retiming) -> io::Result<Retimed> {
        tree::retime(layer, into, id_map, request)
    }

    fn unpack(
        &self,
        blob: BlobFile,
        into: &Path,
        id_map: IdMap,
        limits: UnpackLimits,
    ) -> Result<Unpacked, UnpackError> {
        tree::unpack(blob.into_reader().map_err(|error| UnpackError::reading(&error))?, into, id_map, limits)
    }
}

/// The operations that a store uses. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct CurrentTreeOps(Arc<Mutex<Arc<dyn TreeOps>>>);

impl CurrentTreeOps {
    /// Returns the operations that are performed directly.
    pub(super) fn direct() -> Self {
        Self(Arc::new(Mutex::new(Arc::new(Direct))))
    }

    pub(super) fn get(&self) -> Arc<dyn TreeOps> {
        Arc::clone(&self.0.lock())
    }

    pub(super) fn set(&self, ops: Arc<dyn TreeOps>) {
        *self.0.lock() = ops;
    }
}
