//! Whether a collection is worth a process.

use std::sync::atomic::Ordering;

use super::{DAY_MS, GcLimits};
use crate::store::{
    Filesystem, Store, StoreError,
    index::{self, collect},
};

/// Where the disk stays full whatever is removed, or a run goes on and on, nobody tries again before this has passed.
const AGAIN_MS: i64 = 60 * 1000;

impl Store {
    /// Whether garbage should be collected now: something new was kept and the limit is passed, the filesystem runs full,
    /// something waited for a run to end, or a day has gone by. Takes microseconds where nothing was kept.
    ///
    /// # Errors
    /// Where the index can't be read, or the system does not tell what is free.
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
