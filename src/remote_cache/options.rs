//! A remote cache, and its temporary state.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::{
    entry::SharedEntry,
    error::{Consequence, RemoteCacheError},
    scope::{CacheScope, TrustRules},
    signature::{PublicKey, SigningKey},
};
use crate::{
    cache::CacheKey,
    image::{ImageOptions, Images},
    model::Pool,
    remote::{ActionCache, Cas, Endpoint, EndpointOptions, OptionsError, Retry},
    sync::Mutex,
    transfer::{ChunkTransfers, Uploads},
    userns::{UsernsHelper, UsernsOptions},
};

/// How long an engine that did not answer is not called.
const REST: Duration = Duration::from_secs(60);
/// The maximum number of concurrent lookups: a wide pipeline has thousands.
const QUESTIONS: usize = 64;
/// The maximum number of results that are fetched or shared at a time: each packs or unpacks layers on one or
/// more threads.
const MOVES: usize = 4;
/// A slow cache must not cost more time than it saves, so calls are retried for about two seconds, not for
/// half a minute.
const ATTEMPTS: u32 = 5;

/// Results of cached steps, shared with other machines through an engine's action cache. For
/// [`EngineBuilder::remote_cache`](crate::engine::EngineBuilder::remote_cache).
///
/// By default, results of runners with a [pool of their own](Pool::Own), such as `cloud`, are looked up and
/// shared there; those of this machine's runners only if [`local_steps`](Self::local_steps) is enabled.
/// Without [`trusted_keys`](Self::trusted_keys), results are trusted as much as the engine: everyone who may
/// write there decides what steps of other machines boot from.
#[derive(Debug)]
pub struct RemoteCache {
    pub(super) cas: Cas,
    pub(super) actions: ActionCache,
    pub(super) place: String,
    pub(super) reads: bool,
    pub(super) writes: bool,
    local_steps: bool,
    /// Maps ids for this machine's steps, and reads and writes layers of subordinate ids.
    pub(super) userns: Arc<UsernsHelper>,
    pub(super) images: Images,
    pub(super) uploads: Uploads,
    pub(super) chunks: ChunkTransfers,
    pub(super) cuts: bool,
    pub(super) rules: TrustRules,
    pub(super) questions: Semaphore,
    pub(super) moves: Semaphore,
    /// Results that were found and used without their files, by the snapshot's id.
    pub(super) absent: Mutex<HashMap<String, Arc<Absent>>>,
    resting_until: Mutex<Option<Instant>>,
    is_read_only: AtomicBool,
}

/// A result whose files are not on this machine.
#[derive(Debug)]
pub(super) struct Absent {
    pub(super) key: CacheKey,
    pub(super) image: String,
    pub(super) entry: Arc<SharedEntry>,
    /// Whether the files have been fetched. Locked while they are being fetched.
    pub(super) is_here: tokio::sync::Mutex<bool>,
}

impl RemoteCache {
    /// Creates the cache of an engine. Does not connect yet.
    ///
    /// # Errors
    /// Returns an error if an option is invalid.
    pub fn new(options: EndpointOptions) -> Result<Self, OptionsError> {
        let endpoint = Endpoint::with_retry(options, Retry { attempts: ATTEMPTS, ..Retry::default() })?;
        Ok(Self {
            cas: Cas::new(endpoint.clone()),
            place: endpoint.place().to_owned(),
            actions: ActionCache::new(endpoint),
            reads: true,
            writes: true,
            local_steps: false,
            userns: UsernsHelper::new(UsernsOptions::default()),
            images: Images::default(),
            uploads: Uploads::default(),
            chunks: ChunkTransfers::default(),
            cuts: true,
            rules: TrustRules::default(),
            questions: Semaphore::new(QUESTIONS),
            moves: Semaphore::new(MOVES),
            absent: Mutex::default(),
            resting_until: Mutex::default(),
            is_read_only: AtomicBool::new(false),
        })
    }

