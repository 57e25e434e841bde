//! A run's source tree, as runners request it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::OnceCell;

use super::{FrozenSource, SourceTimes, freeze};
use crate::{
    model::ArchiveId,
    store::{Lease, Store, StoreError},
};

/// A run's source tree, frozen when the first runner requests it.
#[derive(Debug)]
pub struct RunSource {
    id: ArchiveId,
    source_dir: PathBuf,
    times: SourceTimes,
    /// Together with the lease that keeps the tree in the store.
    frozen: OnceCell<(Arc<FrozenSource>, Lease)>,
}

impl RunSource {
    /// Names the tree. Steps see [normal](SourceTimes::Normal) times. Nothing is read yet.
    #[must_use]
    pub fn new(id: ArchiveId, source_dir: impl Into<PathBuf>) -> Self {
        Self { id, source_dir: source_dir.into(), times: SourceTimes::Normal, frozen: OnceCell::new() }
    }

    /// Sets which times of files steps see.
    #[must_use]
    pub fn times(mut self, times: SourceTimes) -> Self {
        self.times = times;
        self
    }

    /// Returns the id in [`ExecutorInput::workspace_archive_id`](crate::ExecutorInput).
    #[must_use]
    pub fn id(&self) -> ArchiveId {
        self.id
    }

    /// Returns the user's directory, which is never written to.
    #[must_use]
    pub fn source_dir(&self) -> &Path {
        &self.source_dir
    }

    /// Returns the tree in the store. The first caller freezes it on a thread for blocking work, while the
    /// other callers wait. All runners of a run share one store.
    ///
    /// # Errors
    /// Returns an error if the tree cannot be read or copied. The next caller tries again.
    ///
    /// # Cancel safety
    /// If all callers drop their futures, the work stops soon and leaves nothing behind.
    pub async fn freeze(&self, store: &Arc<Store>) -> Result<Arc<FrozenSource>, StoreError> {
        let frozen = self.frozen.get_or_try_init(async || {
            let (store, source_dir, times) = (Arc::clone(store), self.source_dir.clone(), self.times);
            let abandoned = Arc::new(AtomicBool::new(false));
            let _guard = Abandon(Arc::clone(&abandoned));
            let work = tokio::task::spawn_blocking(move || {
                let lease = store.lease()?;
                Ok((Arc::new(freeze(&store, &source_dir, times, &abandoned)?), lease))
            });
            work.await.map_err(|error| StoreError::Io {
                doing: "freeze",
                path: self.source_dir.clone(),
                source: std::io::Error::other(error),
            })?
        });
        frozen.await.map(|(frozen, _)| Arc::clone(frozen))
    }
}

/// Stops the work when no caller waits for it any more.
struct Abandon(Arc<AtomicBool>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
