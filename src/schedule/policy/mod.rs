//! The policy: which step starts next, which steps a failure skips, which steps are retried, when to stop,
//! and the build's status.
//!
//! Input: the graph, the pool and the priority of each step, and then one call per occurrence. Output: the
//! answers, and the steps that ended without an attempt of their own. The module knows no runtime, no clock
//! (times are given as the time since the start of the run), no runners, and no events.
//!
//! ```text
//!            parents passed          start_next           attempt_ended
//!  Waiting ------------------> Ready -----------> Running -------------> Ended
//!     |  |                      | ^ ^ ^             |  |                  ^ ^
//!     |  |                      | | | |  command,   |  | infrastructure,  | |
//!     |  |                      | | | |  retries    |  v retries left     | |
//!     |  |                      | | | +- left ------+ BackingOff          | |
//!     |  |                      | | +-- retry_due -----+ |               | |
//!     |  |  of a cached step    | | not found            |               | |
//!     |  +------------------> LookingUp --------------------- found ------+ |
//!     |                         | |                      |                  |
//!     +-------------------------+-+----------------------+------------------+
//!                        a parent did not pass, or stop
//! ```
//!
//! A lookup does not occupy a slot. A step whose failure is allowed (`SoftFail`) counts as passed for the
//! steps that only depend on it. Those that build in it, or get files of it, have nothing to start from, and
//! are skipped; such a skip is excused, so it does not fail the build.

mod memory;
mod retry;
mod rules;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    mem,
    num::NonZeroUsize,
    time::Duration,
};

use self::memory::MemoryShare;
pub use self::rules::{Answer, AttemptEnd, MemoryRules, Placement, Rules, Start, StopReason};
use super::ranks::{RankSet, Ranks};
use crate::{
    ir::EdgeKind,
    model::{BuildStatus, OutcomeRules, StepIndex, StepStatus},
    plan::Dag,
};

/// The exit codes by which a list of allowed codes refers to ends without one, as `step_end` reports them.
const TIMED_OUT: i32 = 124;
pub(super) const OUT_OF_MEMORY: i32 = 137;

/// The state of a step. The diagram is at the top of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Some parents have not passed yet.
    Waiting,
    /// The parents have passed, and a cache lookup is due or in progress.
    LookingUp,
    /// In its pool's queue.
    Ready,
    /// In one of its pool's slots.
    Running,
    /// An attempt failed, and the step waits for its next attempt without a slot.
    BackingOff,
    /// The final state.
    Ended(StepStatus),
}

/// The data of one step that its own start and end need. The states are apart, because each end of a step
/// also looks at the states of all its children.
#[derive(Debug)]
struct Step {
    attempts: u32,
    pool: u32,
    cached: bool,
    /// The number of attempts whose command failed and that were followed by another.
    command_failures: u8,
}

#[derive(Debug)]
struct Pool {
    free: usize,
    ready: RankSet,
}

/// Makes the decisions for one build. Every operation takes constant time, amortised over the build's steps
/// and edges, except that retries are sorted by their time.
#[derive(Debug)]
pub struct Policy<'dag> {
    dag: &'dag Dag,
    states: Vec<State>,
    /// The number of parents of each step that have not passed yet.
    unmet: Vec<u32>,
    steps: Vec<Step>,
    ranks: Ranks,
    keep_going: bool,
    retries: u32,
    backoff: Duration,
    outcomes: BTreeMap<StepIndex, OutcomeRules>,
    /// The steps that need the files of a step without building in it.
    takers: BTreeMap<StepIndex, Vec<StepIndex>>,
    /// The memory that the steps of pool 0 share.
    memory: Option<MemoryShare>,
    pools: Vec<Pool>,
    lookups: VecDeque<StepIndex>,
    backing_off: BinaryHeap<Reverse<(Duration, StepIndex)>>,
    stop: Option<StopReason>,
    unended: usize,
    /// The number of steps that have neither passed nor are excused.
    unpassed: usize,
    command_failed: bool,
    bystanders: VecDeque<(StepIndex, StepStatus)>,
}

