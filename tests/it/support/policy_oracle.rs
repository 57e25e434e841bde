//! Any course of a build, on the pure policy and on the reference model. The property test and the fuzz
//! target share it.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    time::Duration,
};

use hm_exec::{
    Plan, StepStatus,
    plan::{OutcomeRules, SoftFail, StepIndex},
    schedule::{Answer, AttemptEnd, MemoryRules, Placement, Policy, Rules, StopReason, priorities},
};
use proptest::{collection::vec, prelude::*};

use super::{
    graphs::{Graph, graphs},
    model::{Alone, Model, Step, urgency},
};

const BACKOFFS_MS: [u64; 2] = [100, 200];

/// An event that may happen to a build.
#[derive(Debug, Clone)]
enum Operation {
    Start,
    LookUp { which: usize, found: bool },
    End { which: usize, end: AttemptEnd },
    Wait { ms: u64 },
    Stop(StopReason),
}

#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    graph: Graph,
    pool_of: Vec<usize>,
    cached: Vec<bool>,
    outcomes: Vec<OutcomeRules>,
    /// The steps above each step whose files it gets.
    takes: Vec<Vec<usize>>,
    /// The memory of the machine, if it matters, and the steps' expected peaks.
    memory: Option<(u64, Vec<Option<u64>>)>,
    limits: Vec<usize>,
    last_run_ms: Vec<Option<u64>>,
    keep_going: bool,
    operations: Vec<Operation>,
    final_ends: Vec<AttemptEnd>,
}

/// Returns how an attempt ends; the more bytes map to an end, the likelier it is.
fn end_of(byte: u8) -> AttemptEnd {
    match byte % 20 {
        0..8 => AttemptEnd::Exited(0),
        8..10 => AttemptEnd::Exited(i32::from(byte) + 1),
        10..13 => AttemptEnd::Infrastructure { retryable: true },
        13 => AttemptEnd::Infrastructure { retryable: false },
        14 => AttemptEnd::OutOfMemory,
        15 => AttemptEnd::TimedOut,
        16 => AttemptEnd::MemoryWasShort(137),
        17..19 => AttemptEnd::MemoryWasShort(i32::from(byte) + 1),
        _ => AttemptEnd::Canceled,
    }
}

/// Returns the operations of the bytes, three bytes each.
fn operations_of(bytes: &[u8]) -> Vec<Operation> {
    let operation = |&[kind, which, value]: &[u8; 3]| match kind % 161 {
        0..60 => Operation::Start,
        60..90 => Operation::LookUp { which: which.into(), found: value % 2 == 1 },
        90..140 => Operation::End { which: which.into(), end: end_of(value) },
        140..160 => Operation::Wait { ms: value.into() },
        _ => Operation::Stop(if value % 2 == 1 { StopReason::Canceled } else { StopReason::TimedOut }),
    };
    bytes.as_chunks().0.iter().map(operation).collect()
}

