//! The cost of events and output: lines from a step to what `hm run` prints on a pipe and on a terminal,
//! compared with the same command in a shell; logs compressed, compared with `zstd`; lines kept in the
//! journal compared with lines in a plain file; state events.
//!
//! `cargo bench --bench logs`

#![allow(clippy::unwrap_used, reason = "a bench panics on errors")]

mod common;
#[path = "../tests/it/support/run_meta.rs"]
mod run_meta;

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{Effort, Figure, Table, median, spread, thread_time};
use futures_util::{FutureExt, StreamExt};
use hm_exec::{
    BuildStatus, EventStream, StepStatus,
    event::{EventBus, EventWriter, RunDir, StateEvent, StdStream, create, step_id},
    plan::StepIndex,
    runner::Secrets,
};
use run_meta::run_meta;
use rustix::{
    pipe::{PipeFlags, pipe_with},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::json;
use uuid::Uuid;

const RUN: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);
const LINE: &[u8] = b"the quick brown fox jumps over the lazy dog, number 0123456789\n";

fn main() {
    let effort = Effort::asked();
    let lines = effort.pick(1_000_000, 20_000);
    // Figures in this thread's CPU time are minima, because interruptions only ever add time.
    let rounds = effort.pick(7, 1);
    let table = Table::new("logs");
    shown(&table, effort);
    compressed(&table, effort);
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

/// A program that prints lines: its name in the table, its command, and the number of lines.
struct Printer {
    what: &'static str,
    command: String,
    lines: u32,
}

/// Measures from a step to a reader of `hm run`, and from the same command in a shell to the same reader, on
/// a pipe and on a pseudo-terminal. All sides take turns. `HM_BEFORE` names an earlier `hm` to compare with.
fn shown(table: &Table, effort: Effort) {
    let lines = effort.pick(2_000_000, 2_000);
    let rounds = effort.pick(7, 1);
    let top = tempfile::tempdir().unwrap();
    let source = top.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("lines"), LINE.repeat(lines as usize)).unwrap();
    let awk = format!("BEGIN {{ for (i = 0; i < {lines}; i++) print \"line\", i, \"of the output of a step\" }}");
    let each = lines / 20;
    let one_by_one =
        format!("i=0; while [ $i -lt {each} ]; do echo \"line $i of the output of a step\"; i=$((i+1)); done");
    let printers = [
        Printer { what: "by awk", command: format!("awk '{awk}'"), lines },
        Printer { what: "by cat", command: "cat lines".into(), lines },
        Printer { what: "each written by sh", command: one_by_one, lines: each },
    ];
    let old = std::env::var_os("HM_BEFORE");
    let hm = |program: &OsStr, name: &str, args: &[&str]| {
        let mut hm = Command::new(program);
        hm.arg("run").args(args).arg("-f").arg(top.path().join(name)).arg("-d").arg(&source);
        hm.env("HM_CACHE_DIR", top.path().join(format!("store-{}", program == env!("CARGO_BIN_EXE_hm"))));
        hm.env("HM_CACHE_GC", "off").env("TERM", "xterm");
        hm
    };
    let ours = OsStr::new(env!("CARGO_BIN_EXE_hm"));
    let sh = |command: &str| {
        let mut sh = Command::new("sh");
        sh.args(["-c", command]).current_dir(&source);
        sh
    };
    fs::write(top.path().join("nothing.json"), ir("true")).unwrap();
    for Printer { what, command, lines } in &printers {
        fs::write(top.path().join("ir.json"), ir(&format!("cd /workspace; {command}"))).unwrap();
        type Way = (&'static str, &'static [&'static str], bool);
        let ways: [Way; 4] = [
            ("human to a pipe", &["--format", "human"], false),
            ("JSON to a pipe", &["--format", "json"], false),
            ("human on a terminal", &["--format", "human"], true),
            ("progress on a terminal", &["--format", "progress"], true),
        ];
        let mut nothing = vec![];
        let mut times = ways.map(|_| [vec![], vec![], vec![]]);
        for round in 0..=rounds {
            let theirs = [(false, format!("{command} | cat")), (true, command.clone())].map(|(terminal, command)| {
                let (took, seen) = read(&mut sh(&command), terminal);
                assert_eq!(seen, *lines as usize, "{command}");
                took
            });
            nothing.push(read(&mut hm(ours, "nothing.json", &["--format", "json"]), false).0);
            for ((way, args, terminal), times) in ways.iter().zip(&mut times) {
                let (took, seen) = read(&mut hm(ours, "ir.json", args), *terminal);
                assert!(*way == "progress on a terminal" || seen >= *lines as usize, "{seen} of {lines}: {way}");
                let old = old.as_ref().map(|old| read(&mut hm(old, "ir.json", args), *terminal).0);
                // The first round freezes the source.
                if round > 0 {
                    times[0].push(took);
                    times[1].push(theirs[usize::from(*terminal)]);
                    times[2].extend(old);
                }
            }
        }
        let nothing = Figure::ms(median(&mut nothing));
        for ((way, _, terminal), [ours, theirs, old]) in ways.iter().zip(&mut times) {
            let mut besides = format!("{}; a run that prints nothing: {nothing}", spread(ours));
            if !old.is_empty() {
                besides.push_str(&format!("; before: {}", Figure::ms(median(old))));
            }
            let theirs = Figure::ms(median(theirs)).of(if *terminal { "`sh`" } else { "`sh \\| cat`" });
            table.against(format!("{lines} lines {what}, {way}"), &Figure::ms(median(ours)), &theirs, besides);
        }
    }
}

fn ir(command: &str) -> String {
    let step = json!({ "key": "lines", "cmd": command, "image": "host" });
    let nodes = json!([{ "step": step, "env": {} }]);
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": [] });
    json!({ "version": "0", "graph": graph }).to_string()
}

/// Returns how long `command` takes to end, and how many lines it prints to a pipe or to a terminal.
fn read(command: &mut Command, terminal: bool) -> (Duration, usize) {
    let begin = Instant::now();
    let (mut reader, mut child) = if terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = File::options()
            .read(true)
            .write(true)
            .open(OsStr::from_bytes(ptsname(&master, Vec::new()).unwrap().as_bytes()));
        let slave = slave.unwrap();
        command.stdout(slave.try_clone().unwrap()).stderr(slave);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        // The parent's copies of the terminal, which would keep it open.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        (File::from(master), child)
    } else {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        command.stdout(theirs);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        command.stdout(Stdio::null());
        (File::from(ours), child)
    };
    let (mut buffer, mut lines) = (vec![0; 64 << 10], 0);
    // The end of a terminal is an error.
    while let Ok(read @ 1..) = reader.read(&mut buffer) {
        lines += memchr::memchr_iter(b'\n', &buffer[..read]).count();
    }
    assert!(child.wait().unwrap().success(), "{command:?}");
    (begin.elapsed(), lines)
}

/// Measures how long it takes to compress the log of a run, beside the program `zstd`, and how small it gets.
fn compressed(table: &Table, effort: Effort) {
    let lines = effort.pick(2_000_000, 20_000);
    let top = tempfile::tempdir().unwrap();
    let text: Vec<u8> = (0..lines)
        .flat_map(|n: u32| {
            let took = n.wrapping_mul(2_654_435_761) >> 20;
            format!("[{n:>7}/{lines}] compiling module_{:04} ({took} ms): no warnings\n", took * 7 % 1000).into_bytes()
        })
        .collect();
    let raw = top.path().join("raw");
    fs::write(&raw, &text).unwrap();
    let (mut ours, mut theirs, mut len) = (vec![], vec![], 0);
    for round in 0..effort.pick(5, 1) {
        let dir = top.path().join(round.to_string());
        fs::create_dir_all(dir.join("logs")).unwrap();
        fs::write(dir.join("journal"), "").unwrap();
        fs::write(dir.join("logs/0-1.log"), &text).unwrap();
        let begin = Instant::now();
        hm_exec::event::compress_logs(&dir).unwrap();
        ours.push(begin.elapsed());
        len = fs::metadata(dir.join("logs/0-1.log.zst")).unwrap().len();
        let begin = Instant::now();
        let mut zstd = Command::new("zstd");
        if zstd.args(["-q", "-f", "-3", "--single-thread"]).arg(&raw).status().is_ok_and(|status| status.success()) {
            theirs.push(begin.elapsed());
        }
    }
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let besides = format!("{:.1} MB become {:.1} MB", megabytes(text.len() as u64), megabytes(len));
    let (what, figure) = (format!("compressing a log of {lines} lines"), Figure::ms(median(&mut ours)));
    match theirs.is_empty() {
        true => table.alone(what, &figure, "zstd: not installed", besides),
        false => table.against(what, &figure, &Figure::ms(median(&mut theirs)).of("`zstd -3`"), besides),
    }
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
            details: Default::default(),
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
