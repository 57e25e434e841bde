//! A scheduler that is evidently right: readiness, skipping and urgency by definition, with every question
//! answered by looking at every step. The policy must agree with it after each operation.

use std::{cmp::Reverse, time::Duration};

use hm_exec::{
    BuildStatus, StepStatus,
    plan::{OutcomeRules, SoftFail},
    schedule::{Answer, AttemptEnd, StopReason},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Idle,
    Running,
    BackingOff { due: Duration },
    Ended(StepStatus),
}

/// Whether a step runs again without others, because memory was short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alone {
    No,
    /// It waits for that, or does.
    Now,
    Done,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) parents: Vec<Vec<usize>>,
    /// The parent in which each step builds.
    pub(crate) lineage: Vec<Option<usize>>,
    /// The steps above each step whose files it gets without building in them.
    pub(crate) takes: Vec<Vec<usize>>,
    pub(crate) outcomes: Vec<OutcomeRules>,
    /// The memory that the steps of pool 0 share, if it matters, and their peaks, if they are known.
    pub(crate) memory: Option<(u64, Vec<Option<u64>>)>,
    /// Whether another step of pool 0 has run during the last attempt of each step.
    pub(crate) is_beside: Vec<bool>,
    pub(crate) alone: Vec<Alone>,
    pub(crate) pool_of: Vec<usize>,
    /// Steps whose cache lookup has not been made yet.
    pub(crate) to_look_up: Vec<bool>,
    pub(crate) urgency: Vec<u64>,
    pub(crate) limits: Vec<usize>,
    pub(crate) keep_going: bool,
    pub(crate) backoffs: Vec<Duration>,
    pub(crate) steps: Vec<Step>,
    pub(crate) attempts: Vec<usize>,
    /// The number of each step's attempts whose command failed and that were followed by another.
    pub(crate) command_failures: Vec<usize>,
    pub(crate) stop: Option<StopReason>,
}

impl Model {
    pub(crate) fn start_next(&mut self) -> Option<(usize, usize)> {
        let startable = (0..self.steps.len()).filter(|&step| {
            self.steps[step] == Step::Idle
                && !self.to_look_up[step]
                && self.may_run(step)
                && self.running(self.pool_of[step]) < self.limits[self.pool_of[step]]
                && self.memory_allows(step)
        });
        let step = startable.max_by_key(|&step| (self.urgency[step], Reverse(step)))?;
        self.steps[step] = Step::Running;
        if self.pool_of[step] == 0 {
            self.is_beside[step] = false;
            let running: Vec<_> = self.on_the_machine().collect();
            if running.len() > 1 {
                running.into_iter().for_each(|step| self.is_beside[step] = true);
            }
        }
        self.attempts[step] += 1;
        Some((step, self.attempts[step]))
    }

    /// Returns the running steps of pool 0.
    fn on_the_machine(&self) -> impl Iterator<Item = usize> {
        (0..self.steps.len()).filter(|&step| self.steps[step] == Step::Running && self.pool_of[step] == 0)
    }

    /// Returns whether a step may start beside those that run, as far as memory matters.
    fn memory_allows(&self, step: usize) -> bool {
        let Some((budget, peaks)) = self.memory.as_ref().filter(|_| self.pool_of[step] == 0) else { return true };
        let is_idle = self.on_the_machine().count() == 0;
        if self.alone.contains(&Alone::Now) {
            return is_idle && self.alone[step] == Alone::Now;
        }
        let sum: u128 = self.on_the_machine().chain([step]).map(|step| u128::from(peaks[step].unwrap_or(0))).sum();
        is_idle || sum.min(u128::from(u64::MAX)) <= u128::from(*budget)
    }

    /// Returns the steps whose lookups may end now.
    pub(crate) fn looking_up(&self) -> Vec<usize> {
        let waits = |&step: &usize| self.steps[step] == Step::Idle && self.to_look_up[step];
        let steps = (0..self.steps.len()).filter(waits);
        steps.filter(|&step| self.may_run(step)).collect()
    }

    pub(crate) fn looked_up(&mut self, step: usize, found: bool) {
        self.to_look_up[step] = false;
        if found {
            self.steps[step] = Step::Ended(StepStatus::CacheHit);
        }
    }

