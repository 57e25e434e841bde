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
    #[error("invalid image name `{image}`: {reason}")]
    BadName {
        /// The text.
        image: String,
        /// The problem.
        reason: String,
    },
    /// The registry, or the archive, has no such image.
    #[error("no image `{image}`{}: check its name and tag{}", at(.place), login(.place))]
    NotFound {
        /// The image.
        image: String,
        /// Where it was looked for, unless the name contains that.
        place: Option<String>,
    },
    /// The registry denies access.
    #[error("registry {registry} denied access to `{image}`: run `docker login {registry}`, or check its name")]
    Unauthorized {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
    },
    /// The registry limits the rate of requests.
    #[error(
        "registry {registry} limits the rate of requests for `{image}`: wait, run `docker login {registry}`, or \
         set HM_REGISTRY_MIRROR"
    )]
    RateLimited {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
    },
    /// The registry cannot be reached, or the connection broke, on all attempts.
    #[error(
        "failed to reach registry {registry} for `{image}` ({reason}): check the network, or set \
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
    #[error("registry {registry} sent an invalid answer for `{image}`: {reason}")]
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
        "{what} of image `{image}` is corrupt: expected {expected}, found {found}; try again later, or report it to its owner"
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
        "image `{image}` has {bytes} bytes to download, more than the limit of {limit}: set HM_MAX_IMAGE_BYTES to allow more"
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
    #[error("image `{image}` is for {found}, but this machine is {wanted}: use another image")]
    UnsupportedPlatform {
        /// The image.
        image: String,
        /// The platform of this machine, as in `linux/amd64`.
        wanted: String,
        /// The platforms of the image.
        found: String,
    },
    /// The manifest or a layer has an unsupported type.
    #[error("image `{image}` has {what}, which is not supported: {hint}")]
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
        "image `{image}` is not in the store, and downloads are disabled: run once without `--offline` and `--pull never`"
    )]
    Offline {
        /// The image.
        image: String,
    },
    /// The program was built without support for registries.
    #[error("image `{image}` is in a registry, but this program was built without the feature `registry`")]
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
    #[error("`{}` is not an image: {reason}", path.display())]
    BadArchive {
        /// The file or directory.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// A layer cannot be unpacked.
    #[error("failed to unpack a layer of image `{image}`")]
    Unpack {
        /// The image.
        image: String,
        /// The cause.
        #[source]
        source: UnpackError,
    },
    /// Layers of the base image of a snapshot are gone.
    #[error("layers of image {digest} are no longer in the store: run again the steps that start from it")]
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
    if place.is_none() { ", and run `docker login` if it is private" } else { "" }
}
