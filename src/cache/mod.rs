//! The cache: determines which steps need not run.
//!
//! A step that is about to start is looked up by its [`KeyParts`]. The answer is the snapshot of a previous
//! step with the same key, or the reason why there is none. If the step then runs, its result is published.
//! Equal steps in flight run once. This module knows nothing about how layers are stored, about runners, or
//! about when steps start: the schedule asks, and the store keeps.

mod build;
mod difference;
#[cfg(feature = "sandbox")]
mod explained;
mod flight;
mod key;
mod mode;
mod parts;
mod policy;
mod prediction;
mod project;
#[cfg(feature = "sandbox")]
pub(crate) mod sealed;
mod shared;
mod step_inputs;
#[cfg(feature = "sandbox")]
mod trace_mismatch;
#[cfg(feature = "sandbox")]
mod trace_records;
mod traces;
mod why;

pub use crate::jail::trace::{Kinds, Reason, Trace, TraceError};
pub(crate) use build::is_young;
pub(crate) use build::{
    BuildCache, BuildEnd, BuildFacts, Cache, Found, Intact, Lookup, LookupOutcome, LookupRequest, Passed,
};
pub use difference::Difference;
#[cfg(feature = "sandbox")]
pub(crate) use explained::Explained;
pub(crate) use flight::Flight;
pub use key::{BasePart, CacheKey, KeyParts};
pub use mode::{CacheMode, Verify};
pub use parts::CacheVerdict;
pub(crate) use parts::{BaseRecord, KeyRecord};
pub use policy::Cacheable;
pub use prediction::Prediction;
pub use project::{ProjectId, RemoteOrigin};
pub(crate) use shared::{Candidate, LookedAhead, Question, SharedResults};
pub(crate) use step_inputs::{StepInputPart, StepInputs};
#[cfg(feature = "sandbox")]
pub(crate) use trace_records::{Machine, RecordedLayer, StaticParts, StoredRecords, TraceRecord};
pub(crate) use traces::DIR as TRACES;
#[cfg(feature = "sandbox")]
pub(crate) use traces::path as trace_path;
pub use traces::{CheckedInputs, StepTrace, check_inputs, check_traces, declared_inputs, trace_of};
pub use why::{Explainer, Explanation, WhyError, explain, key_of};
