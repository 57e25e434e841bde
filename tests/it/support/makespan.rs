//! How long a build takes, by arithmetic: steps that pass after a known time, in slots of one pool.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    num::NonZeroUsize,
    time::Duration,
};

use hm_exec::{
    ir::{Edge, EdgeKind},
    plan::{Dag, StepIndex},
    schedule::{AttemptEnd, MemoryRules, Placement, Policy, Rules, priorities},
};

use super::workloads::Workload;

/// The order in which steps start.
pub(crate) trait Order {
    fn start(&mut self) -> Option<usize>;
    fn passed(&mut self, step: usize);
}

/// Returns when the last step ends. `order` never starts more steps at once than there are slots.
pub(crate) fn makespan(work: &Workload, order: &mut impl Order) -> u64 {
    let mut now = 0;
    let mut running = BinaryHeap::new();
    let mut started = 0;
    loop {
        while let Some(step) = order.start() {
            started += 1;
            running.push(Reverse((now + work.durations_ms[step], step)));
        }
        let Some(Reverse((end, step))) = running.pop() else { break };
        now = end;
        order.passed(step);
    }
    assert_eq!(started, work.durations_ms.len(), "every step has run");
    now
}

/// Returns the longest path and the total work, in milliseconds. No schedule is shorter than the path, nor
/// than the work divided by the slots.
pub(crate) fn bounds(work: &Workload) -> (u64, u64) {
    let mut path = work.durations_ms.clone();
    for step in 0..path.len() {
        let parents = work.edges.iter().filter(|edge| edge.1 == step);
        let before = parents.map(|(parent, _)| path[*parent]).max().unwrap_or(0);
        path[step] += before;
    }
    (path.into_iter().max().unwrap_or(0), work.durations_ms.iter().sum())
}

/// Returns the makespan as a multiple of the lower bound.
pub(crate) fn ratio(work: &Workload, slots: usize, order: &mut impl Order) -> f64 {
    let (path, all) = bounds(work);
    makespan(work, order) as f64 / (path as f64).max(all as f64 / slots as f64)
}

pub(crate) fn dag(work: &Workload) -> Dag {
    let edge = |&(from, to): &(usize, usize)| Edge(from as u32, to as u32, EdgeKind::DependsOn);
    Dag::new(work.durations_ms.len(), &work.edges.iter().map(edge).collect::<Vec<_>>()).expect("parents come first")
}

/// Returns the engine's policy with the believed durations of the steps.
pub(crate) fn ours<'dag>(dag: &'dag Dag, believed: &[Option<Duration>], slots: usize) -> Policy<'dag> {
    ours_in_memory(dag, believed, slots, None)
}

/// Returns the same for steps that share a machine's memory.
pub(crate) fn ours_in_memory<'dag>(
    dag: &'dag Dag,
    believed: &[Option<Duration>],
    slots: usize,
    memory: Option<MemoryRules>,
) -> Policy<'dag> {
    let placements = priorities(dag, believed).into_iter();
    let placements: Vec<_> = placements.map(|priority| Placement { pool: 0, priority, cached: false }).collect();
    let limits = vec![NonZeroUsize::new(slots).expect("at least one slot")];
    let (backoff, outcomes) = (Duration::ZERO, BTreeMap::new());
    Policy::new(
        dag,
        &placements,
        &Rules { limits, keep_going: false, retries: 0, backoff, outcomes, takers: BTreeMap::new(), memory },
    )
}

impl Order for Policy<'_> {
    fn start(&mut self) -> Option<usize> {
        self.start_next().map(|start| start.step.get())
    }

    fn passed(&mut self, step: usize) {
        self.attempt_ended(StepIndex(step as u32), AttemptEnd::Exited(0), Duration::ZERO);
    }
}

/// First in, first out: steps start in the order in which they became ready.
#[derive(Debug)]
pub(crate) struct Fifo {
    ready: VecDeque<usize>,
    unmet: Vec<usize>,
    children: Vec<Vec<usize>>,
    free: usize,
}

impl Fifo {
    pub(crate) fn new(work: &Workload, slots: usize) -> Self {
        let mut unmet = vec![0; work.durations_ms.len()];
        let mut children = vec![Vec::new(); unmet.len()];
        for &(from, to) in &work.edges {
            unmet[to] += 1;
            children[from].push(to);
        }
        Self { ready: (0..unmet.len()).filter(|step| unmet[*step] == 0).collect(), unmet, children, free: slots }
    }
}

impl Order for Fifo {
    fn start(&mut self) -> Option<usize> {
        if self.free == 0 {
            return None;
        }
        let step = self.ready.pop_front()?;
        self.free -= 1;
        Some(step)
    }

    fn passed(&mut self, step: usize) {
        self.free += 1;
        for &child in &self.children[step] {
            self.unmet[child] -= 1;
            if self.unmet[child] == 0 {
                self.ready.push_back(child);
            }
        }
    }
}
