//! Images: resolves an image's name, adds its layers to the store, and exports snapshots as images.
//!
//! An image's name goes in; a [`Base`] to boot from, with all layers in the store, comes out. A snapshot goes
//! in; an OCI image comes out.
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
mod base_layer;
mod docker_save;
mod error;
mod export;
mod fetch;
mod host;
mod identity;
mod images;
mod layers;
mod manifest;
mod partial;
mod platform;
mod reference;
#[cfg(feature = "registry")]
mod registry;
mod search;
pub(crate) mod stored;

pub(crate) use docker_save::{ArchiveFile, SavedImage};
pub use error::ImageError;
pub use export::{ExportError, ExportTarget, export};
pub(crate) use export::{layer_dirs, pack_layer_in, pack_layer_tar, read_layer_tar, thin_archive};
pub use images::{BadVariable, ImageOptions, PullPolicy};
pub use manifest::ImageProgram;
pub(crate) use reference::check_image;

// What runners and commands of this package do with images.
#[doc(hidden)]
pub use {
    base_layer::base_layer,
    export::{PackedLayer, pack_layer},
    host::{HostDir, HostImage},
    identity::image_identity,
    images::{Images, Notes},
    layers::{
        LayerFile, LayerLock, PartialTree, find_layer, find_tree, keep_tree, layer_id, lock_layer, new_tree, tree_id,
        unpack_layer,
    },
    reference::image_path,
};

use crate::store::{Base, ImageDigest};
