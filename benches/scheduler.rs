//! The overhead of a step: no-op steps on a current-thread runtime, with a subscriber that reads every event;
//! compared with the published hm-exec 0.0.9 on the same graphs, if it was built.
//!
//! `cargo build --release --manifest-path benches/peers/Cargo.toml && cargo bench --bench scheduler [--
//! STEPS...]`

#![allow(clippy::print_stdout, reason = "a bench prints its figures")]
#![allow(clippy::unwrap_used, reason = "a bench panics on errors")]

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

/// The number of rounds. Each figure is that of the best round, because interruptions only ever add time.
const ROUNDS: usize = 5;
/// From this number of steps on, the peer runs one round.
const MANY: usize = 10_000;
/// From this number of steps on, the peer does not run, and the time from the text of the IR to the outcome
/// gets a row.
const HUGE: usize = 1_000_000;
/// How long the peer may take for all its rounds.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first argument of the bench when it is started again for one graph. With a process for each graph,
/// peaks of memory are not those of earlier graphs.
const ONE: &str = "--one-graph";
/// The peer unpacks the source, although it is empty, for each step. On a disk, that would dominate the
/// measurement.
const MEMORY: &str = "/dev/shm";

#[derive(Debug)]
struct Noop;

impl StepRunner for Noop {
    const NAME: &'static str = "noop";

    async fn execute(&self, _: &StepContext, _: ExecutorInput) -> Result<StepResult, RunnerError> {
        Ok(StepResult::exited(0))
    }
}

#[derive(Debug, RunnerSet)]
struct Runners {
    #[runner(default)]
    noop: Noop,
}

/// The figures of a graph, reported by a process that ran nothing else.
struct Measured {
    ns: f64,
    events: u64,
    peak_mib: u64,
}

/// Runs a graph, and prints nanoseconds per step, events, peak memory in MiB, nanoseconds per step for
/// parsing, and milliseconds for everything.
fn run_one(shape: &str, steps: usize, rounds: usize) {
    let (_, edges) = SHAPES.iter().find(|(name, _)| *name == shape).unwrap();
    let round = |_| {
        // The edges are gone before the measurement: the peak is that of a program that only has the text.
        let json = ir_json(steps, &edges(steps));
        forget_peak();
        measure(json)
    };
    let (run, parse, events) = (0..rounds).map(round).min().unwrap();
    let per_step = |time: Duration| time.as_nanos() / steps as u128;
    let peak = peak_rss_mib().unwrap_or_default();
    println!("{} {events} {peak} {} {}", per_step(run), per_step(parse), (parse + run).as_millis());
}

/// Returns how long a build takes, how long parsing its plan takes, and how many events it has.
fn measure(json: String) -> (Duration, Duration, u64) {
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
        (run, parse, events)
    })
}

/// Starts `command` on a graph, and reads the figures that it prints. The error is the reason why there are
/// none.
fn figures(command: &mut Command, shape: &str, steps: usize, rounds: usize) -> Result<(Measured, Vec<u64>), String> {
    let mut child = command
        .args([shape, &steps.to_string(), &rounds.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err(format!("not finished in {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("overflowed its stack") {
        return Err("stack overflow".into());
    }
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let figures: Vec<u64> = line.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
    match &figures[..] {
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of one step")]
        &[ns, events, peak_mib, ref more @ ..] => Ok((Measured { ns: ns as f64, events, peak_mib }, more.to_vec())),
        _ => Err(format!("{}: {}", output.status, error.lines().next_back().unwrap_or_default())),
    }
}

/// The published crate, run by `benches/peers`.
struct Peer {
    program: PathBuf,
    /// Its home directory.
    home: tempfile::TempDir,
}

impl Peer {
    fn built() -> Option<Self> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/target/release/hm-exec-peers");
        let memory = if Path::new(MEMORY).exists() { MEMORY.into() } else { std::env::temp_dir() };
        program.exists().then(|| Self { program, home: tempfile::tempdir_in(memory).unwrap() })
    }

    fn command(&self) -> Command {
        let mut peer = Command::new(&self.program);
        let home = self.home.path();
        peer.env("HOME", home).env("XDG_CACHE_HOME", home).env("TMPDIR", home);
        peer
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [one, shape, steps, rounds] = &arguments[..]
        && one == ONE
    {
        return run_one(shape, steps.parse().unwrap(), rounds.parse().unwrap());
    }
    let effort = Effort::asked();
    let asked: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = match asked.is_empty() {
        true => effort.pick(vec![1_000, 10_000, 100_000, HUGE], vec![1_000]),
        false => asked,
    };
    let rounds = effort.pick(ROUNDS, 1);
    let peer = Peer::built();
    let table = Table::new("scheduler");
    for (shape, _) in SHAPES {
        // After a failure, the peer is not started with more steps.
        let mut failed = None;
        for &steps in &sizes {
            let ours = figures(Command::new(std::env::current_exe().unwrap()).arg(ONE), shape, steps, rounds);
            let (ours, more) = ours.unwrap();
            let what = format!("{shape}, {steps} no-op steps: each");
            let besides =
                format!("{} events, peak {} MiB; {} ns a step for parsing", ours.events, ours.peak_mib, more[0]);
            let peak_mib = ours.peak_mib;
            let ours = Figure::ns(ours.ns);
            let theirs = match (&peer, &failed) {
                _ if steps >= HUGE => Err("not started".to_owned()),
                (None, _) => Err("not built".to_owned()),
                (Some(_), Some(why)) => Err(format!("{why} with fewer")),
                (Some(peer), None) => figures(&mut peer.command(), shape, steps, if steps < MANY { rounds } else { 1 }),
            };
            match theirs {
                Ok((Measured { ns, events, peak_mib }, _)) => {
                    let besides = format!("{besides}; theirs: {events} events seen, peak {peak_mib} MiB");
                    table.against(what, &ours, &Figure::ns(ns).of("hm-exec 0.0.9"), besides);
                }
                Err(why) => {
                    table.alone(what, &ours, format!("hm-exec 0.0.9: {why}"), besides);
                    failed = failed.or(Some(why));
                }
            }
            if steps >= HUGE {
                let all = Figure::ms(Duration::from_millis(more[1]));
                let what = format!("{shape}, {steps} no-op steps: from the text to the outcome");
                table.alone(what, &all, "", format!("peak {peak_mib} MiB, the text included"));
            }
        }
    }
}
