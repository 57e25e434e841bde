//! The edges of a pipeline by step, in both directions, and an order in which parents come first.
//!
//! Input: edges between existing steps. Output: flat arrays, built in linear time and walked without
//! recursion. Validation finds its errors in them, and the plan keeps them.

use super::{Edge, EdgeKind, csr::Csr};
use crate::model::StepIndex;

/// One end of an edge: the step at the other end, and the edge's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The step at the other end.
    pub step: StepIndex,
    /// The kind of the edge.
    pub kind: EdgeKind,
}

/// The parents and the children of each step, each in the order of the edges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Adjacency {
    pub(crate) parents: Csr<Link>,
    pub(crate) children: Csr<Link>,
}

impl Adjacency {
    /// Indexes the edges of `len` steps. The caller must ensure that there are at most [`u32::MAX`] edges,
    /// and that their ends are below `len`.
    pub(crate) fn new(len: usize, edges: &[Edge]) -> Self {
        Self { parents: parents(len, edges), children: children(len, edges) }
    }

    /// Sorts steps depth first through the parents of each step in turn. Steps whose parents all come before
    /// them keep their order. Returns `None` if there is a cycle.
    pub(crate) fn order(&self) -> Option<Vec<StepIndex>> {
        let len = self.parents.rows();
        let is_sorted = |step: usize| self.parents.row(step).iter().all(|parent| parent.step.get() < step);
        if (0..len).all(is_sorted) {
            return Some((0..len as u32).map(StepIndex).collect());
        }
        sort(&self.parents)
    }
}

/// Indexes edges by child.
pub(super) fn parents(len: usize, edges: &[Edge]) -> Csr<Link> {
    Csr::new(len, edges.iter().map(|&Edge(from, to, kind)| (to as usize, Link { step: StepIndex(from), kind })))
}

/// Indexes edges by parent.
pub(super) fn children(len: usize, edges: &[Edge]) -> Csr<Link> {
    Csr::new(len, edges.iter().map(|&Edge(from, to, kind)| (from as usize, Link { step: StepIndex(to), kind })))
}

/// Returns the ends of the `builds_in` edges among `links`.
pub(crate) fn lineage(links: &[Link]) -> impl Iterator<Item = StepIndex> {
    links.iter().filter(|link| link.kind == EdgeKind::BuildsIn).map(|link| link.step)
}

/// Sorts steps with an explicit stack. Returns `None` if there is a cycle.
fn sort(parents: &Csr<Link>) -> Option<Vec<StepIndex>> {
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
