//! The cache: hits, misses, and results that are never claimed.

mod flights;
mod hits;
mod keys;
#[cfg(target_os = "linux")]
mod lineage;
mod on_change;
mod projects;
mod trouble;
mod why;
pub(crate) mod writer;
