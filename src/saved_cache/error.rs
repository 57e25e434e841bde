//! Errors of saving and restoring results.

use std::{io, path::PathBuf};

use tokio::task::JoinError;

use crate::{
    blocking::BlockingError,
    image::{ExportError, ImageError},
    store::StoreError,
    userns::StartError,
};

/// The reason why results were not saved or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SavedCacheError {
    /// The directory contains something else.
    #[error("`{}` is not a saved cache: {why}", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What is there.
        why: String,
    },
    /// The directory has results of one scope of the remote cache, and the store those of another.
    #[error(
        "`{}` has results of the scope `{saved}`, and the store has those of `{store}`: use a directory for each",
        path.display()
    )]
    Scope {
        /// The directory.
        path: PathBuf,
        /// The scope of its results.
        saved: String,
        /// The scope of those in the store.
        store: String,
    },
    /// The disk of the directory is full.
    #[error("no space left for `{}`", path.display())]
    Full {
        /// The file that could not be written.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file of the directory cannot be read or written.
    #[error("failed to {doing} `{}`", path.display())]
    Io {
        /// The operation, as in "read".
        doing: &'static str,
        /// The path that it was applied to.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A blob is missing, or is not what the list says.
    #[error("`{}` is damaged: {why}", path.display())]
    Damaged {
        /// The blob.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A layer cannot be packed.
    #[error("failed to pack a layer")]
    Pack(#[source] ExportError),
    /// An image cannot be pulled, or a layer cannot be unpacked.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The store cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The helper that reads and writes the layers of steps cannot be started.
    #[error("cannot read or write layers here: failed to start the sandbox")]
    Userns(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A thread panicked or was cancelled.
    #[error("failed to {doing}")]
    Thread {
        /// The operation.
        doing: &'static str,
        /// The cause.
        #[source]
        source: JoinError,
    },
}

impl SavedCacheError {
    /// Creates the error of an operation on `path`, with a separate variant for a full disk.
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.into(), source.into());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, source },
            _ => Self::Io { doing, path, source },
        }
    }

    /// Creates the error of packing a layer into a file of the directory.
    pub(super) fn pack(error: ExportError) -> Self {
        match error {
            ExportError::Write { path, source } => Self::io("write", path, source),
            error => Self::Pack(error),
        }
    }

    /// Returns whether other results would fail in the same way: something is wrong with the store or with
    /// its disk, not with one result.
    pub(super) fn is_of_the_store(&self) -> bool {
        let of = |error: &StoreError| !matches!(error, StoreError::Corrupt { .. } | StoreError::UnknownSnapshot { .. });
        match self {
            Self::Store(error) | Self::Image(ImageError::Store(error)) => of(error),
            Self::Userns(_) | Self::Thread { .. } => true,
            _ => false,
        }
    }

    /// Returns the error and its causes on one line.
    pub(super) fn into_line(self) -> String {
        format!("{:#}", anyhow::Error::new(self))
    }
}

impl From<StartError> for SavedCacheError {
    fn from(error: StartError) -> Self {
        Self::Userns(Box::new(error))
    }
}

impl BlockingError for SavedCacheError {
    fn not_done(doing: &'static str, source: JoinError) -> Self {
        Self::Thread { doing, source }
    }
}

/// Adds the operation and its path to an error of the system.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str, path: &std::path::Path) -> Result<T, SavedCacheError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: &'static str, path: &std::path::Path) -> Result<T, SavedCacheError> {
        self.map_err(|source| SavedCacheError::io(doing, path, source))
    }
}
