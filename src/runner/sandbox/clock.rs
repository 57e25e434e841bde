//! When the times of files say that nothing changed.

use std::{
    fs,
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How much earlier than a moment a change of a file may be to count as later: clocks of files have coarse
/// steps.
pub(super) const MARGIN: Duration = Duration::from_secs(2);
/// By how much the two clocks may differ over the time of a step.
const DRIFT: Duration = Duration::from_secs(1);

/// Returns whether the clock was set since a moment.
pub(super) fn was_set((clock, moment): (SystemTime, Instant)) -> bool {
    let by_clock = SystemTime::now().duration_since(clock);
    by_clock.map_or(true, |by_clock| by_clock.abs_diff(moment.elapsed()) > DRIFT)
}

/// Returns a time in the form of those of files.
pub(super) fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Returns the id of the machine's boot. After another boot, another filesystem may have the number that one
/// had. Reads it once.
pub(super) fn boot_id() -> &'static str {
    static ID: LazyLock<String> =
        LazyLock::new(|| fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default());
    &ID
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_noticed() {
        let now = (SystemTime::now(), Instant::now());
        assert!(!was_set(now));
        assert!(was_set((now.0 + Duration::from_secs(50), now.1)));
        assert!(was_set((now.0 - Duration::from_secs(50), now.1)));
    }
}
