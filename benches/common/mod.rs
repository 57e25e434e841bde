//! What all benches share: the one form of their results, and how much they are asked to do.
//!
//! A bench prints rows of one Markdown table. Each has a figure of ours, in most rows beside one of something that readers
//! know, from the same run. `benches/run` puts the rows of all benches into `benches/RESULTS.md`.
//!
//! Started by `cargo bench`, benches measure. By `cargo test --benches` they do the same once or twice on small inputs and
//! without optimization, so that CI knows that they work: such figures mean nothing.

#![allow(dead_code, reason = "each bench uses a part of it")]
#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::{fmt::Display, time::Duration};

/// How much a bench is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// As much as figures need.
    Measure,
    /// As little as shows that the bench works.
    Try,
}

impl Effort {
    /// What cargo asks for: it says `--bench` to a bench that it runs as one.
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

/// A figure, its unit, and whose it is.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    value: f64,
    unit: &'static str,
    /// What of, where that is not us.
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
        // Three digits that mean something.
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
    /// Begins the table of a bench.
    pub(crate) fn new(bench: &'static str) -> Self {
        if Effort::asked() == Effort::Try {
            println!("tried only, the figures mean nothing: `cargo bench --bench {bench}` measures");
        }
        println!("| bench | what | ours | theirs | ours / theirs | besides |");
        println!("|---|---|--:|--:|--:|---|");
        Self { bench }
    }

    /// A row with both sides.
    pub(crate) fn against(&self, what: impl Display, ours: &Figure, theirs: &Figure, besides: impl Display) {
        let ratio = ours.value / theirs.value;
        let ratio = if ratio < 0.1 { format!("{ratio:.3}") } else { format!("{ratio:.2}") };
        println!("| {} | {what} | {ours} | {theirs} | {ratio} | {besides} |", self.bench);
    }

    /// A row with our side only. `why` says what is missing at the other.
    pub(crate) fn alone(&self, what: impl Display, ours: &Figure, why: impl Display, besides: impl Display) {
        println!("| {} | {what} | {ours} | {why} | | {besides} |", self.bench);
    }
}

/// The median of `times`, which are sorted.
pub(crate) fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The least and the 90th percentile of `times`, for a row's last column.
pub(crate) fn spread(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let ms = |at: usize| Figure::ms(times[at]);
    format!("{} at best, {} at the 90th percentile", ms(0), ms(times.len() * 9 / 10))
}
