//! The cost of events and output: lines from a step to the JSON stream of `hm run` compared with `cat`
//! through a pipe; lines kept in the journal compared with lines in a plain file; state events.
//!
//! `cargo bench --bench logs`

#![allow(clippy::unwrap_used, reason = "a bench panics on errors")]

mod common;
#[path = "../tests/it/support/run_meta.rs"]
mod run_meta;

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{Effort, Figure, Table, median, spread};
use futures_util::{FutureExt, StreamExt};
use hm_exec::{
    BuildStatus, EventStream, StepStatus,
    event::{EventBus, EventWriter, RunDir, StateEvent, StdStream, create, step_id},
    plan::StepIndex,
    runner::Secrets,
};
use run_meta::run_meta;
use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

const RUN: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);
const LINE: &[u8] = b"the quick brown fox jumps over the lazy dog, number 0123456789\n";

fn main() {
    let effort = Effort::asked();
    let lines = effort.pick(1_000_000, 20_000);
    // Figures in this thread's CPU time are minima, because interruptions only ever add time.
    let rounds = effort.pick(7, 1);
    let table = Table::new("logs");
    stream(&table, lines, rounds);
    let mut secrets = Secrets::new();
    secrets.insert("TOKEN", "hunter2-hunter2-hunter2");
    secrets.insert("KEY", "-----BEGIN KEY-----\n".to_owned() + &"MIIEowIBAAKCAQEA0123456789abcdef\n".repeat(50));
    for (secrets, what) in [(Secrets::new(), "no secrets"), (secrets, "two secrets")] {
        let [plain, written, read] = least(rounds, || kept(&secrets, lines));
        let theirs = Figure::ns(plain).of("plain file");
        let besides = format!("{} to read it as an event", Figure::ns(read));
        table.against(format!("a line of output kept, {what}"), &Figure::ns(written), &theirs, besides);
    }
    for steps_per_flush in [1, 8, 1000] {
        let [header, written, read] = least(rounds, || states(effort.pick(100_000, 1000), steps_per_flush));
        let what = format!("three state events of a step, {steps_per_flush} steps a write");
        let besides = format!(
            "{} of it to write, {} to read, {} for the header",
            Figure::ns(written),
            Figure::ns(read),
            Figure::ns(header)
        );
        table.alone(what, &Figure::ns(header + written + read), "", besides);
    }
}