/// Generates what failures of a step mean; about every second step has the usual meaning.
pub(crate) fn outcome_rules(codes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = OutcomeRules> {
    let soft_fail = prop_oneof![
        6 => Just(SoftFail::No),
        1 => Just(SoftFail::Any),
        2 => codes.prop_map(|codes| SoftFail::Codes(codes.into())),
    ];
    (prop_oneof![6 => Just(0), 3 => 0..=3_u8, 1 => Just(10)], soft_fail)
        .prop_map(|(retries, soft_fail)| OutcomeRules::new(retries, soft_fail))
}

/// Generates the memory of a machine, and the peaks of steps: some fit, some do not, and some are not known.
pub(crate) fn memory(steps: usize) -> impl Strategy<Value = (u64, Vec<Option<u64>>)> {
    let peak = prop_oneof![6 => 0..50_u64, 1 => 50..200_u64, 1 => Just(u64::MAX)];
    (prop_oneof![8 => 1..150_u64, 1 => Just(0), 1 => Just(u64::MAX)], vec(proptest::option::weighted(0.8, peak), steps))
}

/// Returns the rules of such a machine.
pub(crate) fn memory_rules((budget, peaks): &(u64, Vec<Option<u64>>)) -> MemoryRules {
    let peaks = (0..).map(index).zip(peaks).filter_map(|(step, peak)| Some((step, (*peak)?)));
    MemoryRules { budget: *budget, peaks: peaks.collect() }
}

pub(crate) fn scenarios() -> impl Strategy<Value = Scenario> {
    (graphs(0..=60), vec(1..=4_usize, 3)).prop_flat_map(|(graph, limits)| {
        let steps = graph.len;
        (
            vec(0..limits.len(), steps),
            vec(proptest::bool::weighted(0.3), steps),
            vec(outcome_rules(vec(1..=255_u8, 0..200)), steps),
            vec(proptest::option::of(0..5_000_u64), steps),
            any::<bool>(),
            vec(any::<u8>(), 0..900).prop_map(|bytes| operations_of(&bytes)),
            vec(any::<u8>().prop_map(end_of), 1..20),
            proptest::option::weighted(0.7, memory(steps)),
            vec(proptest::option::weighted(0.3, any::<prop::sample::Index>()), steps),
        )
            .prop_map(
                move |(pool_of, cached, outcomes, last_run_ms, keep_going, operations, final_ends, memory, takes)| {
                    Scenario {
                        graph: graph.clone(),
                        pool_of,
                        cached,
                        outcomes,
                        takes: takes_of(&graph, &takes),
                        memory,
                        limits: limits.clone(),
                        last_run_ms,
                        keep_going,
                        operations,
                        final_ends,
                    }
                },
            )
    })
}

/// Chooses a step above each step that has a choice, as the one whose files it gets.
fn takes_of(graph: &Graph, choices: &[Option<prop::sample::Index>]) -> Vec<Vec<usize>> {
    let takes = |(step, choice): (usize, &Option<prop::sample::Index>)| {
        let (mut above, mut at) = (graph.parents(step), 0);
        while let Some(step) = above.get(at).copied() {
            let more: Vec<usize> = graph.parents(step).into_iter().filter(|it| !above.contains(it)).collect();
            above.extend(more);
            at += 1;
        }
        choice.iter().filter(|_| !above.is_empty()).map(|choice| above[choice.index(above.len())]).collect()
    };
    choices.iter().enumerate().map(takes).collect()
}

impl Scenario {
    /// Returns the same case with the operations that these bytes encode.
    #[allow(dead_code, reason = "for the fuzz target")]
    pub(crate) fn with_operations(self, bytes: &[u8]) -> Self {
        Self { operations: operations_of(bytes), ..self }
    }
}

/// The policy and the model side by side, and the observations of both.
struct Pair<'dag> {
    policy: Policy<'dag>,
    model: Model,
    now: Duration,
    terminal: BTreeMap<usize, StepStatus>,
    /// Steps for which the policy has asked the cache.
    looking_up: BTreeSet<usize>,
}

impl Pair<'_> {
    fn start(&mut self) -> bool {
        self.policy.retry_due(self.now);
        self.model.retry_due(self.now);
        let started = self.policy.start_next();
        assert_eq!(started.map(|start| (start.step.get(), start.attempt as usize)), self.model.start_next());
        for (pool, limit) in self.model.limits.iter().enumerate() {
            assert!(self.model.running(pool) <= *limit);
        }
        if let Some(start) = started {
            for parent in &self.model.parents[start.step.get()] {
                let is_lineage = self.model.lineage[start.step.get()] == Some(*parent);
                let has_files = self.model.takes[start.step.get()].contains(parent);
                let is_released = match self.terminal.get(parent) {
                    Some(StepStatus::FailedAllowed) => !is_lineage && !has_files,
                    status => status.is_some_and(|status| status.is_success()),
                };
                assert!(is_released, "started before its parent passed");
            }
        }
        self.compare();
        started.is_some()
    }

    fn look_up(&mut self, pick: impl Fn(usize) -> usize, found: bool) -> bool {
        while let Some(step) = self.policy.look_up_next() {
            assert!(self.looking_up.insert(step.get()), "asked twice");
        }
        let waiting = self.model.looking_up();
        self.looking_up.retain(|step| {
            let waits = waiting.contains(step);
            assert!(waits || !self.policy.looked_up(index(*step), found), "a stop has ended it");
            waits
        });
        assert_eq!(self.looking_up.iter().copied().collect::<Vec<_>>(), waiting);
        if waiting.is_empty() {
            return false;
        }
        let step = waiting[pick(waiting.len())];
        self.looking_up.remove(&step);
        assert!(self.policy.looked_up(index(step), found));
        self.model.looked_up(step, found);
        if found {
            self.ended(step, StepStatus::CacheHit);
        }
        self.compare();
        true
    }

    fn end(&mut self, pick: impl Fn(usize) -> usize, end: AttemptEnd) -> bool {
        let running: Vec<usize> =
            (0..self.model.steps.len()).filter(|&step| self.model.steps[step] == Step::Running).collect();
        if running.is_empty() {
            return false;
        }
        let step = running[pick(running.len())];
        let answer = self.policy.attempt_ended(index(step), end, self.now);
        assert_eq!(answer, self.model.attempt_ended(step, end, self.now));
        if let Answer::Ended(status) = answer {
            self.ended(step, status);
        }
        self.compare();
        true
    }

    fn stop(&mut self, reason: StopReason) {
        self.policy.stop(reason);
        self.model.stop(reason);
        self.compare();
    }

    fn ended(&mut self, step: usize, status: StepStatus) {
        assert_eq!(self.terminal.insert(step, status), None, "step {step} ended twice");
    }

    fn compare(&mut self) {
        while let Some((step, status)) = self.policy.next_bystander() {
            self.ended(step.get(), status);
        }
        for step in 0..self.model.steps.len() {
            let expected = match self.model.steps[step] {
                Step::Ended(status) => Some(status),
                _ => None,
            };
            assert_eq!(self.policy.status(index(step)), expected, "status of step {step}");
            assert_eq!(self.terminal.get(&step).copied(), expected, "what was told of step {step}");
            assert_eq!(self.policy.attempts(index(step)) as usize, self.model.attempts[step]);
        }
        let due = self.model.steps.iter().filter_map(|step| match step {
            Step::BackingOff { due } => Some(*due),
            _ => None,
        });
        assert_eq!(self.policy.next_retry(), due.min());
        assert_eq!(self.policy.stopping(), self.model.stop);
        assert_eq!(self.policy.is_done(), self.model.is_done());
    }
}

