//! The cost of steps on an engine that speaks the Remote Execution API: an engine of the tests, whose worker
//! is this machine.
//!
//! - A no-op step on a large image and on a small one, and over a source of 20,000 files, with and without a
//!   directory in which the worker keeps layers. The other side is the same step in the sandbox.
//! - The memory that sixteen such steps hold at once: what all of the machine's in-memory filesystems have
//!   more than before.
//! - What the client needs for steps of which 2,000 are in flight: calls, bytes, processor time and memory.
//!   The engine is a process of its own there, waits until it has so many, and answers without running them.
//!
//! `HM_STEP=.../hm-step cargo bench --bench cloud`

#![allow(clippy::unwrap_used, reason = "a bench panics on errors")]

#[path = "../tests/it/support/backends.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod backends;
mod common;
#[path = "../tests/it/support/images.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod images;
#[path = "common/large_image.rs"]
mod large_image;
#[path = "../tests/it/support/programs.rs"]
mod programs;
#[path = "../tests/it/support/run_meta.rs"]
mod run_meta;
#[path = "../tests/it/support/sandbox.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod sandbox;
#[path = "../tests/it/support/stock_engine/mod.rs"]
#[allow(dead_code, reason = "the bench needs less of it than the tests")]
mod stock_engine;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use common::{Effort, Figure, Table, median, spread};
use futures_util::future::join_all;
use hm_exec::{
    BuildStatus, Engine, Plan, RunRequest, RunnerSet,
    remote::EndpointOptions,
    runner::{StepRunner, cloud::CloudRunner},
};
use images::Image;
use programs::hm;
use rustix::time::{ClockId, clock_gettime};
use sandbox::{Ask, Bench, Run};
use serde_json::json;
use stock_engine::{Habits, StockEngine};
use tokio::runtime::Runtime;

const SERVE: &str = "--serve";
/// The size of the large image, and the number of its files.
const IMAGE: (usize, usize) = (188 << 20, 6_000);
/// The number of steps that hold memory at once.
const AT_ONCE: usize = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == SERVE) {
        return serve(arguments[at + 1].parse().unwrap());
    }
    let effort = Effort::asked();
    let table = Table::new("cloud");
    let program = std::env::var_os("HM_STEP").map(PathBuf::from).filter(|program| program.exists());
    let Some(program) = program.filter(|_| images::has_busybox()) else {
        let missing = "HM_STEP names no hm-step, or there is no busybox";
        return table.alone("no-op step through an engine", &Figure::ms(Duration::ZERO), missing, "not measured");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let top = tempfile::tempdir().unwrap();
    let image = |name: &str, image: &Image| {
        image.write_oci(&top.path().join(name), "it");
        format!("oci:{}:it", top.path().join(name).display())
    };
    let lab = Lab { program, runtime, rounds: effort.pick(40, 2) };
    let small = image("small", &Image::shell());
    // First, because it asks for the most memory that this process ever had.
    lab.in_flight(&table, &small, effort.pick((2_000, 5), (20, 2)));
    let (bytes, files) = effort.pick(IMAGE, (1 << 20, 50));
    let large = image("large", &large_image::large(bytes, files));
    let many = effort.pick(20_000, 100);
    lab.no_op(&table, "image of busybox", &small, 0);
    lab.no_op(&table, &format!("image of {} MiB in {files} files", bytes >> 20), &large, 0);
    lab.no_op(&table, &format!("{many} source files"), &small, many);
    lab.memory(&table, &large);
}

/// What all measurements need.
struct Lab {
    program: PathBuf,
    runtime: Runtime,
    rounds: usize,
}

/// An engine, a client of it with a store and a source of its own, and a run.
struct Client {
    runner: CloudRunner,
    run: Run,
    _bench: Bench,
    engine: StockEngine,
}

impl Client {
    fn step(&mut self, runtime: &Runtime, image: &str, command: &str) -> Duration {
        let input = self.run.input(Ask::new(command).image(image));
        let started = Instant::now();
        let ended = runtime.block_on(self.runner.execute(&self.run.ctx, input));
        let took = started.elapsed();
        let ended = ended.unwrap_or_else(|error| panic!("{}", error.to_line()));
        assert!(ended.exit_code == 0 && ended.committed_snapshot.is_some());
        took
    }
}