    pub(crate) fn attempt_ended(&mut self, step: usize, end: AttemptEnd, now: Duration) -> Answer {
        let may_repeat = self.memory.is_some() && self.is_beside[step] && self.pool_of[step] == 0;
        let end = match end {
            AttemptEnd::MemoryWasShort(_) if may_repeat && self.alone[step] == Alone::No && self.stop.is_none() => {
                self.steps[step] = Step::Idle;
                self.alone[step] = Alone::Now;
                return Answer::RetryAlone;
            }
            AttemptEnd::MemoryWasShort(137) => AttemptEnd::OutOfMemory,
            AttemptEnd::MemoryWasShort(code) => AttemptEnd::Exited(code),
            end => end,
        };
        let repeated = usize::from(self.alone[step] != Alone::No);
        if repeated > 0 {
            self.alone[step] = Alone::Done;
        }
        let status = match end {
            AttemptEnd::Infrastructure { retryable: true } if self.stop.is_none() => {
                if let Some(&backoff) =
                    self.backoffs.get(self.attempts[step] - 1 - self.command_failures[step] - repeated)
                {
                    self.steps[step] = Step::BackingOff { due: now + backoff };
                    return Answer::Retry(backoff);
                }
                StepStatus::Infrastructure
            }
            AttemptEnd::Infrastructure { .. } => StepStatus::Infrastructure,
            AttemptEnd::Exited(0) if self.command_failures[step] > 0 => StepStatus::Flaky,
            AttemptEnd::Exited(0) => StepStatus::Passed,
            AttemptEnd::Exited(_)
                if self.stop.is_none() && self.command_failures[step] < usize::from(self.outcomes[step].retries) =>
            {
                self.command_failures[step] += 1;
                self.steps[step] = Step::Idle;
                return Answer::Retry(Duration::ZERO);
            }
            AttemptEnd::Exited(code) if self.is_allowed(step, code) => StepStatus::FailedAllowed,
            AttemptEnd::TimedOut if self.is_allowed(step, 124) => StepStatus::FailedAllowed,
            AttemptEnd::OutOfMemory if self.is_allowed(step, 137) => StepStatus::FailedAllowed,
            AttemptEnd::Exited(_) => StepStatus::Failed,
            AttemptEnd::TimedOut => StepStatus::TimedOut,
            AttemptEnd::Canceled => StepStatus::Canceled,
            AttemptEnd::OutOfMemory | AttemptEnd::MemoryWasShort(_) => StepStatus::OutOfMemory,
        };
        self.steps[step] = Step::Ended(status);
        let is_fine = matches!(status, StepStatus::Passed | StepStatus::Flaky | StepStatus::FailedAllowed);
        if !is_fine && !self.keep_going {
            self.stop(StopReason::Failed);
        }
        while let Some(doomed) = (0..self.steps.len()).find(|&step| {
            self.steps[step] == Step::Idle
                && self.needed(step).any(|above| self.ended(above) && !self.releases(above, step))
        }) {
            self.steps[doomed] = Step::Ended(StepStatus::Skipped);
        }
        Answer::Ended(status)
    }

    pub(crate) fn stop(&mut self, reason: StopReason) {
        if self.stop.is_some() || self.is_done() {
            return;
        }
        self.stop = Some(reason);
        for step in 0..self.steps.len() {
            if matches!(self.steps[step], Step::Idle | Step::BackingOff { .. }) {
                self.steps[step] = Step::Ended(match (reason, self.attempts[step]) {
                    (StopReason::Canceled, _) => StepStatus::Canceled,
                    (StopReason::Failed | StopReason::TimedOut, 0) => StepStatus::Skipped,
                    (StopReason::Failed, _) => StepStatus::Canceled,
                    (StopReason::TimedOut, _) => StepStatus::TimedOut,
                });
            }
        }
    }

    pub(crate) fn retry_due(&mut self, now: Duration) {
        for step in &mut self.steps {
            if matches!(step, Step::BackingOff { due } if *due <= now) {
                *step = Step::Idle;
            }
        }
    }