impl<'dag> Policy<'dag> {
    /// Returns the policy of a build that has not started. `placements` are by step.
    ///
    /// # Panics
    /// Panics if a step has no placement, or if its pool has no limit in `rules`.
    #[must_use]
    pub fn new(dag: &'dag Dag, placements: &[Placement], rules: &Rules) -> Self {
        assert_eq!(placements.len(), dag.len(), "one placement for each step");
        let ranks = Ranks::new(&placements.iter().map(|placement| placement.priority).collect::<Vec<_>>());
        let step = |&Placement { pool, cached, .. }: &Placement| {
            assert!(pool < rules.limits.len(), "a limit for each pool");
            let pool = u32::try_from(pool).expect("fewer pools than runners");
            Step { attempts: 0, pool, cached, command_failures: 0 }
        };
        let pool = |limit: &NonZeroUsize| Pool { free: limit.get(), ready: RankSet::new(dag.len()) };
        let mut policy = Self {
            dag,
            states: vec![State::Waiting; dag.len()],
            unmet: dag.steps().map(|step| dag.parents(step).len() as u32).collect(),
            steps: placements.iter().map(step).collect(),
            ranks,
            keep_going: rules.keep_going,
            retries: rules.retries,
            backoff: rules.backoff,
            outcomes: rules.outcomes.clone(),
            takers: rules.takers.clone(),
            memory: rules.memory.clone().map(MemoryShare::new),
            pools: rules.limits.iter().map(pool).collect(),
            lookups: VecDeque::new(),
            backing_off: BinaryHeap::new(),
            stop: None,
            unended: dag.len(),
            unpassed: dag.len(),
            command_failed: false,
            bystanders: VecDeque::new(),
        };
        for &step in dag.order() {
            if policy.unmet[step.get()] == 0 {
                policy.parents_passed(step);
            }
        }
        policy
    }

    /// Returns the next step to look up in the cache.
    pub fn look_up_next(&mut self) -> Option<StepIndex> {
        self.lookups.pop_front()
    }

    /// Handles the result of the cache lookup of `step`. Does nothing and returns false if the build's stop
    /// has ended the step meanwhile.
    pub fn looked_up(&mut self, step: StepIndex, found: bool) -> bool {
        if self.states[step.get()] != State::LookingUp {
            return false;
        }
        self.set(step, if found { State::Ended(StepStatus::CacheHit) } else { State::Ready });
        true
    }

    /// Ends a step that is looked up and not found, in a run that only runs what is found: it is skipped, and
    /// that is no failure. What waits for it is looked up, too. Does nothing and returns false if the build's
    /// stop has ended the step meanwhile.
    pub fn pass_over(&mut self, step: StepIndex) -> bool {
        if self.states[step.get()] != State::LookingUp {
            return false;
        }
        self.end_bystander(step, StepStatus::Skipped);
        self.unpassed -= 1;
        self.parent_passed(step);
        true
    }

    /// Starts the ready step with the highest priority among the pools with a free slot, and among the steps
    /// that the memory of the machine allows.
    pub fn start_next(&mut self) -> Option<Start> {
        let mut first = None;
        for (at, pool) in self.pools.iter().enumerate() {
            if pool.free == 0 {
                continue;
            }
            let rank = match &self.memory {
                Some(memory) if at == 0 => memory.first(&pool.ready, &self.ranks),
                _ => pool.ready.first(),
            };
            if let Some(rank) = rank
                && first.is_none_or(|first| rank < first)
            {
                first = Some(rank);
            }
        }
        let step = self.ranks.step(first?);
        self.set(step, State::Running);
        Some(Start { step, attempt: self.steps[step.get()].attempts })
    }