impl Lab {
    /// Returns a client of an engine whose worker keeps layers in `cache`, if that is some directory.
    fn client(&self, cache: Option<&Path>, sources: usize) -> Client {
        let (bench, engine) = (Bench::new(), StockEngine::start(Habits { slots: AT_ONCE, ..Habits::nativelink() }));
        write_sources(&bench.source(), sources);
        let mut builder = CloudRunner::builder().endpoint(engine.options()).store(bench.store.clone());
        if let Some(cache) = cache {
            builder = builder.platform_property("hm-layer-cache", cache.display().to_string());
        }
        let runner = builder.helper(hm()).step_program(&self.program).build();
        Client { runner, run: bench.run(), _bench: bench, engine }
    }

    /// Measures steps that do nothing, beside the same in the sandbox.
    fn no_op(&self, table: &Table, what: &str, image: &str, sources: usize) {
        let cache = tempfile::tempdir().unwrap();
        let mut clients = [self.client(Some(cache.path()), sources), self.client(None, sources)];
        let sandbox = Bench::new();
        write_sources(&sandbox.source(), sources);
        let mut run = sandbox.run();
        let mut here = || {
            let started = Instant::now();
            let ended = self.runtime.block_on(sandbox.step(&mut run, Ask::new(":").image(image)));
            assert!(ended.unwrap().committed_snapshot.is_some());
            started.elapsed()
        };
        here();
        let first = clients.each_mut().map(|client| client.step(&self.runtime, image, ":"));
        let (mut times, mut theirs) = ([Vec::new(), Vec::new()], Vec::new());
        for _ in 0..self.rounds {
            for (client, times) in clients.iter_mut().zip(&mut times) {
                times.push(client.step(&self.runtime, image, ":"));
            }
            theirs.push(here());
        }
        let theirs = Figure::ms(median(&mut theirs)).of("sandbox");
        for (at, how) in ["worker keeps layers", "worker keeps nothing"].into_iter().enumerate() {
            let traffic = clients[at].engine.traffic();
            let besides = format!(
                "{}; the first: {}; {:.1} calls a step",
                spread(&mut times[at]),
                Figure::ms(first[at]),
                traffic.calls() as f64 / (self.rounds + 1) as f64
            );
            let what = format!("no-op step, {what}, {how}");
            table.against(what, &Figure::ms(median(&mut times[at])), &theirs, besides);
        }
    }

    /// Measures how much memory the filesystems of steps take that run at once.
    fn memory(&self, table: &Table, image: &str) {
        let cache = tempfile::tempdir().unwrap();
        let peaks = [Some(cache.path()), None].map(|cache| {
            let mut client = self.client(cache, 0);
            client.step(&self.runtime, image, ":");
            let inputs: Vec<_> = (0..AT_ONCE).map(|_| client.run.input(Ask::new("sleep 1").image(image))).collect();
            let (is_over, before) = (AtomicBool::new(false), shared_memory());
            thread::scope(|scope| {
                let watch = scope.spawn(|| {
                    let mut peak = before;
                    while !is_over.load(Relaxed) {
                        peak = peak.max(shared_memory());
                        thread::sleep(Duration::from_millis(10));
                    }
                    peak.saturating_sub(before)
                });
                let steps = inputs.into_iter().map(|input| client.runner.execute(&client.run.ctx, input));
                let ended = self.runtime.block_on(join_all(steps));
                assert!(ended.into_iter().all(|step| step.is_ok_and(|step| step.exit_code == 0)));
                is_over.store(true, Relaxed);
                watch.join().unwrap()
            })
        });
        let [kept, nothing] = peaks.map(|peak| Figure::new(peak as f64 / (1 << 20) as f64, "MiB"));
        let what = format!("memory of {AT_ONCE} steps at once, the larger image, worker keeps layers");
        table.against(what, &kept, &nothing.of("worker keeps nothing"), "of all in-memory filesystems");
    }

