//! The remote cache: results of cached steps, shared through an engine's action cache.
//!
//! Input: a key that this machine's cache does not have. Output: the snapshot of a step with the same key
//! that ran on another machine, with its layers fetched if a step is about to boot from it. In the other
//! direction, results of this machine are shared there. Any failure is a miss: the build continues, with a
//! warning. Does not know how keys are derived or when steps start.

#[cfg(all(feature = "cloud", target_os = "linux"))]
mod entry;
#[cfg(all(feature = "cloud", target_os = "linux"))]
mod error;
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

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

#[cfg(not(all(feature = "cloud", target_os = "linux")))]
pub(crate) use none::RemoteCache;
#[cfg(all(feature = "cloud", target_os = "linux"))]
pub use options::RemoteCache;

use crate::{
    cache::{CacheKey, Found},
    model::StepIndex,
    sync::Mutex,
};

/// The question about a step and those that build on it. Whether the step's files are needed here depends on
/// which of the others are found.
#[cfg_attr(not(all(feature = "cloud", target_os = "linux")), allow(dead_code, reason = "nobody is there to answer"))]
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
#[cfg_attr(not(all(feature = "cloud", target_os = "linux")), allow(dead_code, reason = "nobody is there to answer"))]
pub(crate) struct Candidate {
    pub(crate) step: StepIndex,
    /// The index of the candidate that it boots from.
    pub(crate) parent: Option<usize>,
    /// How its runner works on this machine.
    pub(crate) mode: Arc<str>,
    /// The digest of the source files that it depends on.
    pub(crate) inputs: Option<[u8; 32]>,
    /// The maximum age of a result.
    pub(crate) max_age: Option<Duration>,
    /// Whether a step that is sure to run boots from it.
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
