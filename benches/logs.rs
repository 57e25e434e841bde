//! What events and output cost: `cargo bench --bench logs`.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints, and may panic")]

use std::{fs::File, os::unix::fs::FileExt, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt};
use hm_exec::{
    BuildRef, BuildStatus, EventStream, StepStatus,
    event::{EventBus, EventWriter, PlanSummary, RunDir, RunMeta, StateEvent, StdStream, StepMeta, create, step_id},
    plan::StepIndex,
    runner::Secrets,
};
use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

const RUN: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);

/// Each figure is the least of so many runs: interruptions only ever add.
const RUNS: usize = 7;

fn main() {
    for steps_per_flush in [1, 8, 1000] {
        let [header, written, read] = least(|| states(100_000, steps_per_flush));
        println!(
            "state events, {steps_per_flush:>4} steps a flush: {:>4} ns a step (header {header}, emit and flush {written}, \
             read {read})",
            header + written + read
        );
    }
    let mut secrets = Secrets::new();
    secrets.insert("TOKEN", "hunter2-hunter2-hunter2");
    secrets.insert("KEY", "-----BEGIN KEY-----\n".to_owned() + &"MIIEowIBAAKCAQEA0123456789abcdef\n".repeat(50));
    for (secrets, what) in [(Secrets::new(), "no secrets"), (secrets, "two secrets")] {
        let [plain, written, read] = least(|| lines(&secrets));
        println!("lines, {what}: {written} ns a line written (plain file {plain}), {read} ns a line read as an event");
    }
}

fn least(mut run: impl FnMut() -> [u128; 3]) -> [u128; 3] {
    let mut least = [u128::MAX; 3];
    for _ in 0..RUNS {
        least = std::array::from_fn({
            let run = run();
            move |at| least[at].min(run[at])
        });
    }
    least
}

fn meta(steps: u32) -> RunMeta {
    let key = |step: u32| Arc::<str>::from(format!("step-{step}"));
    RunMeta {
        build: BuildRef { run_id: RUN, number: None, org: None, pipeline: "bench".into() },
        plan: PlanSummary { step_count: steps as usize, chain_count: 1, default_runner: "noop".into() },
        started_at: chrono::Utc::now(),
        steps: (0..steps)
            .map(|step| StepMeta {
                key: key(step),
                display_name: key(step),
                chain_idx: 0,
                parent: step.checked_sub(1).map(StepIndex),
                image: None,
                runner: 0,
            })
            .collect(),
        runners: vec!["noop".into()],
    }
}

/// The three events of a step's life (`step_queued`, `step_start`, `step_end`), written and read.
fn states(steps: u32, steps_per_flush: u32) -> [u128; 3] {
    let meta = meta(steps);
    let mut clock = Clock::new(steps);
    let (mut writer, _bus, events) = create(RunDir::Temporary, meta, &Secrets::new()).unwrap();
    let header = clock.lap();
    for step in 0..steps {
        let (step, at_ms) = (StepIndex(step), u64::from(step));
        writer.emit(at_ms, StateEvent::StepStart { step, attempt: 1 });
        let status = StepStatus::Passed;
        let (snapshot, message) = (None, None);
        let ended = StateEvent::StepEnd { step, attempt: 1, status, exit_code: 0, duration_ms: 1, snapshot, message };
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

/// A million lines from one step, in chunks as a pipe gives them.
fn lines(secrets: &Secrets) -> [u128; 3] {
    const LINES: u32 = 1_000_000;
    let mut chunk = Vec::new();
    while chunk.len() < 64 << 10 {
        chunk.extend_from_slice(b"the quick brown fox jumps over the lazy dog, number 0123456789\n");
    }
    let per_chunk = u32::try_from(chunk.iter().filter(|&&byte| byte == b'\n').count()).unwrap();
    let chunks = LINES / per_chunk;

    let dir = tempfile::tempdir().unwrap();
    let mut clock = Clock::new(chunks * per_chunk);
    let file = File::create_new(dir.path().join("plain")).unwrap();
    for at in 0..chunks {
        file.write_all_at(&chunk, u64::from(at) * chunk.len() as u64).unwrap();
    }
    let plain = clock.lap();

    let (mut writer, bus, events) = create(RunDir::Kept(dir.path().join("run")), meta(1), secrets).unwrap();
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

/// Nanoseconds per item, of this thread's own time (the kernel's on its behalf included): other processes do not count.
struct Clock {
    items: u32,
    last: Duration,
}

impl Clock {
    fn new(items: u32) -> Self {
        Self { items, last: thread_time() }
    }

    fn lap(&mut self) -> u128 {
        let now = thread_time();
        (now - std::mem::replace(&mut self.last, now)).as_nanos() / u128::from(self.items)
    }
}

fn thread_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}