    /// Measures the client with `width` steps in flight, `waves` times.
    fn in_flight(&self, table: &Table, image: &str, (width, waves): (usize, usize)) {
        let bench = Bench::new();
        let mut server = Command::new(std::env::current_exe().unwrap())
            .args([SERVE, &width.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut answers = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
        let url = answers.next().unwrap();
        let jobs = NonZeroUsize::new(width).unwrap();
        let cloud = CloudRunner::builder().endpoint(EndpointOptions::new(url)).store(bench.store.clone());
        let runners = Runners { cloud: cloud.jobs(jobs).helper(hm()).step_program(&self.program).build() };
        let engine = Engine::builder(runners).parallelism(jobs).build().unwrap();
        let mut build = |steps: usize| {
            let plan = Plan::parse(pipeline(steps, image)).unwrap();
            self.runtime.block_on(async {
                let request = RunRequest::new(plan, bench.source());
                let (mut events, control) = engine.start(request).await.unwrap().into_parts();
                while events.next().await.is_some() {}
                let outcome = control.wait().await.unwrap();
                assert_eq!(outcome.status, BuildStatus::Passed, "{outcome:?}");
            });
            // The engine prints its counts for each line.
            server.stdin.as_ref().unwrap().write_all(b"\n").unwrap();
            let counts = answers.next().unwrap();
            let counts: Vec<u64> = counts.split(' ').map(|count| count.parse().unwrap()).collect();
            <[u64; 3]>::try_from(counts).unwrap()
        };
        // The step that is run, whose result all others have.
        let before = build(1);
        let memory = peak_memory();
        let (began, used) = (Instant::now(), processor_time());
        let steps = width * waves;
        let after = build(steps);
        let (took, used, memory) = (began.elapsed(), processor_time() - used, peak_memory() - memory);
        let each = |at: usize| (after[at] - before[at]) as f64 / steps as f64;
        let time = Figure::new(used.as_secs_f64() * 1e6 / steps as f64, "us");
        let besides = format!(
            "processor time of the client; {:.1} calls, {:.0} bytes sent, {:.0} received; {:.1} KiB of memory for each \
             in flight; {steps} steps in {:.1} s",
            each(0),
            each(1),
            each(2),
            memory as f64 / 1024.0 / width as f64,
            took.as_secs_f64()
        );
        table.alone(format!("no-op step, {width} in flight: each"), &time, "", besides);
        drop(server.stdin.take());
        assert!(server.wait().unwrap().success());
    }
}

#[derive(Debug, RunnerSet)]
struct Runners {
    #[runner(default)]
    cloud: CloudRunner,
}

/// Serves an engine that answers when `width` Actions wait, and has at most a hundred calls on a connection.
/// Prints its address, and for each line of standard input the calls and bytes so far.
#[allow(clippy::print_stdout, reason = "the bench reads it")]
fn serve(width: usize) {
    let engine = StockEngine::start(Habits { replays: width, max_calls: Some(100), ..Habits::default() });
    println!("{}", engine.url());
    for _ in std::io::stdin().lines() {
        let ((received, sent), calls) = (engine.traffic().bytes(), engine.traffic().calls());
        println!("{calls} {received} {sent}");
    }
}

/// Returns the IR of independent steps.
fn pipeline(steps: usize, image: &str) -> String {
    let step =
        |step| json!({ "step": { "key": format!("s{step}"), "cmd": format!(": {step}"), "image": image }, "env": {} });
    let nodes: Vec<_> = (0..steps).map(step).collect();
    let graph = json!({ "nodes": nodes, "node_holes": [], "edge_property": "directed", "edges": [] });
    json!({ "version": "0", "graph": graph }).to_string()
}

fn write_sources(source: &Path, files: usize) {
    for file in 0..files {
        let dir = source.join(format!("dir-{}", file / 100));
        if file % 100 == 0 {
            fs::create_dir(&dir).unwrap();
        }
        fs::write(dir.join(file.to_string()), format!("{file}\n").repeat(20)).unwrap();
    }
}

/// Returns how much memory the machine's in-memory filesystems take.
fn shared_memory() -> u64 {
    kibibytes("/proc/meminfo", "Shmem:")
}

/// Returns the most memory that this process had.
fn peak_memory() -> u64 {
    kibibytes("/proc/self/status", "VmHWM:")
}

fn kibibytes(file: &str, name: &str) -> u64 {
    let mut text = String::new();
    fs::File::open(file).unwrap().read_to_string(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// Returns the processor time of all threads of this process.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}
