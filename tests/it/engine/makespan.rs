//! Greedy schedules are good: how much longer than the best schedule a build may take.

use std::time::Duration;

use proptest::{collection::vec, prelude::*};

use super::random::pass_only;
use crate::support::{
    graphs::cases,
    makespan::{Fifo, bounds, dag, makespan, ours, ours_in_memory, ratio},
    policy_oracle::memory_rules,
    workloads::{Random, Workload, forty},
};

/// Checks Graham's bound, `work / slots + (1 - 1 / slots) * path`. It is at most `2 - 1 / slots` times the
/// larger of `work / slots` and `path`, which no schedule beats.
fn check(work: &Workload, slots: usize, makespan: u64) {
    let (path, all) = bounds(work);
    let slots = slots as u64;
    assert!(makespan >= path && makespan * slots >= all, "{makespan} ms is not possible");
    assert!(makespan * slots <= all + (slots - 1) * path, "{makespan} ms for {all} ms of work, {path} ms on one path");
    assert!(makespan * slots <= (2 * slots - 1) * path.max(all.div_ceil(slots)));
}

fn known(durations_ms: &[u64]) -> Vec<Option<Duration>> {
    durations_ms.iter().map(|ms| Some(Duration::from_millis(*ms))).collect()
}

/// Generates any graph whose numbering is a topological order, with times that may be zero.
fn workloads() -> impl Strategy<Value = Workload> {
    let parents = vec(any::<prop::sample::Index>(), 0..4);
    vec((prop_oneof![Just(0), 0..20_u64, 0..100_000_u64], parents), 0..80).prop_map(|steps| {
        let mut work = Workload::default();
        for (step, (duration_ms, parents)) in steps.into_iter().enumerate() {
            let mut parents: Vec<_> = parents.iter().filter(|_| step > 0).map(|parent| parent.index(step)).collect();
            parents.sort_unstable();
            parents.dedup();
            work.durations_ms.push(duration_ms);
            work.edges.extend(parents.into_iter().map(|parent| (parent, step)));
        }
        work
    })
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn no_build_exceeds_the_greedy_bound_whatever_durations_are_expected(
        work in workloads(),
        slots in 1..12_usize,
        seed in 1..u64::MAX,
    ) {
        let dag = dag(&work);
        let mut random = Random(seed);
        let wrong: Vec<_> =
            work.durations_ms.iter().map(|_| Some(Duration::from_millis(random.below(100_000) as u64))).collect();
        for believed in [known(&work.durations_ms), wrong, vec![None; work.durations_ms.len()]] {
            check(&work, slots, makespan(&work, &mut ours(&dag, &believed, slots)));
        }
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn the_engine_keeps_the_greedy_bound(work in workloads(), slots in 1..12_usize) {
        check(&work, slots, pass_only(&work, slots));
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn six_steps_that_need_a_fifth_of_the_memory_end_as_early_as_they_can(
        durations_ms in vec(1..100_000_u64, 6),
        peaks in vec(170..=200_u64, 6),
    ) {
        let work = Workload { durations_ms, ..Workload::default() };
        let dag = dag(&work);
        // Any five fit, and no six.
        let memory = memory_rules(&(1000, peaks.into_iter().map(Some).collect()));
        let taken = makespan(&work, &mut ours_in_memory(&dag, &known(&work.durations_ms), 6, Some(memory)));
        // One step waits for another, and all others run from the start.
        let mut sorted = work.durations_ms;
        sorted.sort_unstable();
        let best = sorted[5].max(sorted[0] + sorted[1]);
        prop_assert!(taken >= best, "{taken} ms do not fit into the memory");
        prop_assert!(taken * 10 <= best * 11, "{taken} ms, and the best is {best} ms");
    }
}

#[test]
fn forty_builds_of_ci_are_shorter_than_first_in_first_out() {
    for slots in [2, 4, 8] {
        let (mut by_path, mut by_age) = (0.0, 0.0);
        for work in forty() {
            let ours = ratio(&work, slots, &mut ours(&dag(&work), &known(&work.durations_ms), slots));
            assert!((1.0..1.5).contains(&ours), "{}: {ours} times the bound", work.family);
            by_path += ours;
            by_age += ratio(&work, slots, &mut Fifo::new(&work, slots));
        }
        assert!(by_path < by_age, "on average {} and {} times the bound", by_path / 40.0, by_age / 40.0);
    }
}
