//! The limits and capabilities of an engine.

use super::{endpoint::MAX_MESSAGE_BYTES, reapi};

/// Space in a message for everything but the blobs.
const AROUND_BYTES: usize = 64 << 10;

/// The limits and capabilities of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteLimits {
    /// The maximum size of the blobs in one message, in bytes. Each blob counts as 128 bytes more than its
    /// size.
    pub batch_bytes: usize,
    /// The size of the largest blob, if there is a limit.
    pub blob_bytes: Option<u64>,
    /// Whether the engine executes Actions.
    pub executes: bool,
    /// Whether we may store results in the engine's action cache.
    pub updates_action_cache: bool,
    /// Whether the engine supports SHA-256, or does not report its digest functions.
    pub sha256: bool,
}

impl RemoteLimits {
    pub(super) fn of(capabilities: &reapi::ServerCapabilities) -> Self {
        let cache = capabilities.cache_capabilities.as_ref();
        let functions = cache.map_or(&[][..], |it| &it.digest_functions);
        let message = MAX_MESSAGE_BYTES - AROUND_BYTES;
        // Zero means that only the message size is limited.
        let batch = cache.and_then(|it| usize::try_from(it.max_batch_total_size_bytes).ok()).filter(|it| *it > 0);
        let blob = cache.and_then(|it| u64::try_from(it.max_cas_blob_size_bytes).ok()).filter(|it| *it > 0);
        let updates = cache.and_then(|it| it.action_cache_update_capabilities.as_ref());
        Self {
            batch_bytes: batch.map_or(message, |batch| batch.min(message)),
            blob_bytes: blob,
            executes: capabilities.execution_capabilities.as_ref().is_some_and(|it| it.exec_enabled),
            updates_action_cache: updates.is_some_and(|it| it.update_enabled),
            sha256: functions.is_empty() || functions.contains(&(reapi::digest_function::Value::Sha256 as i32)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_bounded_by_the_engine_and_by_the_message() {
        let of = |max_batch_total_size_bytes| {
            let cache = reapi::CacheCapabilities { max_batch_total_size_bytes, ..Default::default() };
            let capabilities = reapi::ServerCapabilities { cache_capabilities: Some(cache), ..Default::default() };
            RemoteLimits::of(&capabilities).batch_bytes
        };
        assert_eq!((of(65_536), of(0), of(1 << 40)), (65_536, (4 << 20) - (64 << 10), (4 << 20) - (64 << 10)));
        let nothing = RemoteLimits::of(&reapi::ServerCapabilities::default());
        assert!(nothing.sha256 && !nothing.executes && !nothing.updates_action_cache);
    }
}
