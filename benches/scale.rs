//! Builds of up to a million steps on a thousand workers, in virtual time: how far they are from the optimum,
//! and whether a step of a large build costs more than one of a small build.
//!
//! The durations of the steps are lognormal, as those of CI are. One attempt in a hundred breaks and is
//! retried, and one in a hundred of the steps for which nothing waits fails. The first rows compute such
//! builds with the policy alone. The others run them with the whole engine, on a clock that jumps to the next
//! timer. A makespan is given as a multiple of the lower bound, as in the bench `makespan`. It is the same on
//! every machine. The cost of a step is processor time.
//!
//! `cargo bench --bench scale [-- STEPS...]`

#![allow(clippy::print_stdout, reason = "a bench prints its figures")]
#![allow(clippy::unwrap_used, reason = "a bench panics on errors")]

mod common;
#[path = "common/shapes.rs"]
mod shapes;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    io,
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use common::{Effort, Figure, Table, median, thread_time};
use hm_exec::{
    BuildStatus, Engine, ExecutorInput, Plan, RunRequest, RunnerSet, StepResult,
    event::step_index,
    ir::{Edge, EdgeKind},
    plan::{Dag, StepIndex},
    runner::{RunnerError, StepContext, StepRunner},
    schedule::{AttemptEnd, Placement, Policy, Rules, priorities},
};
use shapes::{Random, ir_json};

const ROUNDS: usize = 3;
/// A step waits for up to three of this number of steps before it.
const NEAR: usize = 20_000;
/// The median of the durations, and the standard deviation of their logarithm. The mean is 33 s.
const MEDIAN_SECONDS: f64 = 20.0;
const SIGMA: f64 = 1.0;
/// The engine's retries, and the delay before the first.
const RETRIES: u32 = 2;
const BACKOFF: Duration = Duration::from_millis(100);

/// A build with the durations of its steps.
#[derive(Debug)]
struct Work {
    durations: Vec<Duration>,
    /// From parents to children, in the order of the children.
    edges: Vec<(usize, usize)>,
    has_children: Vec<bool>,
}

/// How an attempt ends in the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Exits(i32),
    Breaks,
}

impl Work {
    fn new(steps: usize) -> Self {
        let mut random = Random(0x5eed_0f40_b01d_face);
        let durations = (0..steps).map(|_| random.lognormal()).collect();
        let mut edges = Vec::new();
        let mut has_children = vec![false; steps];
        for step in steps / 100..steps {
            let mut parents: Vec<_> = (0..=random.below(3)).map(|_| random.below(step.clamp(1, NEAR))).collect();
            parents.sort_unstable();
            parents.dedup();
            for parent in parents.into_iter().map(|back| step.saturating_sub(back + 1)).filter(|&parent| parent < step)
            {
                has_children[parent] = true;
                edges.push((parent, step));
            }
        }
        Self { durations, edges, has_children }
    }

    /// Returns how long an attempt takes, and how it ends.
    fn attempt(&self, step: usize, attempt: u32) -> (Duration, End) {
        let mut random = Random((step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(attempt));
        // The first numbers after a seed are not random yet.
        (0..4).for_each(|_| _ = random.next());
        if attempt <= RETRIES && random.below(100) == 0 {
            (self.durations[step] / 3, End::Breaks)
        } else {
            (self.durations[step], End::Exits(i32::from(!self.has_children[step] && random.below(100) == 0)))
        }
    }

    fn dag(&self) -> Dag {
        let edge = |&(from, to): &(usize, usize)| Edge(from as u32, to as u32, EdgeKind::DependsOn);
        Dag::new(self.durations.len(), &self.edges.iter().map(edge).collect::<Vec<_>>()).expect("parents come first")
    }

    /// Returns the larger of the longest path and the work of each worker. No schedule is shorter.
    fn bound(&self, workers: usize) -> Duration {
        let mut work = Duration::ZERO;
        let mut path = Vec::with_capacity(self.durations.len());
        for step in 0..self.durations.len() {
            let (mut own, mut attempt) = (Duration::ZERO, 1);
            loop {
                let (time, end) = self.attempt(step, attempt);
                work += time;
                own += time;
                if end != End::Breaks {
                    break;
                }
                own += BACKOFF * 2_u32.pow(attempt - 1);
                attempt += 1;
            }
            path.push(own);
        }
        for parents in self.edges.chunk_by(|one, next| one.1 == next.1) {
            let before = parents.iter().map(|(parent, _)| path[*parent]).max().unwrap_or_default();
            path[parents[0].1] += before;
        }
        path.into_iter().max().unwrap_or_default().max(work / workers as u32)
    }
}

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 11).expect("53 bits") % limit
    }

    /// Returns a number between 0 and 1, but not 0.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a duration, by the transformation of Box and Muller.
    fn lognormal(&mut self) -> Duration {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        Duration::from_millis((1000.0 * MEDIAN_SECONDS * (SIGMA * normal).exp()) as u64)
    }
}

/// A simulated build: its makespan, and the processor time that it took.
struct Simulated {
    makespan: Duration,
    cost: Duration,
}

