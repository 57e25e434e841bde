//! Why an image can't be had.

use std::{io, path::PathBuf};

use super::ImageDigest;
use crate::store::{StoreError, tree::UnpackError};

/// Why an image can't be had.
///
/// `Display` is a lowercase fragment with the image's name and what to do; the cause is in
/// [`source`](std::error::Error::source). No credentials are in either.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The text names no image.
    #[error("`{image}` names no image: {reason}")]
    BadName {
        /// The text.
        image: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry, or the archive, has no such image.
    #[error("there is no image `{image}`{}: check its name and tag{}", at(.place), login(.place))]
    NotFound {
        /// Which image.
        image: String,
        /// Where it was looked for, unless the name says it.
        place: Option<String>,
    },
    /// The registry does not let us.
    #[error("the registry {registry} does not let us have `{image}`: run `docker login {registry}`, or check its name")]
    Unauthorized {
        /// Which image.
        image: String,
        /// Whose registry.
        registry: String,
    },
    /// The registry wants fewer requests.
    #[error(
        "the registry {registry} limits how often `{image}` may be asked for: wait, run `docker login {registry}`, or \
         name a mirror in HM_REGISTRY_MIRROR"
    )]
    RateLimited {
        /// Which image.
        image: String,
        /// Whose registry.
        registry: String,
    },
    /// The registry can't be reached, or broke off, also on later attempts.
    #[error(
        "the registry {registry} can't be reached for `{image}` ({reason}): check the network, or name a mirror in \
         HM_REGISTRY_MIRROR"
    )]
    Unreachable {
        /// Which image.
        image: String,
        /// Whose registry.
        registry: String,
        /// What happened.
        reason: String,
    },
    /// The registry answered with what makes no sense.
    #[error("the registry {registry} gave an answer for `{image}` that makes no sense: {reason}")]
    BadAnswer {
        /// Which image.
        image: String,
        /// Whose registry.
        registry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The bytes are not those that the image's name, manifest or configuration promises.
    #[error(
        "{what} of the image `{image}` is not what it should be: expected {expected}, found {found}; pull it again later, or tell its owner"
    )]
    WrongDigest {
        /// Which image.
        image: String,
        /// Which part.
        what: String,
        /// The digest or size promised.
        expected: String,
        /// What was found.
        found: String,
    },
    /// It is larger than allowed.
    #[error(
        "the image `{image}` has {bytes} bytes to download, more than the {limit} that are allowed: set HM_MAX_IMAGE_BYTES to allow more"
    )]
    TooLarge {
        /// Which image.
        image: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// It is not for this machine.
    #[error("the image `{image}` is for {found}, and this machine is {wanted}: name another image")]
    UnsupportedPlatform {
        /// Which image.
        image: String,
        /// What this machine needs, as in `linux/amd64`.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// Its manifest, or a layer, is of a kind that is not known here.
    #[error("the image `{image}` has {what}, which is not supported: {hint}")]
    UnsupportedFormat {
        /// Which image.
        image: String,
        /// What it has.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// It would have to be fetched, and that is not allowed.
    #[error(
        "the image `{image}` is not in the store, and nothing may be fetched: run once without `--offline` and `--pull never`"
    )]
    Offline {
        /// Which image.
        image: String,
    },
    /// The program was built without registries.
    #[error("the image `{image}` lies in a registry, and this program was built without the feature `registry`")]
    NoRegistry {
        /// Which image.
        image: String,
    },
    /// A file of the image, or of a configuration, can't be read.
    #[error("failed to read `{}`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file on this machine is not what its name says.
    #[error("`{}` is no image: {reason}", path.display())]
    BadArchive {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A layer can't be unpacked.
    #[error("failed to unpack a layer of the image `{image}`")]
    Unpack {
        /// Which image.
        image: String,
        /// Why.
        #[source]
        source: UnpackError,
    },
    /// Layers of an image that a snapshot stands on are gone.
    #[error("layers of the image {digest} are gone from the store: run the steps again that were built on it")]
    Lost {
        /// Which image.
        digest: ImageDigest,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn at(place: &Option<String>) -> String {
    place.as_ref().map(|place| format!(" {place}")).unwrap_or_default()
}

fn login(place: &Option<String>) -> &'static str {
    if place.is_none() { ", and that `docker login` is done where it is private" } else { "" }
}
