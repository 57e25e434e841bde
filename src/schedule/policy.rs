//! The policy: what starts next, what a failure skips, what is tried again, when to stop, and the verdict.
//!
//! In: the graph, where each step runs and how urgent it is, and then, one call each, what happened. Out: answers, and the
//! steps that ended without an attempt of their own. Knows no runtime, no clock (times are given as the time since the
//! start of the run), no runners, and nothing of events.
//!
//! ```text
//!            parents passed          start_next           attempt_ended
//!  Waiting ------------------> Ready -----------> Running -------------> Ended
//!     |  |                      | ^ ^                |                    ^ ^
//!     |  |                      | | |                | infrastructure,    | |
//!     |  |                      | | |  retry_due     v retries left       | |
//!     |  |                      | | +----------- BackingOff               | |
//!     |  |                      | |                  |                    | |
//!     |  |  of a cached step    | | not found        |                    | |
//!     |  +------------------> LookingUp --------------------- found ------+ |
//!     |                         | |                  |                      |
//!     +-------------------------+-+------------------+----------------------+
//!                        a parent did not pass, or stop
//! ```
//!
//! A step that is looked up takes no slot.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    mem,
    num::NonZeroUsize,
    time::Duration,
};

use crate::{
    outcome::{BuildStatus, StepStatus},
    plan::{Dag, StepIndex},
};

/// The rules of one build.
#[derive(Debug, Clone)]
pub struct Rules {
    /// How many steps may run at once, by pool.
    pub limits: Vec<NonZeroUsize>,
    /// After a failure go on with what does not need the failed step.
    pub keep_going: bool,
    /// How often a step is tried again after infrastructure errors.
    pub retries: u32,
    /// How long the first retry waits; each further one waits twice as long as the one before.
    pub backoff: Duration,
}

/// Where a step runs, and how urgent it is.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// The pool that counts it, as an index into [`Rules::limits`].
    pub pool: usize,
    /// Higher goes first; ties go by index.
    pub priority: u64,
    /// Whether the cache is asked before the first attempt.
    pub cached: bool,
}

/// An attempt to start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The step.
    pub step: StepIndex,
    /// Which attempt of it, from 1.
    pub attempt: u32,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptEnd {
    /// The command ended by itself with this code.
    Exited(i32),
    /// Its time, or the build's, was up.
    TimedOut,
    /// It was told to end because the build stops.
    Canceled,
    /// It went over its memory limit.
    OutOfMemory,
    /// Not the command's fault.
    Infrastructure {
        /// Whether another attempt could end otherwise.
        retryable: bool,
    },
}

/// What follows for the step whose attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The step ended, too.
    Ended(StepStatus),
    /// Another attempt starts after this long.
    Retry(Duration),
}

/// Why a build stops before its steps are through. The first reason stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Something failed, and the build does not keep going.
    Failed,
    /// Somebody cancelled the build.
    Canceled,
    /// The build's time is up.
    TimedOut,
}

impl Stop {
    /// How a step ends that was never started.
    const fn unstarted(self) -> StepStatus {
        match self {
            Self::Canceled => StepStatus::Canceled,
            Self::Failed | Self::TimedOut => StepStatus::Skipped,
        }
    }

    /// How a step ends that was between two attempts.
    const fn interrupted(self) -> StepStatus {
        match self {
            Self::TimedOut => StepStatus::TimedOut,
            Self::Failed | Self::Canceled => StepStatus::Canceled,
        }
    }
}

/// Where a step is in its life. The diagram is at the top of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Parents have yet to pass.
    Waiting { unmet: u32 },
    /// Parents have passed, and the cache is asked, or is to be.
    LookingUp,
    /// In its pool's queue.
    Ready,
    /// In one of its pool's slots.
    Running,
    /// An attempt failed and the next has its time; no slot is taken.
    BackingOff,
    /// For good.
    Ended(StepStatus),
}

/// All of one step, so that one cache line has it.
#[derive(Debug)]
struct Step {
    state: State,
    attempts: u32,
    placement: Placement,
}

#[derive(Debug)]
struct Pool {
    free: usize,
    ready: BinaryHeap<(u64, Reverse<StepIndex>)>,
}

/// Decides for one build. Every operation costs O(log n), amortised over the build's steps and edges.
#[derive(Debug)]
pub struct Policy<'dag> {
    dag: &'dag Dag,
    steps: Vec<Step>,
    keep_going: bool,
    retries: u32,
    backoff: Duration,
    pools: Vec<Pool>,
    lookups: VecDeque<StepIndex>,
    backing_off: BinaryHeap<Reverse<(Duration, StepIndex)>>,
    stop: Option<Stop>,
    unended: usize,
    unpassed: usize,
    command_failed: bool,
    bystanders: Vec<(StepIndex, StepStatus)>,
}

