//! Errors of the store.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::Filesystem;
use crate::model::SnapshotRef;

/// The reason why an operation of the store failed.
///
/// `Display` is a lowercase fragment with the path concerned. The cause is in
/// [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file operation failed.
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
    /// The store's filesystem, or the user's quota there, is full.
    #[error("no space left on {}", room(path))]
    Full {
        /// The file that could not be written.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file of the source tree cannot be read.
    #[error("failed to read `{}` of the source tree: make it readable, or add it to .gitignore", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file of the source tree changes faster than it can be read.
    #[error(
        "`{}` of the source tree kept changing while it was read: stop the program that writes it, or add it to .gitignore",
        path.display()
    )]
    SourceChanged {
        /// The file.
        path: PathBuf,
    },
    /// A directory of the source tree is nested so deeply that steps could not open it.
    #[error(
        "a directory of the source tree is too deep, with a path of {} bytes: remove it, or add it to .gitignore ({}...)",
        path.as_os_str().len(), path.to_string_lossy().chars().take(100).collect::<String>()
    )]
    TooDeep {
        /// The directory.
        path: PathBuf,
    },
    /// The source tree is not a directory.
    #[error("the source tree `{}` is not a directory", path.display())]
    NoSource {
        /// The given path.
        path: PathBuf,
    },
    /// The caller no longer needs the result.
    #[error("freezing the source tree was cancelled")]
    Abandoned,
    /// There is no such snapshot.
    #[error("no snapshot `{snapshot}` in the store at `{}`", store.display())]
    UnknownSnapshot {
        /// The requested snapshot.
        snapshot: SnapshotRef,
        /// The store.
        store: PathBuf,
    },
    /// The image does not refer to this machine's system or to a directory on it.
    #[error("unsupported image `{image}`: use `host` or `rootfs:DIR`, for example with `--image {image}=host`")]
    UnsupportedImage {
        /// The requested image.
        image: String,
    },
    /// The directory of a `rootfs:DIR` image cannot be used as a root filesystem.
    #[error("cannot use `{}` as a root filesystem: {reason}", path.display())]
    BadRootfs {
        /// The directory.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// The store is inside a directory that steps would boot from.
    #[error(
        "the store at `{}` is inside the root filesystem `{}`: set HM_CACHE_DIR to a directory outside of it",
        store.display(), within.display()
    )]
    StoreWithinImage {
        /// The store.
        store: PathBuf,
        /// The directory.
        within: PathBuf,
    },
    /// A directory requested with the host image cannot be shown to steps.
    #[error("cannot show `{}` to steps: {reason}", path.display())]
    BadHostDir {
        /// The directory.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// No directory is known for the store.
    #[error("no directory for the store: set HM_CACHE_DIR, XDG_CACHE_HOME or HOME")]
    NoHome,
    /// A record of the store cannot be decoded.
    #[error("this version cannot read `{}` ({reason}): remove the store, or use another HM_CACHE_DIR", path.display())]
    Corrupt {
        /// The record.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
}

impl StoreError {
    /// Returns whether the same request can succeed later without any other change. A full disk stays full
    /// until something is removed from it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::SourceChanged { .. } | Self::Abandoned)
    }

    /// Returns the error and its cause on one line.
    pub(crate) fn to_line(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }

    /// Creates the error of an operation on `path`, with a separate variant for a full disk.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.into(), source.into());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, source },
            _ => Self::Io { doing, path, source },
        }
    }
}

/// Returns the parent directory of a file that could not be written, and the free space of its filesystem.
fn room(path: &Path) -> String {
    let dir = path.ancestors().skip(1).find(|dir| dir.is_dir()).unwrap_or(path);
    match Filesystem::of(dir) {
        Ok(of) => format!("{} ({})", dir.display(), of.room()),
        Err(_) => dir.display().to_string(),
    }
}

/// Adds the operation and its path to an error of the system.
pub(crate) trait IoContext<T> {
    /// Adds the context, as in `fs::read(path).doing("read", path)`.
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::io(doing, path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_its_room_and_not_tried_again() {
        for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
            let error = Err::<(), _>(errno).doing("write", Path::new("/store/layer")).unwrap_err();
            assert!(matches!(error, StoreError::Full { .. }));
            assert!(error.to_string().starts_with("no space left on / (") && !error.is_transient(), "{error}");
        }
    }
}
