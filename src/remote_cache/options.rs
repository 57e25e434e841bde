//! A remote cache, and what it knows of its engine for a while.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::{
    entry::Entry,
    trouble::{Trouble, Verdict},
};
use crate::{
    cache::CacheKey,
    remote::{ActionCache, Cas, Endpoint, EndpointOptions, OptionsError, Retry},
    runner::{Pool, sandbox::SandboxRunner},
    store::{ImageOptions, Images},
    transfer::Uploads,
};

/// How long an engine is left alone that did not answer.
const REST: Duration = Duration::from_secs(60);
/// Questions at a time: a wide pipeline has thousands.
const QUESTIONS: usize = 64;
/// Results at a time that are fetched, or shared: each packs or unpacks layers on a thread or more.
const MOVES: usize = 4;
/// Waiting for an engine is waiting for what would save time: some two seconds, not half a minute.
const ATTEMPTS: u32 = 5;

/// What cached steps left, shared with other machines through an engine's action cache. For
/// [`EngineBuilder::remote_cache`](crate::engine::EngineBuilder::remote_cache).
///
/// By default, results of runners with a [pool of their own](Pool::Own), such as `cloud`, are looked up there and go there;
/// those of this machine's runners where [`local_steps`](Self::local_steps) says so. Results are trusted as the engine is:
/// who may write there decides what steps of other machines boot from.
#[derive(Debug)]
pub struct RemoteCache {
    pub(super) cas: Cas,
    pub(super) actions: ActionCache,
    pub(super) place: String,
    reads: bool,
    writes: bool,
    local_steps: bool,
    /// Knows how ids are mapped in this machine's steps, and reads and writes layers of subordinate ids.
    pub(super) trees: SandboxRunner,
    pub(super) images: Images,
    pub(super) uploads: Uploads,
    pub(super) questions: Semaphore,
    pub(super) moves: Semaphore,
    /// Found, and used without their files, by the snapshot's id.
    pub(super) absent: Mutex<HashMap<String, Arc<Absent>>>,
    resting_until: Mutex<Option<Instant>>,
    is_read_only: AtomicBool,
}

/// A result whose files are not here.
#[derive(Debug)]
pub(super) struct Absent {
    pub(super) key: CacheKey,
    pub(super) image: String,
    pub(super) entry: Arc<Entry>,
    /// Whether somebody fetched them by now; held while somebody does.
    pub(super) is_here: tokio::sync::Mutex<bool>,
}

impl RemoteCache {
    /// The cache of an engine. Nothing is connected yet.
    ///
    /// # Errors
    /// What is wrong with the options.
    pub fn new(options: EndpointOptions) -> Result<Self, OptionsError> {
        let endpoint = Endpoint::with_retry(options, Retry { attempts: ATTEMPTS, ..Retry::default() })?;
        Ok(Self {
            cas: Cas::new(endpoint.clone()),
            place: endpoint.place().to_owned(),
            actions: ActionCache::new(endpoint),
            reads: true,
            writes: true,
            local_steps: false,
            trees: SandboxRunner::builder().build(),
            images: Images::default(),
            uploads: Uploads::default(),
            questions: Semaphore::new(QUESTIONS),
            moves: Semaphore::new(MOVES),
            absent: Mutex::default(),
            resting_until: Mutex::default(),
            is_read_only: AtomicBool::new(false),
        })
    }

    /// Whether results are looked up there. By default they are.
    #[must_use]
    pub fn read(self, reads: bool) -> Self {
        Self { reads, ..self }
    }

    /// Whether results go there. By default they do.
    #[must_use]
    pub fn write(self, writes: bool) -> Self {
        Self { writes, ..self }
    }

    /// Whether that holds for steps of this machine's runners, too. By default it does not.
    #[must_use]
    pub fn local_steps(self, local_steps: bool) -> Self {
        Self { local_steps, ..self }
    }

    /// Finds and fetches images in this way, where a step boots from what was found.
    #[must_use]
    pub fn images(self, options: ImageOptions) -> Self {
        Self { images: Images::new(options), ..self }
    }

    /// Starts this `hm` to read and write layers of subordinate ids, as [`SandboxBuilder::helper`] does.
    ///
    /// [`SandboxBuilder::helper`]: crate::runner::sandbox::SandboxBuilder::helper
    #[must_use]
    pub fn helper(self, program: impl Into<PathBuf>) -> Self {
        Self { trees: SandboxRunner::builder().helper(program).build(), ..self }
    }

    /// Whether results of a runner are looked up there.
    pub(crate) fn reads(&self, pool: &Pool) -> bool {
        self.reads && self.serves(pool)
    }

    /// Whether results of a runner go there.
    pub(crate) fn writes(&self, pool: &Pool) -> bool {
        self.writes && self.serves(pool)
    }

    fn serves(&self, pool: &Pool) -> bool {
        self.local_steps || matches!(pool, Pool::Own { .. })
    }

    /// Whether the engine is left alone just now.
    pub(super) fn is_resting(&self) -> bool {
        lock(&self.resting_until).is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.is_read_only.load(Relaxed)
    }

    /// Takes note of what went wrong, and says it once.
    pub(super) fn note(&self, doing: &str, trouble: Trouble) {
        let verdict = trouble.verdict();
        let words = trouble.in_words();
        match verdict {
            Verdict::Miss => tracing::warn!("failed to {doing}: {words}"),
            Verdict::Away => {
                let mut until = lock(&self.resting_until);
                if until.is_none_or(|until| until <= Instant::now()) {
                    tracing::warn!("failed to {doing}: {words}; the build goes on without the remote cache");
                }
                *until = Some(Instant::now() + REST);
            }
            Verdict::Refused => {
                if !self.is_read_only.swap(true, Relaxed) {
                    tracing::warn!("failed to {doing}: {words}; nothing more is shared");
                }
            }
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
