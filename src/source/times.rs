//! The modification times of source files that steps see.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::manifest::{Manifest, Time};

/// The time of everything in a fresh lineage: 2000-01-01 00:00:00 UTC. Steps make later times, and zip
/// archives cannot have times before 1980.
pub(super) const FRESH: Time = (946_684_800, 0);

/// By how much the clock for the times of files may be behind.
const CLOCK_STEP: Duration = Duration::from_millis(10);

/// Which modification times of source files steps see.
///
/// Build tools such as `make` and `cargo` compare times, and each clone of a repository has new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SourceTimes {
    /// Those of the lineage. In a fresh one, everything has the same time. What was edited since a step's
    /// parent ran has a later time than everything in the parent's snapshot. So a build in a new clone
    /// repeats only what the edits require.
    #[default]
    Normal,
    /// Those of the source directory.
    Real,
}

impl SourceTimes {
    /// Returns the name of the setting.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Real => "real",
        }
    }

    /// Returns the time that steps see for a file with the time `real`.
    pub(super) fn of(self, real: Time) -> Time {
        match self {
            Self::Normal => FRESH,
            Self::Real => real,
        }
    }
}

/// Waits until a time is over, if it is at most a second ahead. A file with that time is then older than what
/// a step makes of it: otherwise `make` would warn, and `ninja` could refuse to build.
pub(super) fn let_pass(time: Time) {
    let Ok(since) = SystemTime::now().duration_since(UNIX_EPOCH) else { return };
    let Ok(seconds) = u64::try_from(time.0) else { return };
    let end = Duration::new(seconds, time.1) + CLOCK_STEP;
    if let Some(rest) = end.checked_sub(since).filter(|rest| *rest <= Duration::from_secs(1) + CLOCK_STEP) {
        thread::sleep(rest);
    }
}

/// Returns a time that is later than `latest`, and than every time in some manifests. It differs from them in
/// its seconds, because not every program compares fractions.
pub(super) fn later_than<'a>(latest: Time, manifests: impl IntoIterator<Item = &'a Manifest>) -> Time {
    let times = manifests.into_iter().flat_map(Manifest::entries).map(|entry| entry.mtime);
    (times.fold(latest, Time::max).0.saturating_add(1), 0)
}

#[cfg(test)]
mod tests {
    use super::{
        super::manifest::{EntryKind, ManifestEntry},
        *,
    };

    #[test]
    fn a_later_time_is_a_whole_second_later_than_all() {
        let manifest = |mtime| {
            let mut manifest = Manifest::default();
            manifest.push(ManifestEntry { path: b"", mode: 0o755, mtime, kind: EntryKind::Directory });
            manifest
        };
        let (old, new) = (manifest((-7, 5)), manifest(FRESH));
        assert_eq!(later_than((0, 0), [&old, &new]), (FRESH.0 + 1, 0));
        assert_eq!(later_than((2_000_000_000, 999_999_999), [&old, &new]), (2_000_000_001, 0));
        assert_eq!(later_than((0, 0), [&manifest((i64::MAX, 1)), &new]), (i64::MAX, 0));
        // Nothing waits for times that may be wrong.
        for time in [(i64::MIN, 0), (-1, 0), FRESH, (i64::MAX, 0)] {
            let_pass(time);
        }
    }
}
