//! The store: layers and snapshots in a directory that several processes share.
//!
//! Files that steps wrote, and stacks of layers that others made (images, source trees), go in. Directories
//! to mount come out, and what is kept is found again by name until garbage collection removes it. Everything
//! is synchronous. Operations take microseconds unless their documentation says otherwise. This module does
//! not know what is in a layer, where images and sources come from ([`image`](crate::image) and
//! [`source`](crate::source) are above it), how layers are mounted, or what a pipeline is.
//!
//! An open [`Store`] consists of parts, each of which owns a piece of its state: [`Layers`] on disk,
//! [`Snapshots`], [`Steps`] (results by cache key), and [`Runs`].
//!
//! A step sees, from top to bottom: its own upper directory, the [delta](crate::source::delta) from the
//! source that its parent saw to the source of this run, the [layers](Snapshot::layers) of its parent, the
//! [frozen source](crate::source::FrozenSource), and the image ([`Base`]).

mod base;
mod cache_dirs;
mod commit;
mod digest;
mod digests;
pub(crate) mod error;
mod exposure;
pub(crate) mod files;
mod format;
mod gc;
mod handle;
mod ids;
mod index;
mod instance;
#[cfg(feature = "sandbox")]
mod layer_comparison;
#[cfg(feature = "sandbox")]
mod layer_digest;
mod layers;
mod lease;
mod open;
mod paths;
#[cfg(feature = "sandbox")]
mod placing;
mod recover;
mod remover;
mod reserved_space;
mod runs;
mod shared;
mod snapshot_config;
mod snapshots;
mod stacks;
mod staged_dir;
pub(crate) mod staging;
mod steps;
#[cfg_attr(not(feature = "sandbox"), expect(dead_code, reason = "only the sandbox looks records up"))]
mod traces;
mod tracing_costs;
mod trash;
mod tree_ops;
mod usage;
mod vm_templates;

pub(crate) use cache_dirs::{CacheDir, CacheDirName};
pub(crate) use digests::{ListDigest, PackedDigests};
pub use error::StoreError;
pub use gc::{Forget, Forgotten, GcLimits, GcReport, GcRequest};
pub use handle::StoreHandle;
pub(crate) use index::{
    cache::CacheHit,
    images::{ImageRow, TagRow},
    now_ms,
};
#[cfg(feature = "sandbox")]
pub(crate) use layer_comparison::{LayerComparison, LayerDifference, compare_layers};
#[cfg(feature = "sandbox")]
pub(crate) use layer_digest::{LayerEntry, layer_digest, no_layer_digest};
pub use open::Store;
pub(crate) use paths::Paths;
#[cfg(feature = "sandbox")]
pub(crate) use placing::{Placed, Placement, place};
pub(crate) use staged_dir::{StagedDir, Touched};
pub(crate) use steps::{CachedStep, DEFAULT_SCOPE};
#[cfg(feature = "sandbox")]
pub(crate) use traces::MAX_TRACE_BYTES;
pub(crate) use tracing_costs::TracingCost;
pub use usage::{Filesystem, PipelineUsage, Usage, UsageKind};

// What runners and commands of this package do with a store.
#[doc(hidden)]
pub use {
    base::Base,
    commit::{CommitRequest, MAX_LAYERS},
    digest::ImageDigest,
    exposure::Exposure,
    ids::{LayerId, SourceId},
    layers::Layers,
    lease::Lease,
    runs::{NewRun, Run, Runs},
    snapshot_config::SnapshotConfig,
    snapshots::{Snapshot, Snapshots},
    staging::Staging,
    steps::{Cached, Evicted, KeepAs, Steps},
    tree_ops::TreeOps,
};

#[doc(hidden)]
pub use crate::tree::{self, BlobFile, IdMap};
