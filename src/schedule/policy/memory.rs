//! The memory that steps on one machine share: which of them may start, and which runs alone.
//!
//! Input: the expected peaks, and the starts and ends of steps. Output: the first ready step that may start.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::ranks::{RankSet, Ranks},
    MemoryRules,
};
use crate::model::StepIndex;

/// The memory of a machine, and the steps that share it.
#[derive(Debug)]
pub(super) struct MemoryShare {
    budget: u64,
    peaks: BTreeMap<StepIndex, u64>,
    /// The running steps, and whether another step has run beside each.
    running: BTreeMap<StepIndex, bool>,
    /// The sum of the expected peaks of the running steps.
    used: u64,
    /// The steps that wait to run alone, or do.
    alone: BTreeSet<StepIndex>,
    /// The steps that were repeated alone.
    repeated: BTreeSet<StepIndex>,
}

impl MemoryShare {
    pub(super) fn new(MemoryRules { budget, peaks }: MemoryRules) -> Self {
        Self { budget, peaks, running: BTreeMap::new(), used: 0, alone: BTreeSet::new(), repeated: BTreeSet::new() }
    }

    /// Returns the rank of the first of the steps that are ready which may start. Takes constant time if it
    /// is the first step, and otherwise looks at the steps before it.
    pub(super) fn first(&self, ready: &RankSet, ranks: &Ranks) -> Option<u32> {
        if !self.alone.is_empty() {
            if !self.running.is_empty() {
                return None;
            }
            return self.alone.iter().map(|step| ranks.rank(*step)).min();
        }
        let mut candidate = ready.first();
        if self.running.is_empty() {
            return candidate;
        }
        while let Some(rank) = candidate {
            if self.used.saturating_add(self.peak(ranks.step(rank))) <= self.budget {
                return Some(rank);
            }
            candidate = ready.next_after(rank);
        }
        None
    }

    /// Notes the start of a step.
    pub(super) fn started(&mut self, step: StepIndex) {
        let is_beside = !self.running.is_empty();
        self.running.values_mut().for_each(|has_others| *has_others = true);
        self.running.insert(step, is_beside);
        self.used = self.used.saturating_add(self.peak(step));
    }

    /// Notes the end of an attempt.
    pub(super) fn ended(&mut self, step: StepIndex) {
        self.running.remove(&step);
        // Summed again, because a sum that has reached its limit cannot be taken apart.
        self.used = self.running.keys().fold(0, |sum, step| sum.saturating_add(self.peak(*step)));
        self.alone.remove(&step);
    }

    /// Returns whether a running step may be repeated alone: if another step has run beside it, and if it has
    /// not been repeated yet.
    pub(super) fn may_repeat(&self, step: StepIndex) -> bool {
        self.running.get(&step) == Some(&true) && !self.repeated.contains(&step)
    }

    /// Lets a step run alone that is ready again.
    pub(super) fn repeat_alone(&mut self, step: StepIndex) {
        self.repeated.insert(step);
        self.alone.insert(step);
    }

    /// Returns whether a step was repeated, or will be, with nothing beside it.
    pub(super) fn has_repeated(&self, step: StepIndex) -> bool {
        self.repeated.contains(&step)
    }

    /// Lets no step wait to run alone any longer.
    pub(super) fn stop(&mut self) {
        self.alone.clear();
    }

    fn peak(&self, step: StepIndex) -> u64 {
        self.peaks.get(&step).copied().unwrap_or(0)
    }
}
