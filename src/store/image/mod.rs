//! Images: resolves an image's name, and adds its layers to the store.
//!
//! ```text
//! the image of a step --pin--> ImageDigest (the digest of the configuration) --fetch--> layers in the store
//!                      names and manifests only          blobs, unpacked, checked against the configuration
//! ```
//!
//! `pin` and `fetch` are separate, because a run whose steps are all cached has to resolve an image's name
//! but needs none of its bytes. An image in the store is its configuration, in a row of the index, which
//! names the layers by the digests of their content. A layer's place follows from that digest and from how
//! owners are mapped, so images share layers. Nothing here knows about the callers or about how layers are
//! mounted.

mod archive;
mod aside;
mod base;
mod digest;
mod error;
mod fetch;
mod ground;
mod images;
mod kept;
mod layers;
mod manifest;
mod platform;
mod reference;
#[cfg(feature = "registry")]
mod registry;
#[cfg(feature = "docker")]
mod saved;
mod search;

pub use base::Base;
pub use digest::ImageDigest;
pub use error::ImageError;
pub(super) use ground::layer_id as ground_layer;
pub use images::{ImageOptions, Images, Notes, PullPolicy};
pub use layers::{LayerLock, TreeInMaking};
pub(super) use manifest::REF_NAME;
pub(super) use platform::this_platform;
pub(super) use reference::ImageName;
pub(crate) use reference::check_image;
pub use reference::image_path;
#[cfg(feature = "docker")]
pub(crate) use saved::{ArchiveFile, SavedImage};
