//! The indexed graph.

pub use crate::ir::adjacency::Link;
use crate::{
    ir::{
        Edge,
        adjacency::{Adjacency, lineage},
    },
    model::StepIndex,
};

/// A directed acyclic graph of steps, as adjacency in two flat arrays in each direction. It is built in
/// linear time, and walks need no recursion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dag {
    adjacency: Adjacency,
    order: Vec<StepIndex>,
    chain_of: Vec<u32>,
    chain_count: usize,
}

impl Dag {
    /// Indexes the edges of `len` steps. Returns `None` if an edge refers to a missing step, if there is a
    /// cycle, if a step has several `builds_in` parents, or if there are more than [`u32::MAX`] edges. The
    /// edges of a [`Pipeline`](crate::ir::Pipeline) have none of these errors.
    #[must_use]
    pub fn new(len: usize, edges: &[Edge]) -> Option<Self> {
        if u32::try_from(len.max(edges.len())).is_err() || edges.iter().any(|edge| edge.0.max(edge.1) as usize >= len) {
            return None;
        }
        let adjacency = Adjacency::new(len, edges);
        if (0..len).any(|step| lineage(adjacency.parents.row(step)).nth(1).is_some()) {
            return None;
        }
        let order = adjacency.order()?;
        Some(Self::of(adjacency, order))
    }

    /// Completes a graph that is known to be acyclic, with at most one `builds_in` parent per step.
    pub(super) fn of(adjacency: Adjacency, order: Vec<StepIndex>) -> Self {
        let (chain_of, chain_count) = chains(&adjacency);
        Self { adjacency, order, chain_of, chain_count }
    }

    /// Returns the number of steps.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Returns whether there are no steps.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Returns all steps by index.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = StepIndex> + ExactSizeIterator + use<> {
        (0..self.len() as u32).map(StepIndex)
    }

    /// Returns the steps that `step` waits for, in the order of the IR.
    #[must_use]
    pub fn parents(&self, step: StepIndex) -> &[Link] {
        self.adjacency.parents.row(step.get())
    }

    /// Returns the steps that wait for `step`, in the order of the IR.
    #[must_use]
    pub fn children(&self, step: StepIndex) -> &[Link] {
        self.adjacency.children.row(step.get())
    }

    /// Returns the steps in topological order, otherwise by index: the parents of a step that come after it
    /// in the IR are moved to just before the step.
    #[must_use]
    pub fn order(&self) -> &[StepIndex] {
        &self.order
    }

    /// Returns the parent whose snapshot `step` boots from.
    #[must_use]
    pub fn lineage_parent(&self, step: StepIndex) -> Option<StepIndex> {
        lineage(self.parents(step)).next()
    }

    /// Returns the chain of `builds_in` steps that contains `step`. Chains are numbered from 0 in the order
    /// of their first steps. A chain continues through the first `builds_in` child; further children start
    /// chains of their own.
    #[must_use]
    pub fn chain(&self, step: StepIndex) -> usize {
        self.chain_of[step.get()] as usize
    }

    /// Returns the number of chains.
    #[must_use]
    pub fn chain_count(&self) -> usize {
        self.chain_count
    }
}

/// The index that no step has: there are at most [`u32::MAX`] steps.
const NO_STEP: StepIndex = StepIndex(u32::MAX);

/// Returns the chain of each step, and the number of chains.
fn chains(Adjacency { parents, children }: &Adjacency) -> (Vec<u32>, usize) {
    // Options would take twice the memory, while the text of the IR is in memory, too.
    let first_child: Vec<StepIndex> =
        (0..children.rows()).map(|step| lineage(children.row(step)).next().unwrap_or(NO_STEP)).collect();
    let mut chain_of = vec![0; parents.rows()];
    let mut count = 0;
    for step in (0..parents.rows() as u32).map(StepIndex) {
        let parent = lineage(parents.row(step.get())).next();
        if parent.is_some_and(|parent| first_child[parent.get()] == step) {
            continue;
        }
        let mut next = step;
        while next != NO_STEP {
            chain_of[next.get()] = count;
            next = first_child[next.get()];
        }
        count += 1;
    }
    (chain_of, count as usize)
}

