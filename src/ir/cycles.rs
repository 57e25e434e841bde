//! Finds cycles: one short path per group of steps that wait for each other.
//!
//! Input: for each step, the steps that wait for it. Output: for each strongly connected component of more
//! than one step, a shortest cycle through its first step. The algorithm is linear in steps and edges, and
//! does not recurse, because a cycle may be as long as the pipeline. Self-edges are ignored here: they are
//! reported as edges.

use super::csr::Csr;

/// Returns one cycle per component, ordered by their first steps. A path contains each step once; its last
/// step leads back to its first.
pub(super) fn find(children: &Csr<u32>) -> Vec<Vec<u32>> {
    let components = components(children);
    let mut came_from = vec![NONE; children.rows()];
    let mut cycles: Vec<_> = components
        .groups
        .iter()
        .filter(|group| group.len() > 1)
        .map(|group| shortest_cycle(children, &components.of, group, &mut came_from))
        .collect();
    cycles.sort_unstable();
    cycles
}

const NONE: u32 = u32::MAX;

struct Components {
    /// The component of each step.
    of: Vec<u32>,
    groups: Vec<Vec<u32>>,
}

/// Runs Tarjan's algorithm with an explicit stack, which has for each visited step the number of its children
/// already examined.
fn components(children: &Csr<u32>) -> Components {
    let count = children.rows();
    let mut of = vec![NONE; count];
    let mut groups = Vec::new();
    let mut visited_at = vec![NONE; count];
    let mut low = vec![0; count];
    let mut clock = 0;
    let mut open = Vec::new();
    let mut visiting: Vec<(u32, usize)> = Vec::new();

    for root in 0..count {
        if visited_at[root] != NONE {
            continue;
        }
        visiting.push((root as u32, 0));
        while let Some((step, looked_at)) = visiting.last_mut() {
            let at = *step as usize;
            if *looked_at == 0 {
                visited_at[at] = clock;
                low[at] = clock;
                clock += 1;
                open.push(*step);
            }
            if let Some(&child) = children.row(at).get(*looked_at) {
                *looked_at += 1;
                let child_at = child as usize;
                if visited_at[child_at] == NONE {
                    visiting.push((child, 0));
                } else if of[child_at] == NONE {
                    low[at] = low[at].min(visited_at[child_at]);
                }
                continue;
            }
            let step = *step;
            visiting.pop();
            if let Some((parent, _)) = visiting.last() {
                let parent_at = *parent as usize;
                low[parent_at] = low[parent_at].min(low[at]);
            }
            if low[at] == visited_at[at] {
                let first = open.iter().rposition(|&member| member == step).unwrap_or(0);
                let group = open.split_off(first);
                for &member in &group {
                    of[member as usize] = groups.len() as u32;
                }
                groups.push(group);
            }
        }
    }
    Components { of, groups }
}

/// Searches breadth first from the component's first step back to it. `came_from` is scratch space, filled
/// with `NONE`.
fn shortest_cycle(children: &Csr<u32>, component_of: &[u32], group: &[u32], came_from: &mut [u32]) -> Vec<u32> {
    let start = group.iter().copied().min().unwrap_or(NONE);
    let component = component_of[start as usize];
    let mut reached = vec![start];
    let mut next = 0;
    while let Some(&step) = reached.get(next) {
        next += 1;
        for &child in children.row(step as usize) {
            if child == start {
                let mut path = vec![step];
                while let Some(&last) = path.last()
                    && last != start
                {
                    path.push(came_from[last as usize]);
                }
                path.reverse();
                return path;
            }
            if component_of[child as usize] == component && came_from[child as usize] == NONE {
                came_from[child as usize] = step;
                reached.push(child);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    fn children(len: usize, edges: &[(usize, usize)]) -> Csr<u32> {
        Csr::new(len, edges.iter().map(|&(from, to)| (from, to as u32)))
    }

    #[test]
    fn each_knot_gives_one_cycle_from_its_first_step() {
        assert_eq!(find(&children(3, &[(0, 1), (1, 2), (0, 2)])), Vec::<Vec<u32>>::new());
        assert_eq!(find(&children(6, &[(4, 3), (3, 4), (0, 3), (5, 1), (1, 5), (4, 5)])), [[1, 5], [3, 4]]);
        assert_eq!(find(&children(4, &[(0, 1), (1, 2), (2, 3), (3, 0), (1, 0)])), [[0, 1]]);
    }

    /// Returns for each pair of steps whether the second can be reached from the first: Warshall's algorithm.
    fn reachability(len: usize, edges: &[(usize, usize)]) -> Vec<Vec<bool>> {
        let mut reaches = vec![vec![false; len]; len];
        edges.iter().for_each(|&(from, to)| reaches[from][to] = true);
        for via in 0..len {
            for from in 0..len {
                for to in 0..len {
                    reaches[from][to] |= reaches[from][via] && reaches[via][to];
                }
            }
        }
        reaches
    }

    proptest! {
        #[test]
        fn cycles_are_real_and_every_knot_has_one(
            edges in (2..10_usize).prop_flat_map(|len| collection::vec((0..len, 0..len), 0..2 * len)),
        ) {
            let edges: Vec<_> = edges.into_iter().filter(|(from, to)| from != to).collect();
            let len = 10;
            let reaches = reachability(len, &edges);
            let cycles = find(&children(len, &edges));
            for cycle in &cycles {
                prop_assert!(cycle.len() > 1);
                let next = cycle.iter().cycle().skip(1);
                for (&from, &to) in cycle.iter().zip(next) {
                    prop_assert!(edges.contains(&(from as usize, to as usize)), "{cycle:?}");
                }
            }
            // Steps that reach each other are one group, identified by its first step.
            let knots: Vec<_> = (0..len)
                .filter(|&step| reaches[step][step])
                .filter(|&step| (0..step).all(|other| !(reaches[step][other] && reaches[other][step])))
                .collect();
            prop_assert_eq!(cycles.iter().map(|cycle| cycle[0] as usize).collect::<Vec<_>>(), knots);
        }
    }
}