/// Measures from a step to a reader of `hm run --format json`, and from `cat` to the same reader.
fn stream(table: &Table, lines: u32, rounds: usize) {
    let top = tempfile::tempdir().unwrap();
    let path = |name: &str| top.path().join(name);
    fs::create_dir(path("source")).unwrap();
    fs::write(path("source/lines"), LINE.repeat(lines as usize)).unwrap();
    let step = r#"{"step":{"key":"lines","cmd":"cat /workspace/lines","image":"host"},"env":{}}"#;
    let graph = format!(r#"{{"nodes":[{step}],"node_holes":[],"edge_property":"directed","edges":[]}}"#);
    fs::write(path("ir.json"), format!(r#"{{"version":"0","graph":{graph}}}"#)).unwrap();
    let mut hm = Command::new(env!("CARGO_BIN_EXE_hm"));
    hm.args(["run", "--format", "json", "-f"]).arg(path("ir.json")).arg("-d").arg(path("source"));
    hm.env("HM_CACHE_DIR", path("store")).env("HM_CACHE_GC", "off");
    let mut cat = Command::new("cat");
    cat.arg(path("source/lines"));
    let (mut ours, mut theirs) = (vec![], vec![]);
    for round in 0..=rounds {
        let (took, seen) = read(&mut hm);
        assert!(seen > lines as usize, "{seen} events");
        let (plain, seen) = read(&mut cat);
        assert_eq!(seen, lines as usize);
        // The first round freezes the source.
        if round > 0 {
            ours.push(took);
            theirs.push(plain);
        }
    }
    let (us, them) = (median(&mut ours), median(&mut theirs));
    let rate = |time: Duration| format!("{:.2} million lines a second", f64::from(lines) / time.as_secs_f64() / 1e6);
    let besides = format!("{}, theirs: {}; {}", rate(us), rate(them), spread(&mut ours));
    let what = format!("{lines} lines from a step to JSON, with all of `hm run`");
    table.against(what, &Figure::ms(us), &Figure::ms(them).of("`cat` to a pipe"), besides);
}

/// Returns how long `command` takes to end, and how many lines it prints to a pipe.
fn read(command: &mut Command) -> (Duration, usize) {
    let begin = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (mut buffer, mut lines) = (vec![0; 64 << 10], 0);
    loop {
        match stdout.read(&mut buffer).unwrap() {
            0 => break,
            read => lines += memchr::memchr_iter(b'\n', &buffer[..read]).count(),
        }
    }
    assert!(child.wait().unwrap().success(), "{command:?}");
    (begin.elapsed(), lines)
}

/// Returns the minimum of each figure.
fn least(rounds: usize, mut round: impl FnMut() -> [f64; 3]) -> [f64; 3] {
    (0..rounds).fold([f64::INFINITY; 3], |least, _| {
        let round = round();
        std::array::from_fn(|at| least[at].min(round[at]))
    })
}

/// Measures the three events of a step (`step_queued`, `step_start`, `step_end`), written and read.
fn states(steps: u32, steps_per_flush: u32) -> [f64; 3] {
    let meta = run_meta(RUN, steps);
    let mut clock = Clock::new(steps);
    let (mut writer, _bus, events) = create(RunDir::Temporary, meta, &Secrets::new()).unwrap();
    let header = clock.lap();
    for step in 0..steps {
        let (step, at_ms) = (StepIndex(step), u64::from(step));
        writer.emit(at_ms, StateEvent::StepStart { step, attempt: 1 });
        let status = StepStatus::Passed;
        let (snapshot, message) = (None, None);
        let ended = StateEvent::StepEnd {
            step,
            attempt: 1,
            status,
            exit_code: 0,
            duration_ms: 1,
            snapshot,
            message,
            artifacts: vec![],
        };
        writer.emit(at_ms, ended);
        if step.0 % steps_per_flush == 0 {
            writer.flush().unwrap();
        }
    }
    end(writer);
    let written = clock.lap();
    let seen = drain(events);
    let read = clock.lap();
    assert_eq!(seen, 2 + 3 * steps as usize + 1);
    [header, written, read]
}

/// Measures lines of one step, in chunks of the size that a pipe yields: to a plain file, to a journal, and
/// read from the journal.
fn kept(secrets: &Secrets, lines: u32) -> [f64; 3] {
    let per_chunk = u32::try_from((64 << 10) / LINE.len() + 1).unwrap();
    let chunk = LINE.repeat(per_chunk as usize);
    let chunks = lines / per_chunk;

    let dir = tempfile::tempdir().unwrap();
    let mut clock = Clock::new(chunks * per_chunk);
    let file = File::create_new(dir.path().join("plain")).unwrap();
    for at in 0..chunks {
        file.write_all_at(&chunk, u64::from(at) * chunk.len() as u64).unwrap();
    }
    let plain = clock.lap();

    let (mut writer, bus, events) = create(RunDir::Kept(dir.path().join("run")), run_meta(RUN, 1), secrets).unwrap();
    writer.emit(0, StateEvent::StepStart { step: StepIndex(0), attempt: 1 });
    clock.lap();
    for _ in 0..chunks {
        output(&bus, &chunk);
        writer.flush().unwrap();
    }
    end(writer);
    let written = clock.lap();
    let seen = drain(events);
    let read = clock.lap();
    assert_eq!(seen, 3 + 1 + (chunks * per_chunk) as usize + 1);
    [plain, written, read]
}

fn output(bus: &EventBus, bytes: &[u8]) {
    bus.output(step_id(RUN, StepIndex(0)), StdStream::Stdout, bytes).now_or_never().unwrap();
}

fn end(mut writer: EventWriter) {
    writer.emit(0, StateEvent::BuildEnd { status: BuildStatus::Passed, duration_ms: 1 });
    writer.flush().unwrap();
}

fn drain(events: EventStream) -> usize {
    events.count().now_or_never().unwrap()
}

/// Measures nanoseconds per item in this thread's CPU time (including the kernel's on its behalf), which
/// excludes other processes.
struct Clock {
    items: u32,
    last: Duration,
}

impl Clock {
    fn new(items: u32) -> Self {
        Self { items, last: thread_time() }
    }

    fn lap(&mut self) -> f64 {
        let now = thread_time();
        (now - std::mem::replace(&mut self.last, now)).as_secs_f64() * 1e9 / f64::from(self.items)
    }
}

fn thread_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}
