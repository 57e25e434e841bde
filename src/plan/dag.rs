//! The indexed graph.

use serde::{Deserialize, Serialize};

use crate::ir::EdgeKind;

/// A step's position in its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StepIndex(pub u32);

impl StepIndex {
    /// As an index into per-step vectors.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// One end of an edge: the step at the other end, and the edge's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The step at the other end.
    pub step: StepIndex,
    /// What the edge means.
    pub kind: EdgeKind,
}

/// A directed acyclic graph of steps, as adjacency in two flat arrays each way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dag {
    // STUB: CSR arrays
}

impl Dag {
    /// Number of steps.
    #[must_use]
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The steps that `step` waits for, in the order of the IR.
    #[must_use]
    pub fn parents(&self, _step: StepIndex) -> &[Link] {
        todo!()
    }

    /// The steps that wait for `step`, in the order of the IR.
    #[must_use]
    pub fn children(&self, _step: StepIndex) -> &[Link] {
        todo!()
    }

    /// Every step after all its parents; ties by index.
    #[must_use]
    pub fn order(&self) -> &[StepIndex] {
        todo!()
    }

    /// The parent whose snapshot `step` boots from.
    #[must_use]
    pub fn lineage_parent(&self, _step: StepIndex) -> Option<StepIndex> {
        todo!()
    }

    /// Which chain of `builds_in` steps `step` is in, numbered from 0 in the order of the chains' first steps. A chain
    /// goes on through the first `builds_in` child; further children start chains of their own.
    #[must_use]
    pub fn chain(&self, _step: StepIndex) -> usize {
        todo!()
    }

    /// Number of chains.
    #[must_use]
    pub fn chain_count(&self) -> usize {
        todo!()
    }
}