impl<'dag> Policy<'dag> {
    /// A build that has not begun. `placements` are by step.
    ///
    /// # Panics
    /// Where a step has no placement, or its pool no limit in `rules`.
    #[must_use]
    pub fn new(dag: &'dag Dag, placements: Vec<Placement>, rules: &Rules) -> Self {
        assert_eq!(placements.len(), dag.len(), "one placement for each step");
        let steps =
            placements.into_iter().map(|placement| Step { state: State::Waiting { unmet: 0 }, attempts: 0, placement });
        let mut policy = Self {
            dag,
            steps: steps.collect(),
            keep_going: rules.keep_going,
            retries: rules.retries,
            backoff: rules.backoff,
            pools: rules.limits.iter().map(|limit| Pool { free: limit.get(), ready: BinaryHeap::new() }).collect(),
            lookups: VecDeque::new(),
            backing_off: BinaryHeap::new(),
            stop: None,
            unended: dag.len(),
            unpassed: dag.len(),
            command_failed: false,
            bystanders: Vec::new(),
        };
        for &step in dag.order() {
            match u32::try_from(dag.parents(step).len()).unwrap_or(u32::MAX) {
                0 => policy.parents_passed(step),
                unmet => policy.steps[step.get()].state = State::Waiting { unmet },
            }
        }
        policy
    }

    /// The next step that the cache is to be asked for.
    pub fn look_up_next(&mut self) -> Option<StepIndex> {
        self.lookups.pop_front()
    }

    /// Takes note of whether the cache has `step`. False, and nothing, where the build's stop has ended it meanwhile.
    pub fn looked_up(&mut self, step: StepIndex, found: bool) -> bool {
        if self.steps[step.get()].state != State::LookingUp {
            return false;
        }
        self.set(step, if found { State::Ended(StepStatus::CacheHit) } else { State::Ready });
        true
    }

    /// Starts the most urgent of the ready steps whose pool has a free slot.
    pub fn start_next(&mut self) -> Option<Start> {
        let with_slots = self.pools.iter().enumerate().filter(|(_, pool)| pool.free > 0);
        let (_, pool) = with_slots.filter_map(|(at, pool)| Some((pool.ready.peek()?, at))).max()?;
        let (_, Reverse(step)) = self.pools[pool].ready.pop()?;
        self.set(step, State::Running);
        Some(Start { step, attempt: self.steps[step.get()].attempts })
    }

    /// Takes note that the running attempt of `step` ended, at `now`.
    pub fn attempt_ended(&mut self, step: StepIndex, end: AttemptEnd, now: Duration) -> Answer {
        debug_assert_eq!(self.steps[step.get()].state, State::Running, "an attempt ended that was not running");
        let status = match end {
            AttemptEnd::Exited(0) => StepStatus::Passed,
            AttemptEnd::Exited(_) => StepStatus::Failed,
            AttemptEnd::TimedOut => StepStatus::TimedOut,
            AttemptEnd::Canceled => StepStatus::Canceled,
            AttemptEnd::OutOfMemory => StepStatus::OutOfMemory,
            AttemptEnd::Infrastructure { retryable } => {
                let retries_done = self.steps[step.get()].attempts - 1;
                if retryable && retries_done < self.retries && self.stop.is_none() {
                    let backoff = self.backoff.saturating_mul(1_u32.checked_shl(retries_done).unwrap_or(u32::MAX));
                    self.backing_off.push(Reverse((now.saturating_add(backoff), step)));
                    self.set(step, State::BackingOff);
                    return Answer::Retry(backoff);
                }
                StepStatus::Infrastructure
            }
        };
        self.set(step, State::Ended(status));
        if !status.is_success() {
            self.command_failed |=
                matches!(status, StepStatus::Failed | StepStatus::TimedOut | StepStatus::OutOfMemory);
            if self.keep_going {
                self.skip_below(step);
            } else {
                self.stop(Stop::Failed);
            }
        }
        Answer::Ended(status)
    }

    /// When the next retry has its time.
    #[must_use]
    pub fn next_retry(&self) -> Option<Duration> {
        self.backing_off.peek().map(|Reverse((due, _))| *due)
    }