/// Computes a build with the policy alone.
fn with_policy(work: &Work, dag: &Dag, workers: usize) -> Simulated {
    let begin = thread_time();
    let believed: Vec<_> = work.durations.iter().copied().map(Some).collect();
    let placements = priorities(dag, &believed).into_iter();
    let placements: Vec<_> = placements.map(|priority| Placement { pool: 0, priority, cached: false }).collect();
    let limits = vec![NonZeroUsize::new(workers).unwrap()];
    let rules = Rules {
        limits,
        keep_going: true,
        retries: RETRIES,
        backoff: BACKOFF,
        outcomes: BTreeMap::new(),
        takers: BTreeMap::new(),
        memory: None,
    };
    let mut policy = Policy::new(dag, &placements, &rules);
    let mut now = Duration::ZERO;
    let mut running = BinaryHeap::new();
    while !policy.is_done() {
        policy.retry_due(now);
        while let Some(start) = policy.start_next() {
            let (time, _) = work.attempt(start.step.get(), start.attempt);
            running.push(Reverse((now + time, start.step, start.attempt)));
        }
        match (running.peek(), policy.next_retry()) {
            (Some(Reverse((end, ..))), Some(retry)) if retry < *end => now = retry,
            (None, Some(retry)) => now = retry,
            _ => {
                let Some(Reverse((end, step, attempt))) = running.pop() else { break };
                now = end;
                policy.attempt_ended(step, attempt_end(work.attempt(step.get(), attempt).1), now);
            }
        }
    }
    assert!(policy.is_done());
    Simulated { makespan: now, cost: thread_time() - begin }
}

fn attempt_end(end: End) -> AttemptEnd {
    match end {
        End::Exits(code) => AttemptEnd::Exited(code),
        End::Breaks => AttemptEnd::Infrastructure { retryable: true },
    }
}

/// A runner whose steps only take time.
#[derive(Debug)]
struct Sleeper {
    work: Arc<Work>,
}

impl StepRunner for Sleeper {
    const NAME: &'static str = "sleeper";

    async fn execute(&self, context: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        let step = step_index(input.run_id, input.step_id).map_or(0, StepIndex::get);
        let (time, end) = self.work.attempt(step, context.attempt);
        tokio::time::sleep(time).await;
        match end {
            End::Exits(exit_code) => Ok(StepResult::exited(exit_code)),
            End::Breaks => Err(RunnerError::infrastructure("reach the worker", io::Error::other("simulated"))),
        }
    }
}

#[derive(Debug, RunnerSet)]
struct Runners {
    #[runner(default)]
    sleeper: Sleeper,
}

/// Runs a build with the engine, from the plan to the outcome, with a subscriber that reads every event.
fn with_engine(work: &Arc<Work>, plan: &Plan, workers: usize) -> Simulated {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let runners = Runners { sleeper: Sleeper { work: Arc::clone(work) } };
        let engine = Engine::builder(runners).parallelism(NonZeroUsize::new(workers).unwrap()).build().unwrap();
        let mut request = RunRequest::new(plan.clone(), "/");
        request.options.keep_going = true;
        let nodes = plan.pipeline().nodes.iter().zip(&work.durations);
        request.durations = nodes.map(|(node, time)| (Arc::clone(&node.step.key), *time)).collect();
        let begin = thread_time();
        let (mut events, control) = engine.start(request).await.unwrap().into_parts();
        while events.next().await.is_some() {}
        let outcome = control.wait().await.unwrap();
        let cost = thread_time() - begin;
        assert_eq!(outcome.status, BuildStatus::Failed, "some steps fail");
        assert!(outcome.steps.iter().all(|step| step.attempts > 0), "no step waits for one that fails");
        Simulated { makespan: (outcome.finished_at - outcome.started_at).to_std().unwrap(), cost }
    })
}

fn main() {
    let effort = Effort::asked();
    let asked: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = match asked.is_empty() {
        true => effort.pick(vec![10_000, 100_000, 1_000_000], vec![500, 1_000]),
        false => asked,
    };
    let workers = effort.pick(1_000, 20);
    let table = Table::new("scale");
    for whom in ["policy", "engine"] {
        let mut smallest = None;
        for &steps in &sizes {
            let work = Arc::new(Work::new(steps));
            let (dag, plan) = (work.dag(), Plan::parse(ir_json(steps, &work.edges)).unwrap());
            let mut makespan = Duration::ZERO;
            let mut costs: Vec<_> = (0..effort.pick(ROUNDS, 1))
                .map(|_| {
                    let simulated = match whom {
                        "policy" => with_policy(&work, &dag, workers),
                        _ => with_engine(&work, &plan, workers),
                    };
                    makespan = simulated.makespan;
                    simulated.cost
                })
                .collect();
            let cost = Figure::ns(median(&mut costs).as_nanos() as f64 / steps as f64);
            let bound = work.bound(workers);
            let besides = format!(
                "takes {:.1} h, {:.3} x the bound",
                makespan.as_secs_f64() / 3600.0,
                makespan.as_secs_f64() / bound.as_secs_f64()
            );
            let what = format!("{whom}, {steps} steps on {workers} workers: each");
            match &smallest {
                None => {
                    table.alone(what, &cost, "the smallest", besides);
                    smallest = Some((cost, steps));
                }
                Some((first, steps)) => {
                    table.against(what, &cost, &first.clone().of(format!("{steps} steps")), besides);
                }
            }
        }
    }
}