fn index(step: usize) -> StepIndex {
    StepIndex(u32::try_from(step).unwrap())
}

/// Returns the steps that get the files of each step.
fn takers_of(takes: &[Vec<usize>]) -> BTreeMap<StepIndex, Vec<StepIndex>> {
    let mut takers: BTreeMap<StepIndex, Vec<StepIndex>> = BTreeMap::new();
    for (step, taken) in takes.iter().enumerate() {
        taken.iter().for_each(|taken| takers.entry(index(*taken)).or_default().push(index(step)));
    }
    takers
}

pub(crate) fn check(scenario: &Scenario) {
    let plan = Plan::parse(scenario.graph.to_ir_json()).unwrap();
    let last_run: Vec<_> = scenario.last_run_ms.iter().map(|ms| ms.map(Duration::from_millis)).collect();
    let urgency = urgency(&scenario.graph.edges, &scenario.last_run_ms);
    assert_eq!(priorities(plan.dag(), &last_run), urgency);

    let placements =
        scenario.pool_of.iter().zip(&urgency).map(|(&pool, &priority)| Placement { pool, priority, cached: false });
    let placements = placements.zip(&scenario.cached).map(|(placement, &cached)| Placement { cached, ..placement });
    let rules = Rules {
        limits: scenario.limits.iter().map(|&limit| NonZeroUsize::new(limit).unwrap()).collect(),
        keep_going: scenario.keep_going,
        retries: u32::try_from(BACKOFFS_MS.len()).unwrap(),
        backoff: Duration::from_millis(BACKOFFS_MS[0]),
        outcomes: (0..).map(index).zip(scenario.outcomes.iter().cloned()).collect(),
        takers: takers_of(&scenario.takes),
        memory: scenario.memory.as_ref().map(memory_rules),
    };
    let mut pair = Pair {
        policy: Policy::new(plan.dag(), &placements.collect::<Vec<_>>(), &rules),
        model: Model {
            parents: (0..scenario.graph.len).map(|step| scenario.graph.parents(step)).collect(),
            lineage: (0..scenario.graph.len).map(|step| scenario.graph.lineage(step)).collect(),
            takes: scenario.takes.clone(),
            outcomes: scenario.outcomes.clone(),
            memory: scenario.memory.clone(),
            is_beside: vec![false; scenario.graph.len],
            alone: vec![Alone::No; scenario.graph.len],
            pool_of: scenario.pool_of.clone(),
            to_look_up: scenario.cached.clone(),
            urgency,
            limits: scenario.limits.clone(),
            keep_going: scenario.keep_going,
            backoffs: BACKOFFS_MS.map(Duration::from_millis).to_vec(),
            steps: vec![Step::Idle; scenario.graph.len],
            attempts: vec![0; scenario.graph.len],
            command_failures: vec![0; scenario.graph.len],
            stop: None,
        },
        now: Duration::ZERO,
        terminal: BTreeMap::new(),
        looking_up: BTreeSet::new(),
    };
    pair.compare();

    for operation in &scenario.operations {
        match operation {
            Operation::Start => {
                pair.start();
            }
            Operation::LookUp { which, found } => {
                pair.look_up(|waiting| which % waiting, *found);
            }
            Operation::End { which, end } => {
                pair.end(|running| which % running, *end);
            }
            Operation::Wait { ms } => pair.now += Duration::from_millis(*ms),
            Operation::Stop(reason) => pair.stop(*reason),
        }
    }
    let mut ends = scenario.final_ends.iter().cycle();
    while !pair.policy.is_done() {
        if !pair.look_up(|_| 0, false) && !pair.start() && !pair.end(|_| 0, *ends.next().unwrap()) {
            pair.now = pair.policy.next_retry().expect("nothing runs, nothing can start, nothing waits for a retry");
        }
    }
    assert_eq!(pair.terminal.len(), scenario.graph.len);
    assert_eq!(pair.policy.verdict(), pair.model.verdict());
    pair.stop(StopReason::Canceled);
    assert_eq!(pair.policy.verdict(), pair.model.verdict(), "a late stop changes nothing");
}
