//! The contract of a cache that machines share: what the schedule asks it, and what it answers.
//!
//! The `remote_cache` module implements it over an engine's action cache.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use super::{CacheKey, Found};
use crate::{
    model::{Pool, SnapshotRef, StepIndex},
    store::Store,
    sync::Mutex,
};

/// A cache that other machines read and write, too. Any failure is a miss: the build continues.
pub(crate) trait SharedResults: fmt::Debug + Send + Sync {
    /// Returns whose results are looked up and shared. The local cache must have those of no other scope.
    fn scope(&self) -> &str;

    /// Returns whether results of a runner are looked up there.
    fn reads(&self, pool: &Pool) -> bool;

    /// Returns whether results of a runner are shared there.
    fn writes(&self, pool: &Pool) -> bool;

    /// Looks up a step. Returns `None` if there is no result or if the lookup fails. Findings about other
    /// steps are put into `ahead`. The result becomes one of `pipeline` here.
    ///
    /// # Cancel safety
    /// If the future is dropped, at most layers that were already in place and results that were kept remain.
    fn find<'a>(
        &'a self,
        store: &'a Arc<Store>,
        pipeline: &'a str,
        question: Question<'a>,
        ahead: &'a LookedAhead,
    ) -> BoxFuture<'a, Option<Found>>;

    /// Fetches the files of a result that was used without them, if a step is about to boot from it after
    /// all: the result that was found above it has expired since. A failure is logged, and the step's runner
    /// will not find its snapshot.
    fn complete<'a>(&'a self, store: &'a Arc<Store>, pipeline: &'a str, snapshot: &'a SnapshotRef)
    -> BoxFuture<'a, ()>;

    /// Shares a result in this machine's cache. A result on an image that only this machine has is not
    /// shared.
    ///
    /// # Cancel safety
    /// If the future is dropped, blobs that no result names may remain at the engine.
    fn share<'a>(&'a self, store: &'a Arc<Store>, pipeline: &'a str, key: CacheKey, found: Found) -> BoxFuture<'a, ()>;
}

/// The question about a step and those that build on it. Whether the step's files are needed here depends on
/// which of the others are found.
pub(crate) struct Question<'a> {
    /// The step's own key.
    pub(crate) key: CacheKey,
    /// The name of the step's image, or of the image of the first step in its lineage.
    pub(crate) image: &'a str,
    /// The step, and the cached steps above it, each after the one that it boots from.
    pub(crate) candidates: Vec<Candidate>,
    /// Computes the key of a candidate over a snapshot.
    pub(crate) key_over: KeyOver<'a>,
}

/// A function that computes the keys of candidates over snapshots.
pub(crate) type KeyOver<'a> = Box<dyn Fn(&Candidate, &str) -> CacheKey + Send + Sync + 'a>;

/// A step to look up.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) step: StepIndex,
    /// For messages.
    pub(crate) name: Arc<str>,
    /// The index of the candidate that it boots from.
    pub(crate) parent: Option<usize>,
    /// How its runner works on this machine.
    pub(crate) mode: Arc<str>,
    /// The digest of the source files that it depends on.
    pub(crate) inputs: Option<[u8; 32]>,
    /// The maximum age of a result.
    pub(crate) max_age: Option<Duration>,
    /// Whether a step that is sure to run boots from it, or a step may get files of it.
    pub(crate) is_needed: bool,
}

/// The results of steps that were looked up along with the steps that they build on, kept until they are
/// requested: `None` is a miss.
pub(crate) type LookedAhead = Arc<Mutex<HashMap<CacheKey, Option<Found>>>>;

impl fmt::Debug for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, image, candidates, .. } = self;
        let mut text = f.debug_struct("Question");
        text.field("key", key).field("image", image).field("candidates", candidates).finish_non_exhaustive()
    }
}
