//! How many files this process may have open, and how many steps that suffices for.
//!
//! The soft limit is low for the sake of programs that use `select`. hm does not use it, but its steps may.

use std::{num::NonZeroUsize, sync::OnceLock};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files that an engine needs without any step: the store, the journal, the runtime, a helper.
const FOR_ENGINE: u64 = 48;

/// The maximum number of open files of a running step: its pipes and their copies on the way to the helper,
/// its status, its log.
const FOR_STEP: u64 = 8;

/// The soft limit before it was raised.
static INHERITED: OnceLock<Option<u64>> = OnceLock::new();

/// Raises the soft limit on open files to the hard limit, for this process. Steps get the original limit.
/// Call it once, when a program starts; libraries leave the limit alone.
pub fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if INHERITED.set(current).is_ok()
        && current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        // Some systems have a lower limit that they do not report.
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
}

/// Returns the soft limit that steps get, or `None` if they get that of this process.
pub(crate) fn for_steps() -> Option<u64> {
    INHERITED.get().copied().flatten()
}

/// Returns how many steps may run at once so that each can open the files that it needs. At least one.
#[must_use]
pub fn enough_for() -> NonZeroUsize {
    let open = getrlimit(Resource::Nofile).current;
    let steps = open.map_or(u64::MAX, |open| open.saturating_sub(FOR_ENGINE) / FOR_STEP);
    NonZeroUsize::new(usize::try_from(steps).unwrap_or(usize::MAX)).unwrap_or(NonZeroUsize::MIN)
}
