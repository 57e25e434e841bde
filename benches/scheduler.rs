//! What a step costs beside what it does: no-op steps on a current-thread runtime, with a subscriber that reads every
//! event; beside the published hm-exec 0.0.9 on the same graphs, where it was built.
//!
//! `cargo build --release --manifest-path benches/peers/Cargo.toml && cargo bench --bench scheduler [-- STEPS...]`

#![allow(clippy::unwrap_used, reason = "a bench has nobody to report to")]

mod common;
#[path = "common/shapes.rs"]
mod shapes;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{Effort, Figure, Table};
use hm_exec::{
    BuildEvent, BuildStatus, Engine, ExecutorInput, Plan, RunRequest, RunnerSet, StepResult,
    runner::{RunnerError, StepContext, StepRunner},
};
use shapes::{SHAPES, forget_peak, ir_json, peak_rss_mib};

/// Each figure is that of the best of so many rounds: interruptions only ever add.
const ROUNDS: usize = 5;
/// How long the peer may take for all its rounds.
const PATIENCE: Duration = Duration::from_secs(120);
/// The peer unpacks the source, empty as it is, for each step; on a disk that would be all that is measured.
const MEMORY: &str = "/dev/shm";

#[derive(Debug)]
struct Noop;

impl StepRunner for Noop {
    const NAME: &'static str = "noop";

    async fn execute(&self, _: &StepContext, _: ExecutorInput) -> Result<StepResult, RunnerError> {
        Ok(StepResult { exit_code: 0, committed_snapshot: None, artifacts: vec![] })
    }
}

#[derive(Debug, RunnerSet)]
struct Runners {
    #[runner(default)]
    noop: Noop,
}

struct Measured {
    parse: Duration,
    run: Duration,
    events: u64,
}

fn measure(json: &str) -> Measured {
    let begin = Instant::now();
    let plan = Plan::parse(json).unwrap();
    let parse = begin.elapsed();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let engine = Engine::builder(Runners { noop: Noop }).build().unwrap();
        let begin = Instant::now();
        let handle = engine.start(RunRequest::new(plan, "/")).await.unwrap();
        let (mut stream, control) = handle.into_parts();
        let (mut events, mut last) = (0, None);
        while let Some(event) = stream.next().await {
            events += 1;
            last = Some(event);
        }
        let outcome = control.wait().await.unwrap();
        let run = begin.elapsed();
        assert_eq!(outcome.status, BuildStatus::Passed);
        assert!(matches!(last, Some(BuildEvent::BuildEnd { seq, .. }) if seq + 1 == events));
        Measured { parse, run, events }
    })
}

/// The published crate, as `benches/peers` runs it.
struct Peer {
    program: PathBuf,
    /// Where it may keep what it wants to.
    home: tempfile::TempDir,
}

/// How a run of the peer ended.
enum Ended {
    Measured {
        ns: f64,
        events: u64,
        peak_mib: u64,
    },
    /// Not: why.
    Failed(String),
}

impl Peer {
    fn built() -> Option<Self> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/target/release/hm-exec-peers");
        let memory = if Path::new(MEMORY).exists() { MEMORY.into() } else { std::env::temp_dir() };
        program.exists().then(|| Self { program, home: tempfile::tempdir_in(memory).unwrap() })
    }

    fn run(&self, shape: &str, steps: usize, rounds: usize) -> Ended {
        let mut peer = Command::new(&self.program)
            .args([shape, &steps.to_string(), &rounds.to_string()])
            .env("HOME", self.home.path())
            .env("XDG_CACHE_HOME", self.home.path())
            .env("TMPDIR", self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while peer.try_wait().unwrap().is_none() {
            if begin.elapsed() > PATIENCE {
                peer.kill().unwrap();
                peer.wait().unwrap();
                return Ended::Failed(format!("not done in {} s", PATIENCE.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = peer.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        if error.contains("overflowed its stack") {
            return Ended::Failed("stack overflow".into());
        }
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        let figures: Vec<u64> = line.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
        match figures[..] {
            #[expect(clippy::cast_precision_loss, reason = "nanoseconds of one step")]
            [ns, events, peak_mib] => Ended::Measured { ns: ns as f64, events, peak_mib },
            _ => Ended::Failed(format!("{}: {}", output.status, error.lines().next_back().unwrap_or_default())),
        }
    }
}

fn main() {
    let effort = Effort::asked();
    let asked: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let sizes = match asked.is_empty() {
        true => effort.pick(vec![1_000, 10_000, 100_000], vec![1_000]),
        false => asked,
    };
    let rounds = effort.pick(ROUNDS, 1);
    let peer = Peer::built();
    let table = Table::new("scheduler");
    for (shape, edges) in SHAPES {
        for &steps in &sizes {
            let edges = edges(steps);
            let json = ir_json(steps, &edges);
            forget_peak();
            let best = (0..rounds).map(|_| measure(&json)).min_by_key(|measured| measured.run).unwrap();
            let peak = peak_rss_mib().map_or_else(|| "?".to_owned(), |mib| mib.to_string());
            #[expect(clippy::cast_precision_loss, reason = "few steps")]
            let per_step = |time: Duration| Figure::ns(time.as_secs_f64() * 1e9 / steps as f64);
            let what = format!("{shape}, {steps} no-op steps: each");
            let besides = format!(
                "{} edges, {} events, peak {peak} MiB; {} a step for parsing",
                edges.len(),
                best.events,
                per_step(best.parse)
            );
            let ours = per_step(best.run);
            match peer.as_ref().map(|peer| peer.run(shape, steps, rounds.min(3))) {
                Some(Ended::Measured { ns, events, peak_mib }) => {
                    let besides = format!("{besides}; theirs: {events} events seen, peak {peak_mib} MiB");
                    table.against(what, &ours, &Figure::ns(ns).of("hm-exec 0.0.9"), besides);
                }
                Some(Ended::Failed(why)) => table.alone(what, &ours, format!("hm-exec 0.0.9: {why}"), besides),
                None => table.alone(what, &ours, "hm-exec 0.0.9: not built", besides),
            }
        }
    }
}
