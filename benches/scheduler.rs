//! What a step costs beside what it does: no-op steps on a current-thread runtime, with a subscriber that reads every
//! event. Prints one table.
//!
//! `cargo bench --bench scheduler [STEPS...]`

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use hm_exec::{
    BuildEvent, BuildStatus, Engine, ExecutorInput, Plan, RunRequest, RunnerSet, StepResult,
    runner::{RunnerError, StepContext, StepRunner},
};

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

type Shape = fn(usize) -> Vec<(usize, usize)>;

const SHAPES: [(&str, Shape); 4] = [("chain", chain), ("fan", fan), ("layers", layers), ("random", random)];

fn chain(steps: usize) -> Vec<(usize, usize)> {
    (1..steps).map(|step| (step - 1, step)).collect()
}

fn fan(steps: usize) -> Vec<(usize, usize)> {
    (1..steps).map(|step| (0, step)).collect()
}

/// Layers of a hundred, each step after three of the layer before.
fn layers(steps: usize) -> Vec<(usize, usize)> {
    let parents = |step: usize| (0..3).map(move |nth| (step / 100 - 1) * 100 + (step + nth * 31) % 100);
    (100..steps).flat_map(|step| parents(step).map(move |parent| (parent, step))).collect()
}

/// Up to three parents anywhere before.
fn random(steps: usize) -> Vec<(usize, usize)> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).expect("31 bits") % limit
    };
    let mut edges = Vec::new();
    for step in 1..steps {
        let mut parents: Vec<_> = (0..=below(3)).map(|_| below(step)).collect();
        parents.sort_unstable();
        parents.dedup();
        edges.extend(parents.into_iter().map(|parent| (parent, step)));
    }
    edges
}

/// The IR. A step builds in its first parent.
fn ir_json(steps: usize, edges: &[(usize, usize)]) -> String {
    let mut json = String::from(r#"{"version":"0","graph":{"nodes":["#);
    for step in 0..steps {
        let comma = if step == 0 { "" } else { "," };
        write!(json, r#"{comma}{{"step":{{"key":"s{step}","cmd":"true"}},"env":{{}}}}"#).expect("a string");
    }
    json.push_str(r#"],"node_holes":[],"edge_property":"directed","edges":["#);
    let mut last = None;
    for (at, (from, to)) in edges.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let kind = if last.replace(to) == Some(to) { "depends_on" } else { "builds_in" };
        write!(json, r#"{comma}[{from},{to},"{kind}"]"#).expect("a string");
    }
    json.push_str("]}}");
    json
}

struct Measured {
    parse: Duration,
    run: Duration,
    cpu: Duration,
    events: u64,
}

fn measure(json: &str) -> Measured {
    let begin = Instant::now();
    let plan = Plan::parse(json).expect("a valid plan");
    let parse = begin.elapsed();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let engine = Engine::builder(Runners { noop: Noop }).build().expect("an engine");
        let (begin, begin_cpu) = (Instant::now(), cpu_time());
        let handle = engine.start(RunRequest::new(plan, "/")).await.expect("a build");
        let (mut stream, control) = handle.into_parts();
        let (mut events, mut last) = (0, None);
        while let Some(event) = stream.next().await {
            events += 1;
            last = Some(event);
        }
        let outcome = control.wait().await.expect("an outcome");
        let (run, cpu) = (begin.elapsed(), cpu_time() - begin_cpu);
        assert_eq!(outcome.status, BuildStatus::Passed);
        assert!(matches!(last, Some(BuildEvent::BuildEnd { seq, .. }) if seq + 1 == events));
        Measured { parse, run, cpu, events }
    })
}

/// The processor time of this process: beside the wall clock's it tells how busy the machine was with other things.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.try_into().expect("less than a second"))
}

/// The most memory the process has had since [`forget_peak`], in MiB.
fn peak_rss_mib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}

fn forget_peak() {
    // Where the system doesn't let us, peaks are those of the process so far.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn main() {
    let asked: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if asked.is_empty() { vec![1_000, 10_000, 100_000] } else { asked };
    println!(
        "| shape | steps | edges | events | parse, ns/step | run, ns/step (best of 5) | its CPU time | peak RSS, MiB |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    for (name, shape) in SHAPES {
        for &steps in &sizes {
            let edges = shape(steps);
            let json = ir_json(steps, &edges);
            forget_peak();
            let best = (0..5).map(|_| measure(&json)).min_by_key(|measured| measured.run).expect("five runs");
            let per_step = |duration: Duration| duration.as_nanos() / steps as u128;
            println!(
                "| {name} | {steps} | {} | {} | {} | {} | {} | {} |",
                edges.len(),
                best.events,
                per_step(best.parse),
                per_step(best.run),
                per_step(best.cpu),
                peak_rss_mib().map_or_else(|| "?".to_owned(), |mib| mib.to_string()),
            );
        }
    }
}
