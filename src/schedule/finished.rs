//! What remains of a build that has ended: a small record of each step, from which its outcome is made.

use std::{collections::BTreeMap, num::NonZeroU64, sync::Arc, time::Duration};

use crate::{
    event::step_id,
    model::{ArtifactRef, StepIndex, StepStatus, StepUsage, TestResults},
    outcome::{BuildOutcome, StepResultSummary},
    plan::BoundPlan,
};

/// The record of one step. It is small, because there is one for each step of the plan; what few steps have
/// is in [`BuildProgress`](super::progress::BuildProgress).
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    started: Option<NonZeroU64>,
    pub(super) duration_ms: u64,
    exit_code: i32,
    /// Whether there is an exit code.
    has_exited: bool,
    /// Whether the snapshot belongs to the cache.
    pub(super) is_kept: bool,
}

impl Record {
    /// Marks the start of the first attempt.
    pub(super) fn start(&mut self, now: Duration) {
        // A clock that counts nanoseconds from 1 overflows after five centuries.
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX - 1) + 1;
        self.started = self.started.or(NonZeroU64::new(nanos));
    }

    pub(super) fn set_exit_code(&mut self, code: i32) {
        (self.exit_code, self.has_exited) = (code, true);
    }

    /// Returns the command's exit code, if it ended by itself.
    pub(super) fn exit_code(&self) -> Option<i32> {
        self.has_exited.then_some(self.exit_code)
    }

    /// Returns the time since the start of the first attempt. It is zero if there was none.
    pub(super) fn age(&self, now: Duration) -> Duration {
        self.started.map_or(Duration::ZERO, |started| now.saturating_sub(Duration::from_nanos(started.get() - 1)))
    }
}

/// What some steps have left, by step.
#[derive(Debug, Default)]
pub(super) struct Leavings {
    pub(super) artifacts: BTreeMap<StepIndex, Vec<ArtifactRef>>,
    /// The usages of the attempts that were measured.
    pub(super) usages: BTreeMap<StepIndex, StepUsage>,
    pub(super) tests: BTreeMap<StepIndex, TestResults>,
}

impl Leavings {
    /// Adds the artifacts of a step, and the results of its tests. Cold, because most steps have neither.
    #[cold]
    pub(super) fn add(&mut self, step: StepIndex, artifacts: &[ArtifactRef], tests: Option<&TestResults>) {
        if !artifacts.is_empty() {
            self.artifacts.insert(step, artifacts.to_vec());
        }
        if let Some(tests) = tests {
            self.tests.insert(step, tests.clone());
        }
    }
}

/// A build that has ended. It does not refer to the plan.
#[derive(Debug)]
pub(super) struct FinishedBuild {
    pub(super) records: Vec<Record>,
    /// The status and the number of attempts, by step.
    pub(super) ends: Vec<(Option<StepStatus>, u32)>,
    pub(super) leavings: Leavings,
    /// The outcome without its steps.
    pub(super) outcome: BuildOutcome,
}

impl FinishedBuild {
    /// Returns the outcome. The plan is dropped before its steps get their summaries, so that a large build
    /// needs no memory for both.
    pub(super) fn outcome(self, plan: BoundPlan) -> BuildOutcome {
        let Self { records, ends, leavings: Leavings { mut artifacts, usages, mut tests }, mut outcome } = self;
        let keys: Vec<_> = plan.steps.iter().map(|bound| Arc::clone(&bound.step.key)).collect();
        drop(plan);
        let run_id = outcome.build.run_id;
        let steps = keys.into_iter().zip(records).zip(ends).zip((0..).map(StepIndex));
        let summaries = steps.map(|(((key, record), (status, attempts)), step)| StepResultSummary {
            step_id: step_id(run_id, step),
            key,
            status: status.unwrap_or(StepStatus::Canceled),
            exit_code: record.exit_code(),
            duration_ms: record.duration_ms,
            attempts,
            artifacts: artifacts.remove(&step).unwrap_or_default(),
            usage: usages.get(&step).copied(),
            tests: tests.remove(&step),
        });
        outcome.steps = summaries.collect();
        outcome
    }
}