    /// Sets whether results are looked up there. By default they are.
    #[must_use]
    pub fn read(self, reads: bool) -> Self {
        Self { reads, ..self }
    }

    /// Sets whether results are shared there. By default they are.
    #[must_use]
    pub fn write(self, writes: bool) -> Self {
        Self { writes, ..self }
    }

    /// Sets whether this also applies to steps of this machine's runners. By default it does not.
    #[must_use]
    pub fn local_steps(self, local_steps: bool) -> Self {
        Self { local_steps, ..self }
    }

    /// Sets whether large layers are shared as chunks, of which only those move that the engine lacks. By
    /// default they are. Results of both kinds are read in any case.
    #[must_use]
    pub fn chunks(self, chunks: bool) -> Self {
        Self { cuts: chunks, ..self }
    }

    /// Sets the scope: results of `trusted` and of this scope are used, and results are written to this
    /// one. By default it is `trusted`.
    #[must_use]
    pub fn scope(mut self, scope: CacheScope) -> Self {
        self.rules.scope = scope;
        self
    }

    /// Uses results of `trusted` only if one of these keys signed them. Without keys, which is the default,
    /// signatures are not checked.
    #[must_use]
    pub fn trusted_keys(mut self, keys: Vec<PublicKey>) -> Self {
        self.rules.keys = keys;
        self
    }

    /// Signs the results that are written.
    #[must_use]
    pub fn signing_key(mut self, key: SigningKey) -> Self {
        self.rules.signer = Some(key);
        self
    }

    /// Sets how to find and fetch the images of steps that boot from a shared result.
    #[must_use]
    pub fn images(self, options: ImageOptions) -> Self {
        Self { images: Images::new(options), ..self }
    }

    /// Reads and writes layers of subordinate ids through a helper that other parts of this process use, too,
    /// instead of one of its own.
    #[must_use]
    pub fn userns(self, helper: Arc<UsernsHelper>) -> Self {
        Self { userns: helper, ..self }
    }

    /// Starts this `hm` as a helper of its own, to read and write layers of subordinate ids.
    #[must_use]
    pub fn helper(self, program: impl Into<PathBuf>) -> Self {
        self.userns(UsernsHelper::new(UsernsOptions::default().program(program)))
    }

    /// Returns whether the cache is used for a runner's steps.
    pub(super) fn serves(&self, pool: &Pool) -> bool {
        self.local_steps || matches!(pool, Pool::Own { .. })
    }

    /// Returns whether the engine is currently not called because it did not answer.
    pub(super) fn is_resting(&self) -> bool {
        self.resting_until.lock().is_some_and(|until| Instant::now() < until)
    }

    /// Returns whether nothing is written. The first time, logs a warning if that is for want of a key.
    pub(super) fn is_read_only(&self) -> bool {
        if !self.rules.can_write() && !self.is_read_only.swap(true, Relaxed) {
            tracing::warn!(
                "results are not shared: without a key to sign them, others would not use them; set \
                 HM_REMOTE_CACHE_SIGNING_KEY, or a scope of their own by HM_REMOTE_CACHE_SCOPE"
            );
        }
        self.is_read_only.load(Relaxed)
    }

    /// Records a failure, and logs a warning once.
    pub(super) fn note(&self, doing: &str, error: RemoteCacheError) {
        let consequence = error.consequence();
        let words = error.into_line();
        match consequence {
            Consequence::Miss => tracing::warn!("failed to {doing}: {words}"),
            Consequence::Away => {
                let mut until = self.resting_until.lock();
                if until.is_none_or(|until| until <= Instant::now()) {
                    tracing::warn!("failed to {doing}: {words}; continuing without the remote cache");
                }
                *until = Some(Instant::now() + REST);
            }
            Consequence::Refused => {
                if !self.is_read_only.swap(true, Relaxed) {
                    tracing::warn!("failed to {doing}: {words}; no more results are shared");
                }
            }
        }
    }
}
