//! The remote cache: what cached steps left, shared through an engine's action cache.
//!
//! In: a key that this machine's cache does not have. Out: a snapshot that another machine's step of the same key left, its
//! layers here where a step is about to boot from it; the other way round, what a step left here goes there. Whatever goes
//! wrong is a miss: the build goes on, with a warning. Knows neither how keys are made nor when steps start.

#[cfg(all(feature = "cloud", target_os = "linux"))]
mod entry;
#[cfg(all(feature = "cloud", target_os = "linux"))]
mod fetch;
#[cfg(all(feature = "cloud", target_os = "linux"))]
mod lookup;
#[cfg(not(all(feature = "cloud", target_os = "linux")))]
mod none;
#[cfg(all(feature = "cloud", target_os = "linux"))]
mod options;
#[cfg(all(feature = "cloud", target_os = "linux"))]
mod share;
#[cfg(all(feature = "cloud", target_os = "linux"))]
mod trouble;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

#[cfg(not(all(feature = "cloud", target_os = "linux")))]
pub(crate) use none::RemoteCache;
#[cfg(all(feature = "cloud", target_os = "linux"))]
pub use options::RemoteCache;

use crate::{
    cache::{CacheKey, Found},
    plan::StepIndex,
};

/// What is asked for a step, and for those that build on it: whether its files are needed here follows from what is found
/// of them.
#[cfg_attr(not(all(feature = "cloud", target_os = "linux")), allow(dead_code, reason = "nobody is there to answer"))]
pub(crate) struct Question<'a> {
    /// The step's own key.
    pub(crate) key: CacheKey,
    /// What its image is called, or that of the first of its lineage.
    pub(crate) image: &'a str,
    /// The step, and the cached ones above it, each after the one that it boots from.
    pub(crate) candidates: Vec<Candidate>,
    /// The key of a candidate over a snapshot.
    pub(crate) key_over: KeyOver<'a>,
}

/// Makes keys of candidates over snapshots.
pub(crate) type KeyOver<'a> = Box<dyn Fn(&Candidate, &str) -> CacheKey + Send + Sync + 'a>;

/// A step that may be found.
#[derive(Debug)]
#[cfg_attr(not(all(feature = "cloud", target_os = "linux")), allow(dead_code, reason = "nobody is there to answer"))]
pub(crate) struct Candidate {
    pub(crate) step: StepIndex,
    /// The place of the one that it boots from.
    pub(crate) parent: Option<usize>,
    /// How its runner works here.
    pub(crate) mode: Arc<str>,
    /// The digest of what it looks at in the source.
    pub(crate) inputs: Option<[u8; 32]>,
    /// How old a result may be.
    pub(crate) max_age: Option<Duration>,
    /// Whether a step boots from it that is sure to run.
    pub(crate) is_needed: bool,
}

/// What became of steps that were looked up along with the ones they build on, until somebody asks for them: `None` is a
/// miss.
pub(crate) type LookedAhead = Arc<Mutex<HashMap<CacheKey, Option<Found>>>>;

impl fmt::Debug for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, image, candidates, .. } = self;
        let mut text = f.debug_struct("Question");
        text.field("key", key).field("image", image).field("candidates", candidates).finish_non_exhaustive()
    }
}
