//! Time during which this process ran. Limits and grace periods count in it.
//!
//! A process that is stopped (Ctrl-Z, a frozen control group, a paused container) misses the ends of its
//! steps for that time, and wakes up with all of its timers due. A limit that counted that time would end
//! steps that had finished long before, and a grace period would be over before the process could look at
//! anything. So long waits are cut into slices, and a slice that took much longer than requested counts only
//! as the time that was requested. Input: limits. Output: when they are reached.

use std::time::Duration;

/// A slice that ends later than this was interrupted by a stop, not just late.
const LATE: Duration = Duration::from_millis(50);
/// The minimum time that remains when the process continues after it was stopped, so that it can look at
/// what happened meanwhile.
const LOOK: Duration = Duration::from_millis(100);
/// How often in a row that time is granted. It is bounded so that a machine that is always late ends steps,
/// too.
const LOOKS: u8 = 3;
/// The shortest slice, unless the limit is shorter.
const SHORTEST: Duration = Duration::from_secs(1);
/// The maximum number of slices of a limit. A stop that is shorter than a slice may go unnoticed.
const SLICES: u32 = 64;

/// A limit on the time during which this process runs, and how much of it is left.
#[derive(Debug, Clone, Copy)]
pub struct Awake {
    left: Duration,
    slice: Duration,
    looks: u8,
}

impl Awake {
    /// Returns a limit that begins now.
    pub fn new(limit: Duration) -> Self {
        Self { left: limit, slice: SHORTEST.max(limit / SLICES), looks: LOOKS }
    }

    /// Returns how long to wait, at most, until [`pass`](Self::pass) is called; `None` when the limit is
    /// reached.
    pub fn next(&self) -> Option<Duration> {
        (!self.left.is_zero()).then(|| self.left.min(self.slice))
    }

    /// Counts the duration of the last wait, which is the time since the last call or since the beginning.
    pub fn pass(&mut self, took: Duration) {
        let Some(asked) = self.next() else { return };
        if took <= asked.saturating_add(LATE) {
            self.left = self.left.saturating_sub(took);
            return;
        }
        self.left = self.left.saturating_sub(asked);
        if self.left < LOOK && self.looks > 0 {
            self.looks -= 1;
            self.left = LOOK;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Waits until the limit is reached, with the n-th wait taking that much longer than requested. Returns
    /// how long all waits took.
    fn play(limit: Duration, stood_still: &[Duration]) -> Duration {
        let mut awake = Awake::new(limit);
        let mut took = Duration::ZERO;
        let mut stood_still = stood_still.iter();
        while let Some(slice) = awake.next() {
            let wait = slice + stood_still.next().copied().unwrap_or_default();
            awake.pass(wait);
            took += wait;
        }
        took
    }

    #[test]
    fn a_process_that_never_stands_still_waits_as_long_as_it_was_told() {
        for ms in [0, 1, 99, 1_000, 1_001, 4_000, 3_600_000, u64::MAX] {
            assert_eq!(play(MS * 1, &[]), MS);
            assert_eq!(play(Duration::from_millis(ms), &[]), Duration::from_millis(ms));
        }
    }

    #[test]
    fn a_standstill_is_not_counted() {
        let seconds = Duration::from_secs;
        assert_eq!(play(seconds(4), &[Duration::ZERO, seconds(5)]), seconds(9));
        // In the last slice there is time to look at what happened.
        assert_eq!(play(seconds(1), &[seconds(5)]), seconds(6) + LOOK);
    }

    proptest! {
        #[test]
        fn no_limit_is_reached_early_or_never(
            limit in (0..10_000_000_u64).prop_map(Duration::from_millis),
            late in vec((0..100_000_u64).prop_map(Duration::from_millis), 0..100),
        ) {
            let took = play(limit, &late);
            let stood_still = late.iter().sum::<Duration>();
            prop_assert!(took >= limit, "{took:?}");
            prop_assert!(took <= limit + stood_still + LOOK * u32::from(LOOKS), "{took:?}");
        }

        #[test]
        fn what_is_late_by_a_little_is_counted(
            limit in (0..10_000_000_u64).prop_map(Duration::from_millis),
            late in vec((0..50_u64).prop_map(Duration::from_millis), 0..100),
        ) {
            prop_assert!(play(limit, &late) <= limit + LATE);
        }
    }
}
