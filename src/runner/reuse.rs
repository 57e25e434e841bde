//! What runners that record what steps read say about results that are found by that.

use std::{path::Path, sync::Arc};

use super::Verification;
use crate::model::SnapshotRef;

/// The answer to the question whether a step is found by what it read in earlier runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceLookup {
    /// Everything that it read then is the same now: its result has this key.
    Found([u8; 32]),
    /// The same, in a run that compares results with what steps do. The result is this snapshot, which may
    /// have no key.
    Expected(SnapshotRef),
    /// It is not found. If something that it read is different, what that is.
    Missed(Option<String>),
}

/// What a run that reuses results by traces tells the attempts whose traces are kept.
#[derive(Debug)]
#[cfg_attr(not(feature = "sandbox"), expect(dead_code, reason = "only the sandbox reads it"))]
pub(crate) struct TraceReuse {
    /// The project that the results belong to.
    pub(crate) project: Arc<str>,
    /// The directory for traces.
    pub(crate) dir: Arc<Path>,
    /// Says that steps which are found run, too, and are compared.
    pub(crate) verification: Option<Arc<Verification>>,
}

/// What a step read, and the key of its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TracedResult {
    /// The key that is known before the step runs.
    pub(crate) key: [u8; 32],
    /// What it read, encoded.
    pub(crate) record: Vec<u8>,
    /// The key of its result.
    pub(crate) result: [u8; 32],
    /// How the next look for its result can be left out: under which name to keep that, and what to keep.
    pub(crate) look: Option<([u8; 32], Vec<u8>)>,
}
