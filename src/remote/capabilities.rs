//! The limits and capabilities of an engine.

use super::{DigestFunction, endpoint::MAX_MESSAGE_BYTES, reapi};

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
    /// The digest function to use. `None` if the engine supports none that we do.
    pub digest_function: Option<DigestFunction>,
}

impl RemoteLimits {
    pub(super) fn of(capabilities: &reapi::ServerCapabilities) -> Self {
        let cache = capabilities.cache_capabilities.as_ref();
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
            digest_function: digest_function(capabilities),
        }
    }
}

/// Chooses the digest function: BLAKE3 if it is the default of the engine's execution service, because some
/// engines take a blob's name without a function for one by their default. Otherwise SHA-256, by which the
/// store knows packed layers, and BLAKE3 if that is not supported.
fn digest_function(capabilities: &reapi::ServerCapabilities) -> Option<DigestFunction> {
    let (cache, execution) = (&capabilities.cache_capabilities, &capabilities.execution_capabilities);
    let default = execution.as_ref().map_or(0, |it| it.digest_function);
    // An empty list says nothing.
    let executes = execution.as_ref().map_or(&[][..], |it| &it.digest_functions);
    let stores = cache.as_ref().map_or(&[][..], |it| &it.digest_functions);
    let supports = |function: &DigestFunction| {
        let number = function.number();
        [executes, stores].iter().all(|functions| functions.is_empty() || functions.contains(&number))
    };
    let is_default = default == DigestFunction::Blake3.number();
    let preferred = if is_default { DigestFunction::Blake3 } else { DigestFunction::Sha256 };
    [preferred, DigestFunction::Sha256, DigestFunction::Blake3].into_iter().find(supports)
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
        assert_eq!(nothing.digest_function, Some(DigestFunction::Sha256));
        assert!(!nothing.executes && !nothing.updates_action_cache);
    }

    #[test]
    fn the_digest_function_is_one_that_the_whole_engine_supports() {
        use reapi::digest_function::Value::{Blake3, Md5, Sha256};
        let of = |stores: &[i32], executes: &[i32], default: i32| {
            let cache = reapi::CacheCapabilities { digest_functions: stores.into(), ..Default::default() };
            let execution = reapi::ExecutionCapabilities {
                digest_functions: executes.into(),
                digest_function: default,
                ..Default::default()
            };
            let capabilities = reapi::ServerCapabilities {
                cache_capabilities: Some(cache),
                execution_capabilities: Some(execution),
                ..Default::default()
            };
            RemoteLimits::of(&capabilities).digest_function
        };
        let [md5, sha256, blake3] = [Md5 as i32, Sha256 as i32, Blake3 as i32];
        assert_eq!(of(&[], &[], 0), Some(DigestFunction::Sha256));
        assert_eq!(of(&[sha256, blake3], &[sha256, blake3], sha256), Some(DigestFunction::Sha256));
        assert_eq!(of(&[sha256, blake3], &[sha256, blake3], blake3), Some(DigestFunction::Blake3));
        assert_eq!(of(&[sha256, blake3], &[], blake3), Some(DigestFunction::Blake3));
        assert_eq!(of(&[sha256, blake3], &[blake3], 0), Some(DigestFunction::Blake3));
        assert_eq!(of(&[sha256], &[sha256], blake3), Some(DigestFunction::Sha256));
        assert_eq!(of(&[md5], &[], md5), None);
    }
}
