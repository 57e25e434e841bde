//! Shadow mode: what a look-up by traces would have done, beside what steps did.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{model::ShadowVerdict, sync::Mutex};

/// The look-ups by traces of one run, if it has them. Nothing is reused because of them.
#[derive(Debug)]
pub struct ShadowMode {
    project: Arc<str>,
    verdicts: Mutex<Vec<(Arc<str>, ShadowVerdict)>>,
    failures: AtomicUsize,
}

impl ShadowMode {
    /// Creates the shadow mode of a run of this project.
    #[must_use]
    pub fn new(project: impl Into<Arc<str>>) -> Self {
        Self { project: project.into(), verdicts: Mutex::default(), failures: AtomicUsize::new(0) }
    }

    /// Returns the project whose records are used and made.
    #[must_use]
    pub fn project(&self) -> &Arc<str> {
        &self.project
    }

    /// Adds the verdict on an attempt of a step.
    pub fn add(&self, step: Arc<str>, verdict: ShadowVerdict) {
        self.verdicts.lock().push((step, verdict));
    }

    /// Counts a look-up, a comparison or a record that failed. The caller prints a warning.
    pub fn add_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many look-ups, comparisons and records failed.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }

    /// Returns the verdicts so far, with the keys of the steps.
    #[must_use]
    pub fn verdicts(&self) -> Vec<(Arc<str>, ShadowVerdict)> {
        self.verdicts.lock().clone()
    }

    /// Returns how many attempts did something else than the result that would have been taken.
    #[must_use]
    pub fn differences(&self) -> usize {
        self.verdicts.lock().iter().filter(|(_, verdict)| verdict.difference.is_some()).count()
    }
}