#[cfg(test)]
mod tests {
    use EdgeKind::{BuildsIn, DependsOn};

    use super::*;
    use crate::ir::EdgeKind;

    fn dag(len: usize, edges: &[(u32, u32, EdgeKind)]) -> Option<Dag> {
        let edges: Vec<_> = edges.iter().map(|&(from, to, kind)| Edge(from, to, kind)).collect();
        Dag::new(len, &edges)
    }

    fn indices(dag: &Dag) -> Vec<u32> {
        dag.order().iter().map(|step| step.0).collect()
    }

    fn chains(dag: &Dag) -> Vec<usize> {
        dag.steps().map(|step| dag.chain(step)).collect()
    }

    #[test]
    fn adjacency_keeps_the_order_of_the_edges_both_ways() {
        let dag = dag(4, &[(2, 3, DependsOn), (0, 3, BuildsIn), (0, 1, DependsOn), (1, 3, DependsOn)]).unwrap();
        let steps = |links: &[Link]| links.iter().map(|link| (link.step.0, link.kind)).collect::<Vec<_>>();
        assert_eq!(steps(dag.parents(StepIndex(3))), [(2, DependsOn), (0, BuildsIn), (1, DependsOn)]);
        assert_eq!(steps(dag.children(StepIndex(0))), [(3, BuildsIn), (1, DependsOn)]);
        assert_eq!(steps(dag.parents(StepIndex(0))), []);
        assert_eq!(dag.lineage_parent(StepIndex(3)), Some(StepIndex(0)));
        assert_eq!(dag.lineage_parent(StepIndex(1)), None);
    }

    #[test]
    fn a_sorted_ir_keeps_its_order_and_a_late_parent_is_pulled_forward() {
        let sorted = dag(5, &[(0, 4, DependsOn), (0, 2, DependsOn), (1, 4, BuildsIn), (2, 3, BuildsIn)]).unwrap();
        assert_eq!(indices(&sorted), [0, 1, 2, 3, 4]);
        let unsorted = dag(5, &[(4, 1, DependsOn), (3, 4, DependsOn), (0, 3, DependsOn)]).unwrap();
        assert_eq!(indices(&unsorted), [0, 3, 4, 1, 2]);
        assert!(dag(0, &[]).unwrap().is_empty());
    }

    #[test]
    fn a_chain_goes_on_through_the_first_child_and_forks_into_new_ones() {
        //    0 -> 1 -> 4
        //     \-> 2 -> 5      3 alone
        let dag = dag(6, &[(0, 1, BuildsIn), (0, 2, BuildsIn), (1, 4, BuildsIn), (2, 5, BuildsIn), (4, 3, DependsOn)]);
        let dag = dag.unwrap();
        assert_eq!(chains(&dag), [0, 0, 1, 2, 0, 1]);
        assert_eq!(dag.chain_count(), 3);
    }

    #[test]
    fn chains_are_numbered_by_their_first_steps_whatever_the_order_of_the_ir() {
        let dag = dag(4, &[(3, 0, BuildsIn), (2, 1, BuildsIn)]).unwrap();
        assert_eq!(chains(&dag), [1, 0, 0, 1]);
    }

    #[test]
    fn what_is_no_dag_of_steps_is_refused() {
        assert!(dag(2, &[(0, 2, DependsOn)]).is_none());
        assert!(dag(2, &[(0, 0, DependsOn)]).is_none());
        assert!(dag(3, &[(0, 1, DependsOn), (1, 2, BuildsIn), (2, 1, DependsOn)]).is_none());
        assert!(dag(3, &[(0, 2, BuildsIn), (1, 2, BuildsIn)]).is_none());
    }
}
