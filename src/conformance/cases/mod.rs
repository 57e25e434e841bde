//! The cases, grouped by subject.

pub(super) mod cache_dirs;
pub(super) mod cancel;
pub(super) mod exit;
pub(super) mod input;
pub(super) mod inputs;
pub(super) mod isolation;
pub(super) mod limits;
pub(super) mod lineage;
pub(super) mod output;
pub(super) mod outputs;
pub(super) mod processes;
pub(super) mod services;
pub(super) mod snapshots;
pub(super) mod source;
