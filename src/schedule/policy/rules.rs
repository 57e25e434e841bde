//! What a policy is given and what it answers.

use std::{collections::BTreeMap, num::NonZeroUsize, time::Duration};

use crate::model::{OutcomeRules, StepIndex, StepStatus};

/// The rules of one build.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The maximum number of concurrent steps, by pool.
    pub limits: Vec<NonZeroUsize>,
    /// Whether to continue after a failure with steps that do not need the failed step.
    pub keep_going: bool,
    /// The number of retries of a step after infrastructure errors.
    pub retries: u32,
    /// The delay before the first retry. Each further delay is twice the previous one.
    pub backoff: Duration,
    /// The steps whose failures are allowed or retried.
    pub outcomes: BTreeMap<StepIndex, OutcomeRules>,
    /// The steps that need the files of each step, other than by building in it.
    pub takers: BTreeMap<StepIndex, Vec<StepIndex>>,
    /// How the steps of pool 0, which run on one machine, share its memory. `None`: they do not care.
    pub memory: Option<MemoryRules>,
}

/// How steps share the memory of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryRules {
    /// The memory that steps which run at once may need together, in bytes.
    pub budget: u64,
    /// The steps whose peaks are known, in bytes. The others count as nothing.
    pub peaks: BTreeMap<StepIndex, u64>,
}

/// The pool and the priority of a step.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// The pool whose limit applies, as an index into [`Rules::limits`].
    pub pool: usize,
    /// Steps with a higher priority start first; ties are resolved by index.
    pub priority: u64,
    /// Whether the step is looked up in the cache before the first attempt.
    pub cached: bool,
}

/// An attempt to start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The step.
    pub step: StepIndex,
    /// The number of the attempt, from 1.
    pub attempt: u32,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptEnd {
    /// The command ended by itself with this code.
    Exited(i32),
    /// Its time limit, or the build's, was reached.
    TimedOut,
    /// It was interrupted because the build stops.
    Canceled,
    /// It exceeded its memory limit.
    OutOfMemory,
    /// The command failed with this code while the machine had no memory left.
    MemoryWasShort(i32),
    /// It failed for a reason other than the command.
    Infrastructure {
        /// Whether another attempt could succeed.
        retryable: bool,
    },
}

/// The consequence for the step whose attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The step ended, too.
    Ended(StepStatus),
    /// Another attempt starts after this delay.
    Retry(Duration),
    /// Another attempt starts when no other step of pool 0 runs, and none starts before or beside it.
    RetryAlone,
}

/// The reason why a build stops before all steps have ended. The first reason is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A step failed, and the build does not keep going.
    Failed,
    /// The user cancelled the build.
    Canceled,
    /// The build's time limit was reached.
    TimedOut,
}

impl StopReason {
    /// Returns the status of a step that was never started.
    pub(super) const fn unstarted(self) -> StepStatus {
        match self {
            Self::Canceled => StepStatus::Canceled,
            Self::Failed | Self::TimedOut => StepStatus::Skipped,
        }
    }

    /// Returns the status of a step that was between two attempts.
    pub(super) const fn interrupted(self) -> StepStatus {
        match self {
            Self::TimedOut => StepStatus::TimedOut,
            Self::Failed | Self::Canceled => StepStatus::Canceled,
        }
    }
}
