//! What tracing the steps of pipelines took, and what it saved. What follows from that, the cache decides.

use std::{collections::BTreeMap, sync::Arc};

use super::{StoreError, index, shared::Shared};

/// What tracing one step took since it was last tried anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TracingCost {
    /// In how many runs it was traced.
    pub(crate) runs: u32,
    /// The processor time that took, in microseconds.
    pub(crate) spent_us: u64,
    /// How long the runs would have taken that were saved, in milliseconds.
    pub(crate) saved_ms: u64,
    /// How long the last run took that was traced, in milliseconds.
    pub(crate) last_ms: u64,
    /// In how many runs it has been left untraced since.
    pub(crate) left_out: u32,
}

/// The costs of a store.
#[derive(Debug)]
pub(crate) struct TracingCosts {
    shared: Arc<Shared>,
}

impl TracingCosts {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Returns the costs of the steps of a project's pipeline, by key.
    pub(crate) fn of(&self, project: &str, pipeline: &str) -> Result<BTreeMap<String, TracingCost>, StoreError> {
        let costs = self.shared.index.read(|connection| index::tracing_costs::of(connection, (project, pipeline)))?;
        Ok(costs.into_iter().collect())
    }

    /// Changes the costs of steps, one after the other, from what they are now.
    pub(crate) fn change<C>(
        &self,
        (project, pipeline): (&str, &str),
        changes: &[(Arc<str>, C)],
        apply: impl Fn(&C, TracingCost) -> TracingCost,
    ) -> Result<(), StoreError> {
        self.shared.index.write(|transaction| {
            let mut costs: BTreeMap<String, TracingCost> =
                index::tracing_costs::of(transaction, (project, pipeline))?.into_iter().collect();
            for (step, change) in changes {
                let cost = costs.entry(step.to_string()).or_default();
                *cost = apply(change, *cost);
                index::tracing_costs::put(transaction, (project, pipeline, step), cost)?;
            }
            Ok(())
        })
    }
}
