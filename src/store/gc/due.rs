//! Whether a collection is worth running.

use super::{DAY_MS, GcLimits};
use crate::store::{
    Filesystem, Store, StoreError,
    index::{self, collect},
};

/// The minimum time between collections while the disk stays full regardless of what is removed, or while a
/// run continues.
const AGAIN_MS: i64 = 60 * 1000;

/// Returns whether garbage should be collected now: see [`Store::gc_is_due`].
pub(super) fn is_due(store: &Store, limits: &GcLimits) -> Result<bool, StoreError> {
    let since = index::now_ms().saturating_sub(store.index().read(collect::collected_at)?);
    if !(0..DAY_MS).contains(&since) {
        return Ok(true);
    }
    let kept_new = store.layers().has_kept_new();
    if Filesystem::of(store.dir())?.free_bytes < limits.min_free_bytes {
        return Ok(kept_new || since > AGAIN_MS);
    }
    if since > AGAIN_MS && store.index().read(collect::is_anything_doomed)? {
        return Ok(true);
    }
    Ok(kept_new && store.index().read(collect::layer_bytes)? > limits.max_bytes)
}
