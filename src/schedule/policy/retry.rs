//! Which failed steps get another attempt, and when: after a failure of the command, of the runner, or
//! for lack of memory.

use std::{cmp::Reverse, time::Duration};

use super::{Policy, State, Step};
use crate::{backoff::Backoff, model::StepIndex};

impl Policy<'_> {
    /// Makes `step` ready again, whose command failed, if its pipeline allows another attempt.
    pub(super) fn retries_command(&mut self, step: StepIndex) -> bool {
        let (done, allowed) = self.command_retries(step);
        if done >= allowed || self.stop.is_some() {
            return false;
        }
        self.steps[step.get()].command_failures += 1;
        self.set(step, State::Ready);
        true
    }

    /// Lets `step` wait for another attempt, whose runner failed. Returns for how long, or `None` if it
    /// has had all of its attempts.
    pub(super) fn retries_infrastructure(&mut self, step: StepIndex, now: Duration) -> Option<Duration> {
        let Step { attempts, command_failures, .. } = self.steps[step.get()];
        let alone = self.memory.as_ref().is_some_and(|memory| memory.has_repeated(step));
        let done = attempts - 1 - u32::from(command_failures) - u32::from(alone);
        if done >= self.retries || self.stop.is_some() {
            return None;
        }
        let backoff = Backoff { first: self.backoff, longest: Duration::MAX }.pause(done + 1);
        self.backing_off.push(Reverse((now.saturating_add(backoff), step)));
        self.set(step, State::BackingOff);
        Some(backoff)
    }

    /// Makes `step` ready again, which failed when memory was short, to run with nothing beside it. Returns
    /// false if it has had that already.
    pub(super) fn retries_alone(&mut self, step: StepIndex) -> bool {
        if self.stop.is_some() || !self.memory.as_ref().is_some_and(|memory| memory.may_repeat(step)) {
            return false;
        }
        self.set(step, State::Ready);
        if let Some(memory) = &mut self.memory {
            memory.repeat_alone(step);
        }
        true
    }

    /// Returns how often `step` ran again after its command had failed, and how often it may.
    #[must_use]
    pub fn command_retries(&self, step: StepIndex) -> (u8, u8) {
        (self.steps[step.get()].command_failures, self.outcomes.get(&step).map_or(0, |rules| rules.retries))
    }

    /// Returns when the next retry is due.
    #[must_use]
    pub fn next_retry(&self) -> Option<Duration> {
        self.backing_off.peek().map(|Reverse((due, _))| *due)
    }

    /// Makes the retries ready that are due at `now`.
    pub fn retry_due(&mut self, now: Duration) {
        while let Some(&Reverse((due, step))) = self.backing_off.peek()
            && due <= now
        {
            self.backing_off.pop();
            self.set(step, State::Ready);
        }
    }
}
