//! Why a snapshot can't be exported.

use std::{io, path::PathBuf};

use crate::store::{ImageError, StoreError};

/// Why a snapshot can't be exported.
///
/// `Display` is a lowercase fragment that says what to do; the cause is in [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The text names no place to export to.
    #[error("`{target}` is no place for an image: write `oci:DIR[:TAG]` or `docker-archive:FILE[:NAME:TAG]`")]
    BadTarget {
        /// The text.
        target: String,
    },
    /// The snapshot stands on this machine's own system.
    #[error(
        "the step ran on image `host`, this machine's own system, which is no part of its layers: run it on another \
         image, such as `--image A=debian:bookworm`"
    )]
    Host,
    /// The directory holds something else.
    #[error("`{}` is there and no OCI layout: name another directory", path.display())]
    Occupied {
        /// The directory.
        path: PathBuf,
    },
    /// A layer can't be read.
    #[error("failed to read the layer `{}`", path.display())]
    Read {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image can't be written.
    #[error("failed to write `{}`", path.display())]
    Write {
        /// What was being written.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A document can't be encoded.
    #[error("failed to encode the image's configuration: {0}")]
    Encode(String),
    /// The image at the bottom can't be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The store can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Adds what was being written.
pub(super) trait Writing<T> {
    fn writing(self, path: &std::path::Path) -> Result<T, ExportError>;
}

impl<T> Writing<T> for io::Result<T> {
    fn writing(self, path: &std::path::Path) -> Result<T, ExportError> {
        self.map_err(|source| ExportError::Write { path: path.into(), source })
    }
}