    /// Makes the retries ready that have their time at `now`.
    pub fn retry_due(&mut self, now: Duration) {
        while let Some(&Reverse((due, step))) = self.backing_off.peek()
            && due <= now
        {
            self.backing_off.pop();
            self.set(step, State::Ready);
        }
    }

    /// Stops the build: nothing starts any more, and what isn't running ends. Running attempts are the caller's to
    /// interrupt. Harmless when repeated; the first reason stays.
    pub fn stop(&mut self, reason: Stop) {
        if self.stop.is_some() || self.unended == 0 {
            return;
        }
        self.stop = Some(reason);
        self.backing_off.clear();
        self.lookups.clear();
        for pool in &mut self.pools {
            pool.ready.clear();
        }
        for &step in self.dag.order() {
            match self.steps[step.get()] {
                Step { state: State::Running | State::Ended(_), .. } => {}
                Step { attempts: 0, .. } => self.end_bystander(step, reason.unstarted()),
                Step { .. } => self.end_bystander(step, reason.interrupted()),
            }
        }
    }

    /// Why the build stops early, if it does.
    #[must_use]
    pub fn stopping(&self) -> Option<Stop> {
        self.stop
    }

    /// The steps that ended since the last call without an attempt of their own having ended, in the order in which
    /// they did.
    pub fn take_bystanders(&mut self) -> Vec<(StepIndex, StepStatus)> {
        mem::take(&mut self.bystanders)
    }

    /// Whether every step has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.unended == 0
    }

    /// How `step` ended, if it has.
    #[must_use]
    pub fn status(&self, step: StepIndex) -> Option<StepStatus> {
        match self.steps[step.get()].state {
            State::Ended(status) => Some(status),
            _ => None,
        }
    }

    /// How many attempts of `step` were started.
    #[must_use]
    pub fn attempts(&self, step: StepIndex) -> u32 {
        self.steps[step.get()].attempts
    }

    /// The verdict, once every step has ended. Where all passed, the build did, however late it was told to stop.
    #[must_use]
    pub fn verdict(&self) -> BuildStatus {
        match self.stop {
            _ if self.unpassed == 0 => BuildStatus::Passed,
            Some(Stop::Canceled) => BuildStatus::Canceled,
            Some(Stop::TimedOut) => BuildStatus::TimedOut,
            Some(Stop::Failed) | None if self.command_failed => BuildStatus::Failed,
            Some(Stop::Failed) | None => BuildStatus::Infrastructure,
        }
    }

    /// Skips whatever waits for `step`, directly or not.
    fn skip_below(&mut self, step: StepIndex) {
        let mut above = vec![step];
        while let Some(step) = above.pop() {
            for link in self.dag.children(step) {
                if let State::Waiting { .. } = self.steps[link.step.get()].state {
                    self.end_bystander(link.step, StepStatus::Skipped);
                    above.push(link.step);
                }
            }
        }
    }

    fn end_bystander(&mut self, step: StepIndex, status: StepStatus) {
        self.set(step, State::Ended(status));
        self.bystanders.push((step, status));
    }

    /// The one place where a step changes its state.
    fn set(&mut self, step: StepIndex, next: State) {
        let Step { state, attempts, placement } = &mut self.steps[step.get()];
        let previous = mem::replace(state, next);
        let pool = &mut self.pools[placement.pool];
        debug_assert!(
            matches!(
                (previous, next),
                (State::Waiting { unmet: 0 } | State::LookingUp | State::BackingOff, State::Ready)
                    | (State::Waiting { unmet: 0 }, State::LookingUp)
                    | (State::Ready, State::Running)
                    | (State::Running, State::BackingOff)
                    | (
                        State::Waiting { .. } | State::LookingUp | State::Ready | State::Running | State::BackingOff,
                        State::Ended(_)
                    )
            ),
            "{previous:?} -> {next:?} is not in the diagram"
        );
        if previous == State::Running {
            pool.free += 1;
        }
        match next {
            State::Waiting { .. } | State::BackingOff => {}
            State::LookingUp => self.lookups.push_back(step),
            State::Ready => pool.ready.push((placement.priority, Reverse(step))),
            State::Running => {
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
            if let State::Waiting { unmet } = &mut self.steps[link.step.get()].state {
                *unmet -= 1;
                if *unmet == 0 {
                    self.parents_passed(link.step);
                }
            }
        }
    }

    fn parents_passed(&mut self, step: StepIndex) {
        let cached = self.steps[step.get()].placement.cached;
        self.set(step, if cached { State::LookingUp } else { State::Ready });
    }
}
