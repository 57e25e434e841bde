//! The base of a root step's filesystem.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{ImageDigest, StoreError};

/// The part of a step's filesystem below the source.
///
/// # Examples
/// ```
/// use hm_exec::store::Base;
///
/// assert_eq!(Base::parse("host")?, Base::Host);
/// assert_eq!(Base::parse("rootfs:/")?.to_string(), "rootfs:/");
/// assert!(Base::parse("debian:bookworm").is_err());
/// # Ok::<(), hm_exec::store::StoreError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Base {
    /// This machine's system directories, copy-on-write.
    Host,
    /// A directory with a whole root filesystem, which is never written to.
    Rootfs(PathBuf),
    /// The layers of an image, named by the digest of its configuration. The configuration names the content
    /// of each layer and the platform. The digest is the same no matter where the image came from and how its
    /// layers were compressed in transit.
    Image(ImageDigest),
}

impl Base {
    /// Parses an image that does not have to be fetched: `host` or `rootfs:DIR`.
    ///
    /// # Errors
    /// Returns [`StoreError::BadRootfs`] if the directory is missing, or [`StoreError::UnsupportedImage`] for
    /// anything else.
    pub fn parse(image: &str) -> Result<Self, StoreError> {
        let Some(dir) = image.strip_prefix("rootfs:") else {
            return image.parse();
        };
        let bad = |reason| StoreError::BadRootfs { path: dir.into(), reason };
        let path = Path::new(dir).canonicalize().map_err(|_| bad("no such directory"))?;
        if !path.is_dir() {
            return Err(bad("it is not a directory"));
        }
        if path.to_str().is_none() {
            return Err(bad("its path is not UTF-8"));
        }
        Ok(Self::Rootfs(path))
    }
}

impl FromStr for Base {
    type Err = StoreError;

    /// Parses the output of `Display`. The directory need not exist.
    fn from_str(image: &str) -> Result<Self, StoreError> {
        match image.strip_prefix("rootfs:") {
            Some(dir) => Ok(Self::Rootfs(dir.into())),
            None if image == "host" => Ok(Self::Host),
            None if let Ok(digest) = image.parse() => Ok(Self::Image(digest)),
            None => Err(StoreError::UnsupportedImage { image: image.into() }),
        }
    }
}

impl TryFrom<String> for Base {
    type Error = StoreError;

    fn try_from(image: String) -> Result<Self, StoreError> {
        image.parse()
    }
}

impl From<Base> for String {
    fn from(base: Base) -> Self {
        base.to_string()
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Rootfs(path) => write!(f, "rootfs:{}", path.display()),
            Self::Image(digest) => digest.fmt(f),
        }
    }
}
