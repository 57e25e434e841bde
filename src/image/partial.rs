//! Layers that are being created whose final place is known in advance, and files that are being downloaded.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::store::{LayerId, Store, StoreError, error::IoContext, files::make_dir};

/// A layer that is being created, or a file that is being downloaded. It is removed when dropped, unless it
/// was put in its place.
#[derive(Debug)]
pub(super) struct Partial {
    store: Arc<Store>,
    path: PathBuf,
}

impl Partial {
    /// Creates an empty layer.
    pub(super) fn new(store: &Arc<Store>) -> Result<Self, StoreError> {
        let partial = Self::free(store);
        make_dir(&partial.path)?;
        let root = partial.root();
        make_dir(&root)?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).doing("set the mode of", &root)?;
        Ok(partial)
    }

    /// Returns a path where nothing exists yet.
    pub(super) fn free(store: &Arc<Store>) -> Self {
        Self { path: store.instance().new_tmp(), store: Arc::clone(store) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory for the layer's files.
    pub(super) fn root(&self) -> PathBuf {
        self.path.join("root")
    }

    /// Makes it the layer `layer`. If another process was faster, its layer stays, because the two are
    /// identical.
    pub(super) fn place(self, layer: &LayerId) -> Result<(), StoreError> {
        let place = self.store.layers().home(layer);
        match fs::rename(&self.path, &place) {
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                Ok(())
            }
            renamed => renamed.doing("make the layer", &place),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Already gone if it was placed.
        self.store.trash().discard(std::mem::take(&mut self.path));
    }
}
