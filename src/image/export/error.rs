//! Errors of exporting a snapshot.

use std::{io, path::PathBuf};

use crate::{image::ImageError, store::StoreError};

/// The reason why a snapshot cannot be exported.
///
/// `Display` is a lowercase fragment that tells the user what to do. The cause is in
/// [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The text does not name a valid target.
    #[error("invalid target `{target}`: expected `oci:DIR[:TAG]` or `docker-archive:FILE[:NAME:TAG]`")]
    BadTarget {
        /// The text.
        target: String,
    },
    /// The snapshot is based on this machine's own system.
    #[error(
        "the step ran on image `host`, this machine's own system, which cannot be exported: run it on another \
         image, such as `--image A=debian:bookworm`"
    )]
    Host,
    /// The directory contains something else.
    #[error("`{}` exists and is not an OCI layout: use another directory", path.display())]
    Occupied {
        /// The directory.
        path: PathBuf,
    },
    /// A layer cannot be read.
    #[error("failed to read the layer `{}`", path.display())]
    Read {
        /// Its directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The image cannot be written.
    #[error("failed to write `{}`", path.display())]
    Write {
        /// The file that was being written.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A document cannot be encoded.
    #[error("failed to encode the image's configuration: {0}")]
    Encode(String),
    /// The base image cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Adds the path that was being written to an error.
pub(super) trait Writing<T> {
    fn writing(self, path: &std::path::Path) -> Result<T, ExportError>;
}

impl<T> Writing<T> for io::Result<T> {
    fn writing(self, path: &std::path::Path) -> Result<T, ExportError> {
        self.map_err(|source| ExportError::Write { path: path.into(), source })
    }
}
