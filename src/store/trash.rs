//! Removal of trees: moved to this process's directory for temporary files at once, and deleted later.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{StoreError, TreeOps, instance::Instance, remover::Remover, tree, tree_ops::CurrentTreeOps};

/// What this process is removing. When dropped, it waits for the removals, removes the process's directory
/// for temporary files, and unregisters the process.
#[derive(Debug)]
pub(crate) struct Trash {
    instance: Arc<Instance>,
    ops: CurrentTreeOps,
    remover: Remover,
}

impl Trash {
    pub(super) fn new(instance: Arc<Instance>) -> Self {
        let ops = CurrentTreeOps::direct();
        Self { instance, remover: Remover::start(ops.clone()), ops }
    }

    /// Returns the operations to use on trees that steps wrote.
    pub(crate) fn tree_ops(&self) -> Arc<dyn TreeOps> {
        self.ops.get()
    }

    /// Uses `ops` from now on, also for removals that failed before.
    pub(super) fn set_tree_ops(&self, ops: Arc<dyn TreeOps>) {
        self.ops.set(ops);
        self.remover.retry();
    }

    /// Removes a tree below this process's directory for temporary files soon, on a separate thread.
    pub(crate) fn discard(&self, path: PathBuf) {
        self.remover.remove(path);
    }

    /// Removes soon what is left of a layer in the making: its own directory, if it was not committed,
    /// and the work directory of its overlay.
    pub(super) fn discard_staging(&self, dir: PathBuf, work: PathBuf) {
        self.remover.remove_staging(dir, work);
    }

    /// Unmounts a directory that is mounted for steps and removes it soon.
    pub(super) fn discard_mounted(&self, home: PathBuf) {
        self.remover.unmount(home);
    }

    /// Moves a tree of the store out of its place immediately, and removes it soon. Succeeds if there is
    /// nothing at `path`.
    pub(crate) fn discard_from(&self, path: &Path) -> Result<(), StoreError> {
        if let Some(moved) = self.take(path)? {
            self.discard(moved);
        }
        Ok(())
    }

    /// Discards like [`discard_from`](Self::discard_from), but also handles what cannot be moved: a mount
    /// point or an immutable file. Returns false, after a warning, if it stays.
    pub(super) fn try_discard_from(&self, path: &Path) -> Result<bool, StoreError> {
        match self.discard_from(path) {
            Ok(()) => Ok(true),
            Err(error @ StoreError::Full { .. }) => Err(error),
            Err(error) => {
                tracing::warn!(error = %error.to_line(), "failed to remove leftovers of a killed process");
                Ok(false)
            }
        }
    }

    /// Moves a tree of the store out of its place, to be [deleted](Self::delete). Returns `None` if there is
    /// nothing at `path`.
    pub(super) fn take(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        let moved = self.instance.new_tmp();
        match fs::rename(path, &moved) {
            Ok(()) => Ok(Some(moved)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("remove", path, error)),
        }
    }

    /// Deletes trees that were [taken](Self::take), and returns the freed bytes. What it is not permitted to
    /// delete is reported, and stays until the store is opened by a process that has the permission.
    pub(super) fn delete(&self, trees: Vec<PathBuf>) -> u64 {
        let ops = self.tree_ops();
        let mut freed = 0;
        for tree in trees {
            // One after the other, because files that several trees share are freed with the last.
            let extent = tree::measure(&tree).unwrap_or_default();
            freed += extent.own + extent.enclosed;
            if let Err(error) = ops.remove_tree(&tree) {
                let left = tree::measure(&tree).unwrap_or_default();
                freed = freed.saturating_sub(left.own + left.enclosed);
                tracing::warn!(%error, path = %tree.display(), "failed to remove some garbage");
            }
        }
        freed
    }
}

impl Drop for Trash {
    fn drop(&mut self) {
        self.remover.finish();
        let tmp = self.instance.tmp();
        let removed = self.tree_ops().remove_tree(&tmp).and_then(|()| self.instance.unregister());
        if let Err(error) = removed {
            tracing::debug!(%error, path = %tmp.display(), "leaving a file to the next process that opens the store");
        }
    }
}
