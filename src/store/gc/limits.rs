//! Limits on the size of the store and on the age of its contents.

use std::time::Duration;

use crate::store::Filesystem;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The limits that garbage collection enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcLimits {
    /// The maximum size of the store, in bytes of allocated blocks.
    pub max_bytes: u64,
    /// The minimum free space on the store's filesystem, in bytes.
    pub min_free_bytes: u64,
    /// How long unused cached steps, sources and images are kept.
    pub max_age: Duration,
    /// How long the snapshots of failed and interrupted steps are kept.
    pub max_age_leftovers: Duration,
    /// How long journals and logs of runs are kept.
    pub max_age_runs: Duration,
    /// The number of runs that are remembered.
    pub max_runs: usize,
}

impl GcLimits {
    /// Returns the default limits for a filesystem of this size: a fifth of it, at most 100 GiB; a twentieth
    /// of it free, at most 10 GiB; 30 days, or 3 for leftovers of failed steps; 14 days and 1,000 runs for
    /// journals.
    #[must_use]
    pub fn for_filesystem(filesystem: &Filesystem) -> Self {
        const GIB: u64 = 1 << 30;
        Self {
            max_bytes: (filesystem.bytes / 5).min(100 * GIB),
            min_free_bytes: (filesystem.bytes / 20).min(10 * GIB),
            max_age: 30 * DAY,
            max_age_leftovers: 3 * DAY,
            max_age_runs: 14 * DAY,
            max_runs: 1000,
        }
    }
}
