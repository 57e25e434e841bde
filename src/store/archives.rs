//! STUB: the `store` builder owns this folder.

use std::path::{Path, PathBuf};

use crate::runner::ArchiveId;

/// A run's source tree, frozen when the first runner asks.
#[derive(Debug)]
pub struct Archives {
    id: ArchiveId,
    source_dir: PathBuf,
}

impl Archives {
    /// Names the tree; nothing is read yet.
    #[must_use]
    pub fn new(id: ArchiveId, source_dir: impl Into<PathBuf>) -> Self {
        Self { id, source_dir: source_dir.into() }
    }

    /// The id that [`ExecutorInput::workspace_archive_id`](crate::ExecutorInput) has.
    #[must_use]
    pub fn id(&self) -> ArchiveId {
        self.id
    }

    /// The user's directory. Never written to.
    #[must_use]
    pub fn source_dir(&self) -> &Path {
        &self.source_dir
    }
}
