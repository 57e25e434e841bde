//! The indexed graph.

use crate::{
    ir::{Csr, Edge, EdgeKind},
    model::StepIndex,
};

/// One end of an edge: the step at the other end, and the edge's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The step at the other end.
    pub step: StepIndex,
    /// The kind of the edge.
    pub kind: EdgeKind,
}

/// A directed acyclic graph of steps, as adjacency in two flat arrays in each direction. It is built in
/// linear time, and walks need no recursion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dag {
    parents: Csr<Link>,
    children: Csr<Link>,
    order: Vec<StepIndex>,
    chain_of: Vec<u32>,
    chain_count: usize,
}

impl Dag {
    /// Indexes the edges of `len` steps. Returns `None` if an edge refers to a missing step, if there is a
    /// cycle, or if a step has several `builds_in` parents. The edges of a [`Pipeline`](crate::ir::Pipeline)
    /// have none of these errors.
    #[must_use]
    pub fn new(len: usize, edges: &[Edge]) -> Option<Self> {
        if u32::try_from(len).is_err() || edges.iter().any(|edge| edge.0.max(edge.1) as usize >= len) {
            return None;
        }
        let link = |step, kind| Link { step: StepIndex(step), kind };
        let parents = Csr::new(len, edges.iter().map(|&Edge(from, to, kind)| (to as usize, link(from, kind))));
        let children = Csr::new(len, edges.iter().map(|&Edge(from, to, kind)| (from as usize, link(to, kind))));
        if (0..len).any(|step| lineage(parents.row(step)).nth(1).is_some()) {
            return None;
        }
        let order = topological_order(&parents)?;
        let (chain_of, chain_count) = chains(&parents, &children);
        Some(Self { parents, children, order, chain_of, chain_count })
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
        self.parents.row(step.get())
    }

    /// Returns the steps that wait for `step`, in the order of the IR.
    #[must_use]
    pub fn children(&self, step: StepIndex) -> &[Link] {
        self.children.row(step.get())
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

fn lineage(links: &[Link]) -> impl Iterator<Item = StepIndex> {
    links.iter().filter(|link| link.kind == EdgeKind::BuildsIn).map(|link| link.step)
}

/// Sorts steps depth first through the parents of each step in turn, with an explicit stack. Returns `None`
/// if there is a cycle.
fn topological_order(parents: &Csr<Link>) -> Option<Vec<StepIndex>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Entered,
        Placed,
    }

    let mut marks = vec![Mark::New; parents.rows()];
    let mut order = Vec::with_capacity(parents.rows());
    let mut entered: Vec<(usize, usize)> = Vec::new();
    for first in 0..parents.rows() {
        if marks[first] == Mark::New {
            marks[first] = Mark::Entered;
            entered.push((first, 0));
        }
        while let Some((step, looked_at)) = entered.last_mut() {
            let Some(parent) = parents.row(*step).get(*looked_at) else {
                marks[*step] = Mark::Placed;
                order.push(StepIndex(*step as u32));
                entered.pop();
                continue;
            };
            *looked_at += 1;
            let parent = parent.step.get();
            match marks[parent] {
                Mark::New => {
                    marks[parent] = Mark::Entered;
                    entered.push((parent, 0));
                }
                Mark::Entered => return None,
                Mark::Placed => {}
            }
        }
    }
    Some(order)
}

fn chains(parents: &Csr<Link>, children: &Csr<Link>) -> (Vec<u32>, usize) {
    let first_child = |step: StepIndex| lineage(children.row(step.get())).next();
    let mut chain_of = vec![0; parents.rows()];
    let mut count = 0;
    for step in (0..parents.rows() as u32).map(StepIndex) {
        let continues = lineage(parents.row(step.get())).next().is_some_and(|parent| first_child(parent) == Some(step));
        if continues {
            continue;
        }
        let mut link = Some(step);
        while let Some(step) = link {
            chain_of[step.get()] = count;
            link = first_child(step);
        }
        count += 1;
    }
    (chain_of, count as usize)
}

#[cfg(test)]
mod tests {
    use EdgeKind::{BuildsIn, DependsOn};

    use super::*;

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
