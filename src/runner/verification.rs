//! Runs that compare results which are found by what steps read with what the steps do.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{
    cache::Verify,
    model::{SnapshotRef, VerifiedStep},
    sync::Mutex,
};

/// The comparisons of one run.
#[derive(Debug)]
pub(crate) struct Verification {
    mode: Verify,
    verdicts: Mutex<Vec<VerifiedStep>>,
    failures: AtomicUsize,
}

impl Verification {
    /// Returns the comparisons of a run that asks for them.
    pub(crate) fn of(mode: &Verify) -> Option<Arc<Self>> {
        let mode = mode.clone();
        (mode != Verify::Off)
            .then(|| Arc::new(Self { mode, verdicts: Mutex::default(), failures: AtomicUsize::new(0) }))
    }

    /// Returns whether nothing is kept, and only steps run that are compared.
    pub(crate) fn is_alone(&self) -> bool {
        matches!(self.mode, Verify::Only(_))
    }

    /// Returns whether a step runs if it is found.
    pub(crate) fn covers(&self, step: &str) -> bool {
        match &self.mode {
            Verify::Only(steps) => steps.is_empty() || steps.contains(step),
            Verify::InPlace => true,
            Verify::Off => false,
        }
    }

    /// Adds what came of a step.
    pub(crate) fn add(&self, verdict: VerifiedStep) {
        self.verdicts.lock().push(verdict);
    }

    /// Counts a comparison that failed. The caller prints a warning.
    #[cfg_attr(not(feature = "sandbox"), expect(dead_code, reason = "only the sandbox compares"))]
    pub(crate) fn add_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many comparisons failed.
    pub(crate) fn failures(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }

    /// Returns what came of the steps so far.
    pub(crate) fn verdicts(&self) -> Vec<VerifiedStep> {
        self.verdicts.lock().clone()
    }
}

/// The result that a step would have been found with. It runs to be compared with that.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "sandbox"), expect(dead_code, reason = "only the sandbox compares"))]
pub(crate) struct Expected {
    pub(crate) snapshot: SnapshotRef,
    pub(crate) verification: Arc<Verification>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_compares_what_it_was_asked_for() {
        assert!(Verification::of(&Verify::Off).is_none());
        let in_place = Verification::of(&Verify::InPlace).unwrap();
        assert!(in_place.covers("a") && !in_place.is_alone());
        let all = Verification::of(&Verify::Only([].into())).unwrap();
        assert!(all.covers("a") && all.is_alone());
        let some = Verification::of(&Verify::Only(["b".to_owned()].into())).unwrap();
        assert!(some.covers("b") && !some.covers("a"));
    }
}