    /// Handles the end of the running attempt of `step`, at `now`.
    pub fn attempt_ended(&mut self, step: StepIndex, end: AttemptEnd, now: Duration) -> Answer {
        debug_assert_eq!(self.states[step.get()], State::Running, "an attempt ended that was not running");
        let end = match end {
            AttemptEnd::MemoryWasShort(_) if self.retries_alone(step) => return Answer::RetryAlone,
            AttemptEnd::MemoryWasShort(OUT_OF_MEMORY) => AttemptEnd::OutOfMemory,
            AttemptEnd::MemoryWasShort(code) => AttemptEnd::Exited(code),
            end => end,
        };
        let status = match end {
            AttemptEnd::Exited(0) if self.steps[step.get()].command_failures > 0 => StepStatus::Flaky,
            AttemptEnd::Exited(0) => StepStatus::Passed,
            AttemptEnd::Exited(_) => {
                if self.retries_command(step) {
                    return Answer::Retry(Duration::ZERO);
                }
                StepStatus::Failed
            }
            AttemptEnd::TimedOut => StepStatus::TimedOut,
            AttemptEnd::Canceled => StepStatus::Canceled,
            AttemptEnd::OutOfMemory | AttemptEnd::MemoryWasShort(_) => StepStatus::OutOfMemory,
            AttemptEnd::Infrastructure { retryable } => {
                if retryable && let Some(backoff) = self.retries_infrastructure(step, now) {
                    return Answer::Retry(backoff);
                }
                StepStatus::Infrastructure
            }
        };
        let status = if self.allows(step, end) { StepStatus::FailedAllowed } else { status };
        self.set(step, State::Ended(status));
        if status == StepStatus::FailedAllowed {
            self.failure_allowed(step);
        } else if !status.is_success() {
            self.command_failed |=
                matches!(status, StepStatus::Failed | StepStatus::TimedOut | StepStatus::OutOfMemory);
            if self.keep_going {
                self.skip_below(step);
            } else {
                self.stop(StopReason::Failed);
            }
        }
        Answer::Ended(status)
    }

    /// Returns whether `step` may end like this without having passed.
    fn allows(&self, step: StepIndex, end: AttemptEnd) -> bool {
        let code = match end {
            AttemptEnd::Exited(0) | AttemptEnd::Canceled | AttemptEnd::Infrastructure { .. } => return false,
            AttemptEnd::Exited(code) => code,
            AttemptEnd::TimedOut => TIMED_OUT,
            AttemptEnd::OutOfMemory | AttemptEnd::MemoryWasShort(_) => OUT_OF_MEMORY,
        };
        self.stop.is_none() && self.outcomes.get(&step).is_some_and(|rules| rules.soft_fail.allows(code))
    }

    /// Handles a failure that is allowed: what only depends on the step goes on, and what needs its
    /// filesystem is skipped, with everything below it.
    fn failure_allowed(&mut self, step: StepIndex) {
        self.unpassed -= 1;
        for taker in self.takers.remove(&step).unwrap_or_default() {
            self.excuse(taker);
        }
        for link in self.dag.children(step) {
            if link.kind == EdgeKind::DependsOn {
                self.parent_done(link.step);
            } else {
                self.excuse(link.step);
            }
        }
    }

    /// Skips a step that waits for files that do not exist, with everything below it.
    fn excuse(&mut self, step: StepIndex) {
        if self.states[step.get()] == State::Waiting {
            self.end_bystander(step, StepStatus::Skipped);
            self.unpassed -= 1 + self.skip_below(step);
        }
    }

    /// Stops the build: nothing starts any more, and steps that are not running end. The caller must
    /// interrupt running attempts. Further calls have no effect; the first reason is kept.
    pub fn stop(&mut self, reason: StopReason) {
        if self.stop.is_some() || self.unended == 0 {
            return;
        }
        self.stop = Some(reason);
        self.backing_off.clear();
        self.lookups.clear();
        if let Some(memory) = &mut self.memory {
            memory.stop();
        }
        for pool in &mut self.pools {
            pool.ready.clear();
        }
        for &step in self.dag.order() {
            match (self.states[step.get()], self.steps[step.get()].attempts) {
                (State::Running | State::Ended(_), _) => {}
                (_, 0) => self.end_bystander(step, reason.unstarted()),
                _ => self.end_bystander(step, reason.interrupted()),
            }
        }
    }

    /// Returns the reason why the build stops early, if it does.
    #[must_use]
    pub fn stopping(&self) -> Option<StopReason> {
        self.stop
    }

    /// Returns the next step that ended without the end of an attempt of its own, in the order in which they
    /// ended.
    pub fn next_bystander(&mut self) -> Option<(StepIndex, StepStatus)> {
        self.bystanders.pop_front()
    }

