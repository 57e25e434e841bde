//! Errors of resolving and fetching images.

use std::{io, path::PathBuf};

use super::ImageDigest;
use crate::store::{StoreError, tree::UnpackError};

/// The reason why an image cannot be resolved or fetched.
///
/// `Display` is a lowercase fragment with the image's name and what to do. The cause is in
/// [`source`](std::error::Error::source). Neither contains credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The text is not a valid name of an image.
    #[error("`{image}` names no image: {reason}")]
    BadName {
        /// The text.
        image: String,
        /// The problem.
        reason: String,
    },
    /// The registry, or the archive, has no such image.
    #[error("there is no image `{image}`{}: check its name and tag{}", at(.place), login(.place))]
    NotFound {
        /// The image.
        image: String,
        /// Where it was looked for, unless the name contains that.
        place: Option<String>,
    },
    /// The registry denies access.
    #[error("the registry {registry} does not let us have `{image}`: run `docker login {registry}`, or check its name")]
    Unauthorized {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
    },
    /// The registry limits the rate of requests.
    #[error(
        "the registry {registry} limits how often `{image}` may be asked for: wait, run `docker login {registry}`, or \
         name a mirror in HM_REGISTRY_MIRROR"
    )]
    RateLimited {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
    },
    /// The registry cannot be reached, or the connection broke, on all attempts.
    #[error(
        "the registry {registry} can't be reached for `{image}` ({reason}): check the network, or name a mirror in \
         HM_REGISTRY_MIRROR"
    )]
    Unreachable {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// The failure.
        reason: String,
    },
    /// The registry's answer is invalid.
    #[error("the registry {registry} gave an answer for `{image}` that makes no sense: {reason}")]
    BadAnswer {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
        /// The problem.
        reason: String,
    },
    /// The bytes do not match the image's name, manifest or configuration.
    #[error(
        "{what} of the image `{image}` is not what it should be: expected {expected}, found {found}; pull it again later, or tell its owner"
    )]
    WrongDigest {
        /// The image.
        image: String,
        /// The part of the image.
        what: String,
        /// The expected digest or size.
        expected: String,
        /// The actual digest or size.
        found: String,
    },
    /// The image is larger than allowed.
    #[error(
        "the image `{image}` has {bytes} bytes to download, more than the {limit} that are allowed: set HM_MAX_IMAGE_BYTES to allow more"
    )]
    TooLarge {
        /// The image.
        image: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The image is not for this machine.
    #[error("the image `{image}` is for {found}, and this machine is {wanted}: name another image")]
    UnsupportedPlatform {
        /// The image.
        image: String,
        /// The platform of this machine, as in `linux/amd64`.
        wanted: String,
        /// The platforms of the image.
        found: String,
    },
    /// The manifest or a layer has an unsupported type.
    #[error("the image `{image}` has {what}, which is not supported: {hint}")]
    UnsupportedFormat {
        /// The image.
        image: String,
        /// The unsupported part.
        what: String,
        /// A hint for the user.
        hint: &'static str,
    },
    /// The image would have to be fetched, and that is not allowed.
    #[error(
        "the image `{image}` is not in the store, and nothing may be fetched: run once without `--offline` and `--pull never`"
    )]
    Offline {
        /// The image.
        image: String,
    },
    /// The program was built without support for registries.
    #[error("the image `{image}` lies in a registry, and this program was built without the feature `registry`")]
    NoRegistry {
        /// The image.
        image: String,
    },
    /// A file of the image, or of a configuration, cannot be read.
    #[error("failed to read `{}`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file on this machine is not of the kind that the image's name says.
    #[error("`{}` is no image: {reason}", path.display())]
    BadArchive {
        /// The file or directory.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// A layer cannot be unpacked.
    #[error("failed to unpack a layer of the image `{image}`")]
    Unpack {
        /// The image.
        image: String,
        /// The cause.
        #[source]
        source: UnpackError,
    },
    /// Layers of the base image of a snapshot are gone.
    #[error("layers of the image {digest} are gone from the store: run the steps again that were built on it")]
    Lost {
        /// The image.
        digest: ImageDigest,
    },
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn at(place: &Option<String>) -> String {
    place.as_ref().map(|place| format!(" {place}")).unwrap_or_default()
}

fn login(place: &Option<String>) -> &'static str {
    if place.is_none() { ", and that `docker login` is done where it is private" } else { "" }
}
