//! Source trees: frozen in the store, compared, and given to runners.
//!
//! The user's directory goes in, read by the rules of ignore files and never written to. A [`FrozenSource`]
//! comes out: layers of the store, named by their content, and a manifest. From the manifests of two sources
//! follow the [`delta`] that updates a snapshot made over the older one, the changes to apply to a workspace
//! without layers, and the digests of the paths in a cache policy. This module knows nothing about steps.

mod archives;
mod delta;
mod early;
#[cfg(feature = "sandbox")]
mod edits;
mod fnmatch;
mod freeze;
mod freeze_progress;
mod frozen;
mod hidden_files;
mod ignore_rules;
mod import;
mod manifest;
mod mask;
mod path_digests;
mod read;
mod run_source;
mod scan;
mod sealed;
mod shown_times;
mod stat_cache;
mod tar;
#[cfg(test)]
pub(crate) mod test_project;
mod times;
mod touched;
mod walk;
mod weight;
pub(crate) mod workspace;
mod write;

use std::{sync::LazyLock, thread};

pub use delta::delta;
pub(crate) use delta::{SourceDelta, delta_of_shown, delta_with_caches};
pub use early::EarlyFreeze;
#[cfg(feature = "sandbox")]
pub(crate) use edits::ComparedSources;
pub use freeze::freeze;
pub use frozen::FrozenSource;
pub(crate) use frozen::largest_files;
pub use hidden_files::{HiddenFiles, HiddenFilesError, SourceOptions};
pub(crate) use import::{has_manifest, import_manifest, manifest_bytes};
pub(crate) use manifest::{EntryKind, Manifest};
pub(crate) use mask::mask;
pub(crate) use path_digests::{changed_files, path_digests, path_matches};
pub use run_source::RunSource;
pub use scan::SourceScan;
pub(crate) use tar::source_tar;
pub use times::SourceTimes;

/// Returns the number of threads that read or walk a tree.
fn threads() -> usize {
    // To find out reads several files of control groups.
    static THREADS: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from).min(8));
    *THREADS
}

/// Returns work for another thread that logs as the current thread does.
fn in_same_log<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let log = tracing::dispatcher::get_default(Clone::clone);
    move || tracing::dispatcher::with_default(&log, work)
}
