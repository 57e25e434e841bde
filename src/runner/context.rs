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
    reason: Arc<AtomicU8>,
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

impl StepContext {
    /// A context for one attempt. The executor makes these; tests of runners may, too.
    #[must_use]
    pub fn new(event_bus: EventBus, archives: Arc<Archives>, secrets: Arc<Secrets>, cancel: CancellationToken) -> Self {
        Self { event_bus, archives, cancel, secrets, attempt: 1, grace: Duration::from_secs(5), reason: Arc::default() }
    }

    /// Ends the attempt for `reason`. The first reason stays. The executor calls this.
    pub fn interrupt(&self, reason: CancelReason) {
        let _ = self.reason.compare_exchange(0, reason as u8, Ordering::Release, Ordering::Relaxed);
        self.cancel.cancel();
    }

    /// Why the attempt must end. [`CancelReason::Cancelled`] where the token was fired without a reason.
    #[must_use]
    pub fn cancel_reason(&self) -> CancelReason {
        match self.reason.load(Ordering::Acquire) {
            2 => CancelReason::TimedOut,
            _ => CancelReason::Cancelled,
        }
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
