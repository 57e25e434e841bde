//! Shared by all benches: the format of their results, and the amount of work.
//!
//! A bench prints rows of one Markdown table. Each row has a figure of ours, in most rows next to a figure of
//! a well-known program from the same run. `benches/run` collects the rows of all benches in
//! `benches/RESULTS.md`.
//!
//! Under `cargo bench`, benches measure. Under `cargo test --benches` they do the same once or twice on small
//! inputs and without optimization, so that CI knows that they work; such figures mean nothing.

#![allow(dead_code, reason = "each bench uses a part of it")]
#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::{fmt::Display, time::Duration};

/// The amount of work of a bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Enough for reliable figures.
    Measure,
    /// Just enough to show that the bench works.
    Try,
}

impl Effort {
    /// Returns the amount of work that cargo requests: it passes `--bench` to a bench that it runs as one.
    pub(crate) fn asked() -> Self {
        if std::env::args().any(|argument| argument == "--bench") { Self::Measure } else { Self::Try }
    }

    pub(crate) fn pick<T>(self, measure: T, attempt: T) -> T {
        match self {
            Self::Measure => measure,
            Self::Try => attempt,
        }
    }
}

/// A figure, its unit, and the program that it belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    value: f64,
    unit: &'static str,
    /// The program, if it is not ours.
    of: Option<String>,
}

impl Figure {
    pub(crate) fn new(value: f64, unit: &'static str) -> Self {
        Self { value, unit, of: None }
    }

    pub(crate) fn ms(time: Duration) -> Self {
        Self::new(time.as_secs_f64() * 1e3, "ms")
    }

    pub(crate) fn ns(nanoseconds: f64) -> Self {
        Self::new(nanoseconds, "ns")
    }

    pub(crate) fn of(mut self, whom: impl Into<String>) -> Self {
        self.of = Some(whom.into());
        self
    }
}

impl Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Three significant digits.
        let decimals = match self.value.abs() {
            0.0..10.0 => 2,
            10.0..100.0 => 1,
            _ => 0,
        };
        write!(f, "{:.decimals$} {}", self.value, self.unit)?;
        self.of.as_ref().map_or(Ok(()), |of| write!(f, " ({of})"))
    }
}

/// The rows of one bench.
#[derive(Debug)]
pub(crate) struct Table {
    bench: &'static str,
}

impl Table {
    /// Prints the header of a bench's table.
    pub(crate) fn new(bench: &'static str) -> Self {
        if Effort::asked() == Effort::Try {
            println!("tried only, the figures mean nothing: `cargo bench --bench {bench}` measures");
        }
        println!("| bench | what | ours | theirs | ours / theirs | notes |");
        println!("|---|---|--:|--:|--:|---|");
        Self { bench }
    }

    /// Prints a row with both sides.
    pub(crate) fn against(&self, what: impl Display, ours: &Figure, theirs: &Figure, besides: impl Display) {
        let ratio = ours.value / theirs.value;
        let ratio = if ratio < 0.1 { format!("{ratio:.3}") } else { format!("{ratio:.2}") };
        println!("| {} | {what} | {ours} | {theirs} | {ratio} | {besides} |", self.bench);
    }

    /// Prints a row with our side only. `why` is the reason why the other side is missing.
    pub(crate) fn alone(&self, what: impl Display, ours: &Figure, why: impl Display, besides: impl Display) {
        println!("| {} | {what} | {ours} | {why} | | {besides} |", self.bench);
    }
}

/// Returns the median of `times`, and sorts them.
pub(crate) fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Returns the minimum and the 90th percentile of `times`, for a row's last column.
pub(crate) fn spread(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let ms = |at: usize| Figure::ms(times[at]);
    format!("{} at best, {} at the 90th percentile", ms(0), ms(times.len() * 9 / 10))
}

/// Returns the processor time of this thread, because the machine may be busy with other programs.
pub(crate) fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("less than a second"))
}
