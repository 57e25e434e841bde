//! The cache: which steps need not run.
//!
//! In: a step that is about to start, as [`KeyParts`]. Out: the snapshot that a step of the same key left, or why there is
//! none; then, where it ran, its result is published. Equal steps in flight run once. Knows neither how layers are stored,
//! nor runners, nor when steps start: the schedule asks, the store keeps.

mod build;
mod flight;
mod key;
mod parts;
mod policy;
mod project;
mod why;

#[cfg(all(feature = "cloud", target_os = "linux"))]
pub(crate) use build::is_young;
pub(crate) use build::{Ask, BuildCache, BuildEnd, BuildFacts, Cache, Found, Looked, Outcome, Passed};
pub(crate) use flight::Flight;
pub use key::{BasePart, CacheKey, KeyParts};
pub use parts::{Difference, Verdict};
pub(crate) use parts::{Noted, NotedBase};
pub use policy::Cacheable;
pub use project::ProjectId;
pub use why::{Explanation, WhyError, explain, key_of};