    pub(crate) fn verdict(&self) -> BuildStatus {
        let any = |wanted: &[StepStatus]| self.steps.iter().any(|s| matches!(s, Step::Ended(s) if wanted.contains(s)));
        let excused = self.excused();
        let is_fine = |step: usize| self.passed(step) || self.failed_allowed(step) || excused[step];
        if (0..self.steps.len()).all(is_fine) {
            BuildStatus::Passed
        } else if self.stop == Some(StopReason::Canceled) {
            BuildStatus::Canceled
        } else if self.stop == Some(StopReason::TimedOut) {
            BuildStatus::TimedOut
        } else if any(&[StepStatus::Failed, StepStatus::TimedOut, StepStatus::OutOfMemory]) {
            BuildStatus::Failed
        } else {
            BuildStatus::Infrastructure
        }
    }

    pub(crate) fn running(&self, pool: usize) -> usize {
        (0..self.steps.len()).filter(|&step| self.steps[step] == Step::Running && self.pool_of[step] == pool).count()
    }

    pub(crate) fn is_done(&self) -> bool {
        (0..self.steps.len()).all(|step| self.ended(step))
    }

    fn ended(&self, step: usize) -> bool {
        matches!(self.steps[step], Step::Ended(_))
    }

    fn passed(&self, step: usize) -> bool {
        matches!(self.steps[step], Step::Ended(StepStatus::Passed | StepStatus::Flaky | StepStatus::CacheHit))
    }

    fn failed_allowed(&self, step: usize) -> bool {
        self.steps[step] == Step::Ended(StepStatus::FailedAllowed)
    }

    /// Returns whether an end without a pass is allowed, if it is reported with this exit code.
    fn is_allowed(&self, step: usize, code: i32) -> bool {
        let is_listed = match &self.outcomes[step].soft_fail {
            SoftFail::No => false,
            SoftFail::Any => true,
            SoftFail::Codes(codes) => codes.iter().any(|listed| i32::from(*listed) == code),
        };
        is_listed && self.stop.is_none()
    }

    /// Returns whether `parent` has ended in such a way that `child` may run.
    pub(crate) fn releases(&self, parent: usize, child: usize) -> bool {
        self.passed(parent) || self.failed_allowed(parent) && !self.has_files_of(child, parent)
    }

    fn has_files_of(&self, step: usize, other: usize) -> bool {
        self.lineage[step] == Some(other) || self.takes[step].contains(&other)
    }

    /// Returns the steps that `step` waits for, and those whose files it gets.
    fn needed(&self, step: usize) -> impl Iterator<Item = usize> {
        self.parents[step].iter().chain(&self.takes[step]).copied()
    }

    fn may_run(&self, step: usize) -> bool {
        self.parents[step].iter().all(|&parent| self.releases(parent, step))
    }

    /// Returns which steps are skipped only because of a failure that is allowed: directly or indirectly,
    /// they wait for a step that would have built in the failed one, or got files of it.
    fn excused(&self) -> Vec<bool> {
        let mut excused = vec![false; self.steps.len()];
        while let Some(step) = (0..self.steps.len()).find(|&step| {
            let because = |above| excused[above] || self.failed_allowed(above) && self.has_files_of(step, above);
            !excused[step] && self.steps[step] == Step::Ended(StepStatus::Skipped) && self.needed(step).any(because)
        }) {
            excused[step] = true;
        }
        excused
    }
}

/// Returns the longest remaining path by definition, in microseconds: relaxes every edge until nothing grows.
/// A step without a duration counts as an average one.
pub(crate) fn urgency(edges: &[(usize, usize, bool)], last_run_ms: &[Option<u64>]) -> Vec<u64> {
    let known: Vec<u64> = last_run_ms.iter().flatten().map(|ms| (ms * 1_000).max(1)).collect();
    let average = if known.is_empty() { 1 } else { known.iter().sum::<u64>() / known.len() as u64 };
    let weights: Vec<u64> = last_run_ms.iter().map(|ms| ms.map_or(average, |ms| ms * 1_000).max(1)).collect();
    let mut paths = weights.clone();
    let mut has_grown = true;
    while has_grown {
        has_grown = false;
        for &(from, to, _) in edges {
            let path = weights[from] + paths[to];
            has_grown |= path > paths[from];
            paths[from] = paths[from].max(path);
        }
    }
    paths
}
