//! How far the schedule is from the optimum: computes forty CI builds, and compares them with first in, first
//! out.
//!
//! A makespan is given as a multiple of the lower bound, which is the longest path, or the total work divided
//! by the number of slots. The figures are the same on every machine.
//!
//! `cargo bench --bench makespan`

mod common;
#[path = "../tests/it/support/makespan.rs"]
mod makespan;
#[path = "../tests/it/support/workloads.rs"]
mod workloads;

use std::time::Duration;

use common::{Figure, Table};
use makespan::{Fifo, dag, ours, ratio};
use workloads::{Random, Workload, forty};

/// The ratios of some builds.
#[derive(Default)]
struct Ratios {
    /// With the steps' durations known from the last run.
    known: Vec<f64>,
    /// With durations that are up to half too long or too short.
    wrong: Vec<f64>,
    /// Without a last run.
    unknown: Vec<f64>,
    fifo: Vec<f64>,
}

impl Ratios {
    fn of<'a>(workloads: impl Iterator<Item = &'a Workload>, slots: usize) -> Self {
        let mut ratios = Self::default();
        let mut random = Random(0xbad_c10c);
        for work in workloads {
            let dag = dag(work);
            let by = |percent: &mut dyn FnMut() -> usize| {
                let believed = |ms: &u64| Some(Duration::from_millis(ms * percent() as u64 / 100));
                let believed: Vec<_> = work.durations_ms.iter().map(believed).collect();
                ratio(work, slots, &mut ours(&dag, &believed, slots))
            };
            ratios.known.push(by(&mut || 100));
            ratios.wrong.push(by(&mut || 50 + random.below(101)));
            ratios.unknown.push(ratio(work, slots, &mut ours(&dag, &vec![None; dag.len()], slots)));
            ratios.fifo.push(ratio(work, slots, &mut Fifo::new(work, slots)));
        }
        ratios
    }

    fn print(&self, table: &Table, what: &str) {
        let mean = |ratios: &[f64]| ratios.iter().sum::<f64>() / ratios.len() as f64;
        let worst = |ratios: &[f64]| ratios.iter().copied().fold(0.0, f64::max);
        let figure = |ratio| Figure::new(ratio, "x the bound");
        table.against(
            what,
            &figure(mean(&self.known)),
            &figure(mean(&self.fifo)).of("first in, first out"),
            format!(
                "durations off by up to half: {:.2}, unknown: {:.2}; the worst: {:.2}, theirs {:.2}",
                mean(&self.wrong),
                mean(&self.unknown),
                worst(&self.known),
                worst(&self.fifo)
            ),
        );
    }
}

fn main() {
    let table = Table::new("makespan");
    let all = forty();
    for slots in [2, 4, 8, 16] {
        Ratios::of(all.iter(), slots).print(&table, &format!("{} builds, mean, {slots} slots", all.len()));
    }
    for family in all.chunk_by(|one, next| one.family == next.family) {
        Ratios::of(family.iter(), 4).print(&table, &format!("only {}, 4 slots", family[0].family));
    }
}
