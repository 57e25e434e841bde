//! Ranks: the steps by priority, and sets of them whose first is found at once.
//!
//! Priorities do not change during a build, so they are sorted once. From then on a step is a number, a queue
//! is a set of bits, and the step to start next is the first bit that is set. A queue of 100,000 steps takes
//! 13 KB, which stay in the processor's cache.

use crate::model::StepIndex;

/// The steps in the order of their priorities, the highest first. Equal ones are in the order of the plan.
#[derive(Debug)]
pub(super) struct Ranks {
    steps: Vec<StepIndex>,
    /// By step.
    ranks: Vec<u32>,
}

impl Ranks {
    /// Sorts the steps 0, 1, ... by their priorities, in linear time if these are numbers of steps.
    pub(super) fn new(priorities: &[u64]) -> Self {
        let len = priorities.len();
        let steps = (0..len as u32).map(StepIndex);
        let steps: Vec<StepIndex> = if priorities.is_sorted_by(|one, next| one >= next) {
            steps.collect()
        } else {
            let (least, most) =
                priorities.iter().fold((u64::MAX, 0), |(least, most), &it| (least.min(it), most.max(it)));
            match usize::try_from(most - least) {
                Ok(range) if range <= 2 * len => count(priorities, most, range),
                _ => {
                    let mut sorted: Vec<_> = steps.map(|step| (u64::MAX - priorities[step.get()], step)).collect();
                    sorted.sort_unstable();
                    sorted.into_iter().map(|(_, step)| step).collect()
                }
            }
        };
        let mut ranks = vec![0; len];
        for (rank, step) in (0..).zip(&steps) {
            ranks[step.get()] = rank;
        }
        Self { steps, ranks }
    }

    /// Returns the step with this rank.
    pub(super) fn step(&self, rank: u32) -> StepIndex {
        self.steps[rank as usize]
    }

    /// Returns the rank of a step.
    pub(super) fn rank(&self, step: StepIndex) -> u32 {
        self.ranks[step.get()]
    }
}

/// Sorts by counting how often each priority occurs. `range` is the difference between the highest and the
/// lowest.
fn count(priorities: &[u64], most: u64, range: usize) -> Vec<StepIndex> {
    // Differences are at most `range`.
    let below_most = |priority: u64| (most - priority) as usize;
    let mut next = vec![0_u32; range + 2];
    for &priority in priorities {
        next[below_most(priority) + 1] += 1;
    }
    for at in 1..next.len() {
        next[at] += next[at - 1];
    }
    let mut sorted = vec![StepIndex(0); priorities.len()];
    for (step, &priority) in (0..).map(StepIndex).zip(priorities) {
        let place = &mut next[below_most(priority)];
        sorted[*place as usize] = step;
        *place += 1;
    }
    sorted
}

/// A set of ranks. Every operation takes one step per level of 64 ranks, of 4,096, and so on.
#[derive(Debug)]
pub(super) struct RankSet {
    /// The number of ranks that there are.
    len: usize,
    /// A bit for each rank; above that, a bit for each word of the level below that is not zero. There are no
    /// levels before the first rank is inserted, so an unused set takes no memory.
    levels: Vec<Vec<u64>>,
}

impl RankSet {
    /// Returns an empty set of ranks below `len`.
    pub(super) fn new(len: usize) -> Self {
        Self { len, levels: Vec::new() }
    }

    /// Adds a rank. The caller must ensure that it is below the set's length.
    pub(super) fn insert(&mut self, rank: u32) {
        if self.levels.is_empty() {
            let mut words = self.len;
            while words > 1 || self.levels.is_empty() {
                words = words.div_ceil(64);
                self.levels.push(vec![0; words]);
            }
        }
        let mut at = rank as usize;
        for level in &mut self.levels {
            level[at / 64] |= 1 << (at % 64);
            at /= 64;
        }
    }

    /// Returns the lowest rank, which belongs to the step with the highest priority.
    pub(super) fn first(&self) -> Option<u32> {
        let (mut at, mut is_empty) = (0, true);
        for level in self.levels.iter().rev() {
            let word = level[at];
            is_empty = word == 0;
            if is_empty {
                break;
            }
            at = at * 64 + word.trailing_zeros() as usize;
        }
        (!is_empty).then_some(at as u32)
    }

    /// Returns the lowest rank above `rank`, which is in the set.
    pub(super) fn next_after(&self, rank: u32) -> Option<u32> {
        let mut at = rank as usize;
        for (height, level) in self.levels.iter().enumerate() {
            let (index, bit) = (at / 64, at as u32 % 64);
            let above = level[index] & u64::MAX.checked_shl(bit + 1).unwrap_or(0);
            if above != 0 {
                let first = index * 64 + above.trailing_zeros() as usize;
                let below = self.levels[..height].iter().rev();
                return Some(below.fold(first, |at, level| at * 64 + level[at].trailing_zeros() as usize) as u32);
            }
            at = index;
        }
        None
    }

    /// Removes a rank.
    pub(super) fn remove(&mut self, rank: u32) {
        let mut at = rank as usize;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                break;
            }
            at /= 64;
        }
    }

    /// Removes all ranks.
    pub(super) fn clear(&mut self) {
        self.levels.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn ranks_are_the_order_of_a_plain_sort(
            priorities in prop_oneof![
                collection::vec(0..40_u64, 0..300),
                collection::vec(any::<u64>(), 0..300),
                collection::vec(prop_oneof![Just(0), Just(u64::MAX), 0..3_u64], 0..300),
            ],
        ) {
            let mut sorted: Vec<_> = (0..priorities.len() as u32).map(StepIndex).collect();
            sorted.sort_by_key(|step| std::cmp::Reverse(priorities[step.get()]));
            let ranks = Ranks::new(&priorities);
            for (rank, step) in (0..).zip(sorted) {
                prop_assert_eq!((ranks.step(rank), ranks.rank(step)), (step, rank));
            }
        }

        #[test]
        fn a_set_of_ranks_agrees_with_a_sorted_set(
            len in prop_oneof![1..4_usize, 60..70_usize, 4_000..5_000_usize, 262_140..262_150_usize],
            operations in collection::vec((any::<prop::sample::Index>(), 0..3_u8), 0..200),
        ) {
            let (mut ours, mut model) = (RankSet::new(len), BTreeSet::new());
            for (rank, operation) in operations {
                let rank = rank.index(len) as u32;
                match operation {
                    0 => {
                        ours.insert(rank);
                        model.insert(rank);
                    }
                    1 => {
                        ours.remove(rank);
                        model.remove(&rank);
                    }
                    _ => if let Some(first) = model.pop_first() {
                        ours.remove(first);
                    },
                }
                prop_assert_eq!(ours.first(), model.first().copied());
                if let Some(first) = model.first() {
                    let all = std::iter::successors(Some(*first), |rank| ours.next_after(*rank));
                    prop_assert!(all.eq(model.iter().copied()));
                }
            }
            ours.clear();
            prop_assert_eq!(ours.first(), None);
        }
    }
}
