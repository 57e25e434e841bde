//! Whether a collection is worth running.

use std::sync::atomic::Ordering;

use super::{DAY_MS, GcLimits};
use crate::store::{
    Filesystem, Store, StoreError,
    index::{self, collect},
};

/// The minimum time between collections while the disk stays full regardless of what is removed, or while a
/// run continues.
const AGAIN_MS: i64 = 60 * 1000;

impl Store {
    /// Returns whether garbage should be collected now: something new was kept and the limit is exceeded, the
    /// filesystem is nearly full, something was waiting for a run to end, or a day has passed. Takes
    /// microseconds if nothing was kept.
    ///
    /// # Errors
    /// Returns an error if the index cannot be read, or if the system does not report the free space.
    pub fn gc_is_due(&self, limits: &GcLimits) -> Result<bool, StoreError> {
        let since = index::now_ms().saturating_sub(self.index.read(collect::collected_at)?);
        if !(0..DAY_MS).contains(&since) {
            return Ok(true);
        }
        let kept_new = self.kept_new.load(Ordering::Relaxed);
        if Filesystem::of(self.dir())?.free_bytes < limits.min_free_bytes {
            return Ok(kept_new || since > AGAIN_MS);
        }
        if since > AGAIN_MS && self.index.read(collect::is_anything_doomed)? {
            return Ok(true);
        }
        Ok(kept_new && self.index.read(collect::layer_bytes)? > limits.max_bytes)
    }
}
