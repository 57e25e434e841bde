//! Runs the cases.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;

use super::{
    CaseReport, CaseVerdict, Report,
    case::{CASES, Case},
    harness::{Broken, Harness},
};
use crate::runner::DynStepRunner;

/// The suite for one runner and image.
#[derive(Debug, Clone)]
pub struct Suite<'r> {
    runner: &'r dyn DynStepRunner,
    image: Arc<str>,
    peer: Option<&'r dyn DynStepRunner>,
    patience: Duration,
    sampled: bool,
}

impl<'r> Suite<'r> {
    /// Creates a suite whose root steps boot from `image`.
    #[must_use]
    pub fn new(runner: &'r dyn DynStepRunner, image: impl Into<Arc<str>>) -> Self {
        Self { runner, image: image.into(), peer: None, patience: Duration::from_secs(300), sampled: false }
    }

    /// Sets another runner on the same store, for the case that moves a chain of steps between runners. Both
    /// must have the `layers` capability. By default all steps of the chain use the same runner.
    #[must_use]
    pub fn peer(mut self, peer: &'r dyn DynStepRunner) -> Self {
        self.peer = Some(peer);
        self
    }

    /// Sets how long a case may take before the runner is considered hung. The default is five minutes.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Runs a sample in cases with many steps: every 29th exit code, and 8 steps at once instead of 32. For
    /// runners whose steps take seconds. The report states this.
    #[must_use]
    pub fn sample(mut self) -> Self {
        self.sampled = true;
        self
    }

    /// Returns the names of all cases, in the order in which they run.
    pub fn cases() -> impl Iterator<Item = &'static str> {
        CASES.iter().map(|case| case.name)
    }

    /// Runs every case, one after another.
    ///
    /// # Cancel safety
    /// Dropping the future drops the attempt that is currently running.
    pub async fn run(&self) -> Report {
        let mut cases = Vec::with_capacity(CASES.len());
        for case in CASES {
            cases.push(CaseReport { case: case.name, verdict: self.judge(case).await });
        }
        Report { runner: self.runner.name().into(), image: Arc::clone(&self.image), sampled: self.sampled, cases }
    }

    /// Runs the case with this name. Returns `None` if there is none.
    pub async fn run_case(&self, name: &str) -> Option<CaseVerdict> {
        let case = CASES.iter().find(|case| case.name == name)?;
        Some(self.judge(case).await)
    }

    async fn judge(&self, case: &Case) -> CaseVerdict {
        let capabilities = self.runner.capabilities();
        if let Some(missing) = case.needs.iter().find(|needed| !needed.is_in(&capabilities)) {
            return CaseVerdict::NotPromised { capability: missing.name() };
        }
        let harness = match Harness::new(self.runner, self.peer, Arc::clone(&self.image), self.sampled) {
            Ok(harness) => harness,
            Err(error) => {
                return CaseVerdict::Failed { why: format!("failed to make a source tree for the case: {error}") };
            }
        };
        let checked = AssertUnwindSafe((case.check)(&harness)).catch_unwind();
        let checked = tokio::time::timeout(self.patience, checked).await;
        harness.end().await;
        match checked {
            Ok(Ok(Ok(()))) => CaseVerdict::Passed,
            Ok(Ok(Err(Broken::Promise(why)))) => CaseVerdict::Failed { why },
            Ok(Ok(Err(Broken::Image(why)))) => CaseVerdict::Unchecked { why },
            Ok(Err(_)) => CaseVerdict::Failed { why: "the runner panicked".into() },
            Err(_) => CaseVerdict::Failed { why: format!("no end after {} s", self.patience.as_secs_f64()) },
        }
    }
}
