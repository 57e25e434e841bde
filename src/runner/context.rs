//! What an attempt gets besides its input.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::RunnerError;
use crate::{event::EventBus, store::Archives};

/// What an attempt gets besides its input. Cheap to clone.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StepContext {
    /// Where the command's output goes: `ctx.event_bus.output(input.step_id, stream, bytes).await`.
    pub event_bus: EventBus,
    /// The run's source tree, frozen when the first runner asks.
    pub archives: Arc<Archives>,
    /// Fires when this attempt must end: TERM, grace, KILL, then return [`StepContext::interrupted`].
    pub cancel: CancellationToken,
    /// What the step may read at `/run/secrets/NAME`.
    pub secrets: Arc<Secrets>,
    /// Which attempt of the step this is, from 1.
    pub attempt: u32,
    /// How long a command may take between TERM and KILL.
    pub grace: Duration,
    /// Whether the snapshots of passed steps are to outlive the build, for people to look at. A runner that can't do that
    /// overlooks it.
    pub keep: bool,
    reasons: Reasons,
}

/// Why [`StepContext::cancel`] fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CancelReason {
    /// The build was cancelled, or another step failed and the build does not keep going.
    Cancelled = 1,
    /// The step's or the pipeline's deadline passed.
    TimedOut = 2,
}

/// Reasons for the whole run in a cell that all its attempts share, and for one attempt in a cell of its own. Only an
/// attempt with a time limit needs the second: the hot path shares.
#[derive(Debug, Clone, Default)]
struct Reasons {
    run: Arc<AtomicU8>,
    attempt: Option<Arc<AtomicU8>>,
}

impl StepContext {
    /// A context for a whole run, from which the executor derives those of its attempts. Tests of runners may use it as it
    /// is.
    #[must_use]
    pub fn new(event_bus: EventBus, archives: Arc<Archives>, secrets: Arc<Secrets>, cancel: CancellationToken) -> Self {
        Self {
            event_bus,
            archives,
            cancel,
            secrets,
            attempt: 1,
            grace: Duration::from_secs(5),
            keep: false,
            reasons: Reasons::default(),
        }
    }

    /// The context of one attempt within this run. Its token is a child of the run's, so that nothing a runner does to it
    /// reaches another attempt. `limited` says that it may be [interrupted](Self::interrupt) on its own.
    pub(crate) fn for_attempt(&self, attempt: u32, limited: bool) -> Self {
        Self {
            event_bus: self.event_bus.for_attempt(attempt),
            archives: Arc::clone(&self.archives),
            cancel: self.cancel.child_token(),
            secrets: Arc::clone(&self.secrets),
            attempt,
            grace: self.grace,
            keep: self.keep,
            reasons: Reasons { run: Arc::clone(&self.reasons.run), attempt: limited.then(Arc::default) },
        }
    }

    /// Ends the attempt for `reason`, or, on a run's context, all of its attempts. The first reason stays.
    pub fn interrupt(&self, reason: CancelReason) {
        let cell = self.reasons.attempt.as_ref().unwrap_or(&self.reasons.run);
        let _ = cell.compare_exchange(0, reason as u8, Ordering::Release, Ordering::Relaxed);
        self.cancel.cancel();
    }

    /// Why the attempt must end. [`CancelReason::Cancelled`] where the token was fired without a reason.
    #[must_use]
    pub fn cancel_reason(&self) -> CancelReason {
        let attempt = self.reasons.attempt.as_ref().map_or(0, |cell| cell.load(Ordering::Acquire));
        let reason = if attempt == 0 { self.reasons.run.load(Ordering::Acquire) } else { attempt };
        if reason == CancelReason::TimedOut as u8 { CancelReason::TimedOut } else { CancelReason::Cancelled }
    }

    /// Whether this attempt has a reason of its own to end, rather than its run.
    pub(crate) fn interrupted_alone(&self) -> bool {
        self.reasons.attempt.as_ref().is_some_and(|cell| cell.load(Ordering::Acquire) != 0)
    }

    /// The error to return after [`StepContext::cancel`] fired and the command was ended.
    #[must_use]
    pub fn interrupted(&self) -> RunnerError {
        match self.cancel_reason() {
            CancelReason::Cancelled => RunnerError::cancelled(),
            CancelReason::TimedOut => RunnerError::timed_out(),
        }
    }
}

/// The secrets of a run, by name. `Debug` prints the names alone.
#[derive(Clone, Default)]
pub struct Secrets(Vec<(String, Vec<u8>)>);

impl Secrets {
    /// No secrets.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a secret, or replaces the one of that name.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) {
        let (name, value) = (name.into(), value.into());
        match self.0.binary_search_by(|(known, _)| known.cmp(&name)) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (name, value)),
        }
    }

    /// Names and values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}
