//! How many files this process may have open, and how many steps that is enough for.
//!
//! The soft limit is low for the sake of programs that use `select`; hm is none of those, and its steps may
//! be.

use std::{num::NonZeroUsize, sync::OnceLock};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files that an engine needs without any step: the store, the journal, the runtime, a helper.
const FOR_ENGINE: u64 = 48;

/// What a running step takes at the most: its pipes and their copies on the way to the helper, its status,
/// its log.
const FOR_STEP: u64 = 8;

/// The soft limit before it was raised.
static INHERITED: OnceLock<Option<u64>> = OnceLock::new();

/// Raises the soft limit on open files to the hard one, for this process. Steps get the limit as it was. To
/// be called once, when a program starts; libraries leave the limit alone.
pub fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if INHERITED.set(current).is_ok()
        && current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        // Some systems have a lower limit of their own, which they do not tell.
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
}

/// Returns the soft limit that steps get. `None` if they get that of this process.
#[cfg(any(feature = "process", all(feature = "sandbox", target_os = "linux")))]
pub(crate) fn for_steps() -> Option<u64> {
    INHERITED.get().copied().flatten()
}

/// Returns how many steps may run at once, so that each finds the files that it needs. There is always room
/// for one.
#[must_use]
pub fn enough_for() -> NonZeroUsize {
    let open = getrlimit(Resource::Nofile).current;
    let steps = open.map_or(u64::MAX, |open| open.saturating_sub(FOR_ENGINE) / FOR_STEP);
    NonZeroUsize::new(usize::try_from(steps).unwrap_or(usize::MAX)).unwrap_or(NonZeroUsize::MIN)
}
