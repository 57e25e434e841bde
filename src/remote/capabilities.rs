//! What an engine allows and can do.

use super::{endpoint::MAX_MESSAGE_BYTES, reapi};

/// Room in a message for what is around the blobs.
const AROUND_BYTES: usize = 64 << 10;

/// What an engine allows and can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteLimits {
    /// How many bytes of blobs, each counted with 128 bytes more, one message may carry.
    pub batch_bytes: usize,
    /// The largest blob, where there is a limit.
    pub blob_bytes: Option<u64>,
    /// Whether it runs Actions.
    pub executes: bool,
    /// Whether it takes results into its action cache, from us.
    pub updates_action_cache: bool,
    /// Whether it knows SHA-256, or does not say.
    pub sha256: bool,
}

impl RemoteLimits {
    pub(super) fn of(capabilities: &reapi::ServerCapabilities) -> Self {
        let cache = capabilities.cache_capabilities.as_ref();
        let functions = cache.map_or(&[][..], |it| &it.digest_functions);
        let message = MAX_MESSAGE_BYTES - AROUND_BYTES;
        // Zero is no limit but the message's.
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