    /// Returns whether every step has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.unended == 0
    }

    /// Returns the status of `step`, if it has ended.
    #[must_use]
    pub fn status(&self, step: StepIndex) -> Option<StepStatus> {
        match self.states[step.get()] {
            State::Ended(status) => Some(status),
            _ => None,
        }
    }

    /// Returns the number of started attempts of `step`.
    #[must_use]
    pub fn attempts(&self, step: StepIndex) -> u32 {
        self.steps[step.get()].attempts
    }

    /// Ends the policy: the status and the number of started attempts of each step remain.
    pub(super) fn into_ends(self) -> impl Iterator<Item = (Option<StepStatus>, u32)> + use<> {
        self.states.into_iter().zip(self.steps).map(|(state, step)| match state {
            State::Ended(status) => (Some(status), step.attempts),
            _ => (None, step.attempts),
        })
    }

    /// Returns the build's status, once every step has ended. If all steps passed or are excused, the build
    /// passed, even if it was stopped late.
    #[must_use]
    pub fn verdict(&self) -> BuildStatus {
        match self.stop {
            _ if self.unpassed == 0 => BuildStatus::Passed,
            Some(StopReason::Canceled) => BuildStatus::Canceled,
            Some(StopReason::TimedOut) => BuildStatus::TimedOut,
            Some(StopReason::Failed) | None if self.command_failed => BuildStatus::Failed,
            Some(StopReason::Failed) | None => BuildStatus::Infrastructure,
        }
    }

    /// Skips all steps that wait for `step`, directly or indirectly. Returns their number.
    fn skip_below(&mut self, step: StepIndex) -> usize {
        let (mut above, mut skipped) = (vec![step], 0);
        while let Some(step) = above.pop() {
            for link in self.dag.children(step) {
                if self.states[link.step.get()] == State::Waiting {
                    self.end_bystander(link.step, StepStatus::Skipped);
                    above.push(link.step);
                    skipped += 1;
                }
            }
        }
        skipped
    }

    fn end_bystander(&mut self, step: StepIndex, status: StepStatus) {
        self.set(step, State::Ended(status));
        self.bystanders.push_back((step, status));
    }

    /// Changes a step's state. All state changes happen here.
    fn set(&mut self, step: StepIndex, next: State) {
        let previous = mem::replace(&mut self.states[step.get()], next);
        debug_assert!(
            matches!(
                (previous, next),
                (State::Waiting | State::LookingUp | State::Running | State::BackingOff, State::Ready)
                    | (State::Waiting, State::LookingUp)
                    | (State::Ready, State::Running)
                    | (State::Running, State::BackingOff)
                    | (
                        State::Waiting | State::LookingUp | State::Ready | State::Running | State::BackingOff,
                        State::Ended(_)
                    )
            ),
            "{previous:?} -> {next:?} is not in the diagram"
        );
        let Step { attempts, pool, .. } = &mut self.steps[step.get()];
        if let Some(memory) = self.memory.as_mut().filter(|_| *pool == 0) {
            if previous == State::Running {
                memory.ended(step);
            }
            if next == State::Running {
                memory.started(step);
            }
        }
        let pool = &mut self.pools[*pool as usize];
        if previous == State::Running {
            pool.free += 1;
        }
        match next {
            State::Waiting | State::BackingOff => {}
            State::LookingUp => self.lookups.push_back(step),
            State::Ready => pool.ready.insert(self.ranks.rank(step)),
            State::Running => {
                pool.ready.remove(self.ranks.rank(step));
                pool.free -= 1;
                *attempts += 1;
            }
            State::Ended(status) => {
                self.unended -= 1;
                if status.is_success() {
                    self.unpassed -= 1;
                    self.parent_passed(step);
                }
            }
        }
    }

    fn parent_passed(&mut self, parent: StepIndex) {
        for link in self.dag.children(parent) {
            self.parent_done(link.step);
        }
    }

    /// Counts one more parent of `step` that it does not wait for any more.
    fn parent_done(&mut self, step: StepIndex) {
        let unmet = &mut self.unmet[step.get()];
        *unmet -= 1;
        // A step may have ended before its parents, because another parent failed or the build stopped.
        if *unmet == 0 && self.states[step.get()] == State::Waiting {
            self.parents_passed(step);
        }
    }

    fn parents_passed(&mut self, step: StepIndex) {
        debug_assert_eq!(self.unmet[step.get()], 0, "a parent has not passed");
        let cached = self.steps[step.get()].cached;
        self.set(step, if cached { State::LookingUp } else { State::Ready });
    }
}
