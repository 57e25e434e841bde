//! How much the store may have, and for how long.

use std::time::Duration;

use crate::store::{Filesystem, Store, StoreError};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// When garbage collection takes what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcLimits {
    /// The most that the store may take, in bytes of allocated blocks.
    pub max_bytes: u64,
    /// What must stay free on its filesystem, in bytes.
    pub min_free_bytes: u64,
    /// How long cached steps, sources and images stay that nobody uses.
    pub max_age: Duration,
    /// How long that stays which failed and interrupted steps left.
    pub max_age_leftovers: Duration,
    /// How long journals and logs of runs stay.
    pub max_age_runs: Duration,
    /// How many runs are remembered.
    pub max_runs: usize,
}

impl GcLimits {
    /// What holds unless somebody says otherwise, on a filesystem of this size: a fifth of it, 100 GiB at most; a
    /// twentieth of it free, 10 GiB at most; 30 days, leftovers of failed steps 3; 14 days and 1,000 runs for journals.
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

impl Store {
    /// [`GcLimits::for_filesystem`] of the store's.
    ///
    /// # Errors
    /// Where the system does not tell how large that is.
    pub fn default_limits(&self) -> Result<GcLimits, StoreError> {
        Ok(GcLimits::for_filesystem(&Filesystem::of(self.dir())?))
    }
}
