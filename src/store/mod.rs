//! The store: frozen sources, layers, snapshots and images in a directory.
//!
//! Source trees and the files that steps wrote go in, and directories to mount come out. Everything is
//! synchronous. Operations take microseconds unless their documentation says otherwise. This module knows
//! nothing about pipelines or about how layers are mounted.
//!
//! A step sees, from top to bottom: its own upper directory, the [delta](Store::delta) from the source that
//! its parent saw to the source of this run, the [layers](Snapshot::layers) of its parent, the [frozen
//! source](FrozenSource), and the image ([`Base`]).

#[cfg(feature = "cloud")]
mod adopt;
mod archives;
mod delta;
mod error;
mod export;
mod exposure;
mod gc;
mod handle;
mod host;
mod identity;
mod ids;
mod image;
mod index;
mod keep;
mod layer;
pub(crate) mod layout;
mod lease;
mod machines;
mod manifest;
#[cfg(feature = "cloud")]
mod outside;
mod recover;
mod remover;
mod reserve;
mod runs;
mod snapshot;
mod source;
mod stack;
#[cfg(feature = "sandbox")]
mod staged;
mod surroundings;
mod usage;
#[cfg(feature = "process")]
mod workspace;

pub use archives::Archives;
pub use error::StoreError;
pub use export::{ExportError, ExportTarget, PackedLayer};
pub use exposure::Exposure;
pub use gc::{Forget, Forgotten, GcLimits, GcReport, GcRequest};
pub use handle::StoreHandle;
pub use host::{HostDir, HostImage};
pub use identity::image_identity;
pub use ids::{LayerId, SourceId};
pub(crate) use image::check_image;
#[cfg(feature = "docker")]
pub(crate) use image::{ArchiveFile, SavedImage};
pub use image::{
    Base, ImageDigest, ImageError, ImageOptions, Images, LayerLock, Notes, PullPolicy, TreeInMaking, image_path,
};
pub use keep::{Cached, Evicted, KeepAs};
pub use layer::Staging;
pub use layout::{Store, TreeOps};
pub use lease::Lease;
#[cfg(feature = "cloud")]
pub(crate) use manifest::Kind as SourceKind;
#[cfg(feature = "cloud")]
pub(crate) use outside::PackedName;
pub use runs::{NewRun, Run};
pub use snapshot::{CommitRequest, MAX_LAYERS, Snapshot};
pub use source::FrozenSource;
#[cfg(feature = "sandbox")]
pub(crate) use staged::{StagedDir, Touched};
pub use surroundings::Surroundings;
pub use usage::{Filesystem, PipelineUsage, Usage, UsageKind};

pub use crate::tree::{self, BlobFile, IdMap};
