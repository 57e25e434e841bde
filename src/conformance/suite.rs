//! Running the cases.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;

use super::{
    CaseReport, Report, Verdict,
    case::{CASES, Case},
    lab::{Broken, Lab},
};
use crate::runner::DynStepRunner;

/// The suite over one runner and image.
#[derive(Debug, Clone)]
pub struct Suite<'r> {
    runner: &'r dyn DynStepRunner,
    image: Arc<str>,
    peer: Option<&'r dyn DynStepRunner>,
    patience: Duration,
    sampled: bool,
}

impl<'r> Suite<'r> {
    /// A suite whose root steps boot from `image`.
    #[must_use]
    pub fn new(runner: &'r dyn DynStepRunner, image: impl Into<Arc<str>>) -> Self {
        Self { runner, image: image.into(), peer: None, patience: Duration::from_secs(300), sampled: false }
    }

    /// Another runner on the same store, for the case that moves a chain of steps between runners. Both must have the
    /// `layers` capability. By default the chain moves between steps of the one runner.
    #[must_use]
    pub fn peer(mut self, peer: &'r dyn DynStepRunner) -> Self {
        self.peer = Some(peer);
        self
    }

    /// How long a case may take before the runner counts as hung. By default five minutes.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Takes a sample where a case has many steps: every 29th exit code, and 8 steps at once instead of 32. For runners
    /// whose steps take seconds. The report says so.
    #[must_use]
    pub fn sample(mut self) -> Self {
        self.sampled = true;
        self
    }

    /// The names of all cases, in the order in which they run.
    pub fn cases() -> impl Iterator<Item = &'static str> {
        CASES.iter().map(|case| case.name)
    }

    /// Runs every case, one after the other.
    ///
    /// # Cancel safety
    /// Dropping the future drops the attempt that runs just then.
    pub async fn run(&self) -> Report {
        let mut cases = Vec::with_capacity(CASES.len());
        for case in CASES {
            cases.push(CaseReport { case: case.name, verdict: self.judge(case).await });
        }
        Report { runner: self.runner.name().into(), image: Arc::clone(&self.image), sampled: self.sampled, cases }
    }

    /// Runs the case of that name; `None` where there is none.
    pub async fn run_case(&self, name: &str) -> Option<Verdict> {
        let case = CASES.iter().find(|case| case.name == name)?;
        Some(self.judge(case).await)
    }

    async fn judge(&self, case: &Case) -> Verdict {
        let capabilities = self.runner.capabilities();
        if let Some(missing) = case.needs.iter().find(|needed| !needed.is_in(&capabilities)) {
            return Verdict::NotPromised { capability: missing.name() };
        }
        let lab = match Lab::new(self.runner, self.peer, Arc::clone(&self.image), self.sampled) {
            Ok(lab) => lab,
            Err(error) => return Verdict::Failed { why: format!("no source tree for the case: {error}") },
        };
        let checked = AssertUnwindSafe((case.check)(&lab)).catch_unwind();
        let checked = tokio::time::timeout(self.patience, checked).await;
        lab.end().await;
        match checked {
            Ok(Ok(Ok(()))) => Verdict::Passed,
            Ok(Ok(Err(Broken::Promise(why)))) => Verdict::Failed { why },
            Ok(Ok(Err(Broken::Image(why)))) => Verdict::Unchecked { why },
            Ok(Err(_)) => Verdict::Failed { why: "the runner panicked".into() },
            Err(_) => Verdict::Failed { why: format!("no end after {} s", self.patience.as_secs_f64()) },
        }
    }
}
