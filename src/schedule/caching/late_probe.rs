//! Late probes: a runner whose steps may all be in the cache is probed before its first attempt, not before
//! the build.
//!
//! Input: the attempts that are due to start. Output: which of them may start, and the reports of those that
//! cannot. The module does not run the probes.

use std::{mem, sync::Arc};

use crate::{
    runner::{Probe, RunnerIndex},
    schedule::{
        executor::AttemptReport,
        policy::{AttemptEnd, Start, StopReason},
    },
};

/// The probes of a build's runners, and the attempts that wait for them.
pub(super) struct LateProbes {
    /// By runner.
    states: Vec<ProbeState>,
    /// Attempts whose runner was found usable.
    released: Vec<Start>,
    /// Attempts that ended before they started.
    reports: Vec<AttemptReport>,
}

/// The state of a runner's probe.
enum ProbeState {
    Usable,
    /// Not probed yet.
    Due,
    /// The probe is in progress, and these attempts wait for it.
    InProgress(Vec<Start>),
    Unusable(Arc<str>),
}

/// The answer to an attempt that is due to start.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// The attempt may start.
    Start,
    /// The attempt waits, and its runner must be probed now.
    Probe,
    /// The attempt waits, or its report says why it cannot start.
    Held,
}

impl LateProbes {
    /// Returns the probes of `count` runners. `unprobed` are those that have not been probed yet.
    pub(super) fn new(count: usize, unprobed: &[RunnerIndex]) -> Self {
        let state = |index| if unprobed.contains(&index) { ProbeState::Due } else { ProbeState::Usable };
        Self {
            states: (0..).map(RunnerIndex).take(count).map(state).collect(),
            released: Vec::new(),
            reports: Vec::new(),
        }
    }

    /// Returns whether an attempt may start on its runner.
    pub(super) fn admit(&mut self, start: Start, runner: RunnerIndex) -> Admission {
        match &mut self.states[usize::from(runner.0)] {
            ProbeState::Usable => return Admission::Start,
            due @ ProbeState::Due => {
                *due = ProbeState::InProgress(vec![start]);
                return Admission::Probe;
            }
            ProbeState::InProgress(waiting) => waiting.push(start),
            ProbeState::Unusable(message) => {
                let end = AttemptEnd::Infrastructure { retryable: false };
                self.reports.push(unstarted(start, end, Some(Arc::clone(message))));
            }
        }
        Admission::Held
    }

    /// Handles the result of a probe. `name` is the runner's.
    pub(super) fn probed(&mut self, runner: RunnerIndex, name: &str, probe: Probe) {
        let state = match probe {
            Probe::Usable { .. } => ProbeState::Usable,
            Probe::Unusable { reason, hint } => {
                ProbeState::Unusable(format!("runner `{name}` is not available: {reason}; {hint}").into())
            }
        };
        if let ProbeState::InProgress(waiting) = mem::replace(&mut self.states[usize::from(runner.0)], state) {
            self.released.extend(waiting.into_iter().rev());
        }
    }

    /// Returns the next attempt that waited for a probe and no longer does.
    pub(super) fn next_released(&mut self) -> Option<Start> {
        self.released.pop()
    }

    /// Returns the end of an attempt that did not start.
    pub(super) fn take_report(&mut self) -> Option<AttemptReport> {
        self.reports.pop()
    }

    /// Ends the attempts that wait for a probe, because the build stops.
    pub(super) fn give_up(&mut self, reason: StopReason) {
        let end = if reason == StopReason::TimedOut { AttemptEnd::TimedOut } else { AttemptEnd::Canceled };
        for state in &mut self.states {
            if let ProbeState::InProgress(waiting) = state {
                self.reports.extend(waiting.drain(..).map(|start| unstarted(start, end, None)));
            }
        }
    }
}

fn unstarted(start: Start, end: AttemptEnd, message: Option<Arc<str>>) -> AttemptReport {
    let (snapshot, artifacts, usage, tests, traced, tracing) = (None, Vec::new(), None, None, None, None);
    AttemptReport { start, end, snapshot, artifacts, usage, tests, traced, tracing, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StepIndex;

    const RUNNER: RunnerIndex = RunnerIndex(1);

    fn start(step: u32) -> Start {
        Start { step: StepIndex(step), attempt: 1 }
    }

    fn with_two_waiting() -> LateProbes {
        let mut probes = LateProbes::new(2, &[RUNNER]);
        assert_eq!(probes.admit(start(0), RunnerIndex(0)), Admission::Start);
        assert_eq!(probes.admit(start(1), RUNNER), Admission::Probe);
        assert_eq!(probes.admit(start(2), RUNNER), Admission::Held);
        assert_eq!(probes.next_released(), None);
        probes
    }

    #[test]
    fn attempts_wait_for_the_probe_and_start_in_order() {
        let mut probes = with_two_waiting();
        probes.probed(RUNNER, "vm", Probe::Usable { note: None });
        assert_eq!(probes.next_released(), Some(start(1)));
        assert_eq!(probes.next_released(), Some(start(2)));
        assert_eq!(probes.admit(start(3), RUNNER), Admission::Start);
    }

    #[test]
    fn no_attempt_starts_on_an_unusable_runner() {
        let mut probes = with_two_waiting();
        probes.probed(RUNNER, "vm", Probe::Unusable { reason: "no KVM".into(), hint: "load it".into() });
        let released = probes.next_released().unwrap();
        assert_eq!(probes.admit(released, RUNNER), Admission::Held);
        let report = probes.take_report().unwrap();
        assert_eq!((report.start, report.end), (start(1), AttemptEnd::Infrastructure { retryable: false }));
        assert_eq!(report.message.as_deref(), Some("runner `vm` is not available: no KVM; load it"));
    }

    #[test]
    fn a_stop_ends_the_attempts_that_wait() {
        let mut probes = with_two_waiting();
        probes.give_up(StopReason::TimedOut);
        assert_eq!(probes.take_report().map(|report| report.end), Some(AttemptEnd::TimedOut));
        assert_eq!(probes.take_report().map(|report| report.end), Some(AttemptEnd::TimedOut));
        assert!(probes.take_report().is_none());
    }
}
