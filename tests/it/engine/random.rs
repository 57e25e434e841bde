//! Random builds on the paused clock, compared with the model of a build and with the invariants of events.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use hm_exec::{
    BuildEvent, BuildOutcome, BuildStatus, Engine, Plan, RunnerSet, StepResultSummary,
    StepStatus::{FailedAllowed, Flaky, Passed, Skipped},
    plan::{OutcomeRules, SoftFail},
    runner::Pool,
};
use proptest::{collection::vec, option::weighted, prelude::*, sample::subsequence};
use uuid::Uuid;

use crate::support::{
    graphs::{Graph, cases, graphs},
    model::{Build, GRACE, Played, RUNNERS},
    policy_oracle::{memory, outcome_rules},
    scripted::{Act, Memory, PASS, Scripted, json_lines, request, statuses},
    workloads::Workload,
};

/// The runners of [`RUNNERS`].
#[derive(Debug, RunnerSet)]
struct Three {
    #[runner(default)]
    scripted: Scripted,
    #[runner(name = "beside")]
    beside: Scripted,
    #[runner(name = "apart")]
    apart: Scripted,
}

/// Generates acts that do not simply pass.
fn mishaps() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1..3_i32).prop_map(|code| Act::Exit { code, after_ms: 0 }),
        3 => Just(Act::Break),
        1 => Just(Act::BreakForGood),
        1 => Just(Act::Swell),
        3 => prop_oneof![Just(137), 1..3_i32].prop_map(|code| Act::Starve { code }),
        1 => Just(Act::Panic),
        1 => Just(Act::Desert),
        1 => Just(Act::OwnLimit),
    ]
}

/// Generates acts; the higher `calm`, the more often they pass. Times are whole hundredths of a second, for
/// [`builds`].
fn acts(calm: u32) -> impl Strategy<Value = Act> {
    let pass = prop_oneof![Just(PASS), Just(Act::Print(b"some\noutput"))];
    let hang = prop_oneof![
        (0..2_400_u64).prop_map(|hundredths| Act::Linger { ms: hundredths * 10 }),
        Just(Act::Ignore),
        prop_oneof![Just(PASS), mishaps()].prop_map(|act| Act::OnceTold(Box::new(act))),
    ];
    prop_oneof![
        20 * calm => (0..100_000_u64, pass).prop_map(later),
        15 => (0..100_000_u64, mishaps()).prop_map(later),
        4 => hang,
    ]
}

/// Returns the act, either after a time or immediately.
fn later((hundredths, act): (u64, Act)) -> Act {
    if hundredths % 3 == 0 { act } else { Act::After(hundredths * 10, Box::new(act)) }
}

/// Generates moments of a build, early ones as likely as late ones.
fn moments() -> impl Strategy<Value = u64> {
    (4..24_u32, any::<u64>()).prop_map(|(bits, random)| random % (1 << bits) * 10)
}

/// Generates builds in which two things rarely happen at once, and some in which they mostly do.
fn builds() -> impl Strategy<Value = Build> {
    prop_oneof![3 => sparse_builds(), 1 => sparse_builds().prop_map(crowded)]
}

/// Steps act at whole hundredths of a second; cancels and the build's time limit come between those. So two
/// things rarely happen at once, and the model need not define which comes first.
fn sparse_builds() -> impl Strategy<Value = Build> {
    let graph = prop_oneof![4 => graphs(0..=12), 3 => graphs(0..=60), 1 => graphs(0..=300)];
    let limits = (1..6_usize, 1..4_usize).prop_map(|(local, apart)| [local, apart]);
    let stops = (weighted(0.4, moments()), weighted(0.3, moments()));
    (graph, limits, stops, any::<bool>(), 0..3_u32).prop_flat_map(|(graph, limits, stops, keep_going, calm)| {
        let steps = graph.len;
        (
            vec(vec(acts(10_u32.pow(calm)), 1..4), steps),
            vec(0..RUNNERS.len(), steps),
            vec(weighted(0.15, 1..1_500_u64), steps),
            vec(weighted(0.5, 0..5_000_u64), steps),
            vec(outcome_rules(subsequence(vec![1, 2, 124, 137], 1..=4)), steps),
            weighted(0.7, memory(steps)),
        )
            .prop_map(move |(scripts, runner_of, timeout_seconds, last_run_ms, outcomes, memory)| Build {
                graph: graph.clone(),
                scripts,
                runner_of,
                timeout_seconds,
                last_run_ms,
                outcomes,
                memory,
                limits,
                keep_going,
                cancel_after: stops.0.map(|ms| Duration::from_millis(ms + 3)),
                timeout: Duration::from_millis(stops.1.unwrap_or(1_000_000_000) + 7),
            })
    })
}

/// Returns the same build with everything at whole half seconds, within few of them.
fn crowded(build: Build) -> Build {
    let halves = |ms: u64, limit: u64| ms % limit * 500;
    let act = |act| match act {
        Act::After(ms, act) => Act::After(halves(ms / 10, 6), act),
        Act::Linger { ms } => Act::Linger { ms: halves(ms / 10, 30) },
        act => act,
    };
    let moment = |at: Duration| Duration::from_millis(500 + halves(at.as_secs(), 40));
    Build {
        scripts: build.scripts.into_iter().map(|acts| acts.into_iter().map(act).collect()).collect(),
        timeout_seconds: build.timeout_seconds.iter().map(|limit| limit.map(|seconds| 1 + seconds % 3)).collect(),
        cancel_after: build.cancel_after.map(moment),
        timeout: moment(build.timeout),
        ..build
    }
}

/// Returns the field of the IR that asks for `rules`.
fn runner_args(rules: &OutcomeRules) -> String {
    let soft_fail = match &rules.soft_fail {
        SoftFail::Codes(codes) => format!("{codes:?}"),
        soft_fail => (*soft_fail == SoftFail::Any).to_string(),
    };
    match rules {
        rules if *rules == OutcomeRules::default() => String::new(),
        rules => format!(r#","runner_args":{{"retries":{},"soft_fail":{soft_fail}}}"#, rules.retries),
    }
}

/// The engine's results of a build.
struct Run {
    events: Vec<BuildEvent>,
    outcome: BuildOutcome,
    /// The memories of each pool's runners.
    memories: [Memory; 2],
}

/// Runs a build on the set that `compose` makes of the runners.
fn run<R: RunnerSet>(build: &Build, compose: fn(Three) -> R) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut scripted = Scripted::new([]);
        scripted.script = (0..).zip(&build.scripts).map(|(step, acts)| (format!("s{step}"), acts.clone())).collect();
        scripted.capabilities.layers = true;
        let beside = Scripted { name: RUNNERS[1], ..scripted.clone() };
        let limit = NonZeroUsize::new(build.limits[1]).unwrap();
        let apart =
            Scripted { name: RUNNERS[2], pool: Pool::Own { limit }, memory: Arc::default(), ..scripted.clone() };
        let memories = [scripted.memory.clone(), apart.memory.clone()];

        let mut request = request(&build.graph);
        let json = build.graph.to_ir_json_with(|step| {
            let limit = build.timeout_seconds[step].map(|seconds| format!(r#","timeout_seconds":{seconds}"#));
            let runner = RUNNERS[build.runner_of[step]];
            format!(r#","runner":"{runner}"{}{}"#, limit.unwrap_or_default(), runner_args(&build.outcomes[step]))
        });
        request.plan = Plan::parse(json).unwrap();
        request.options.keep_going = build.keep_going;
        request.options.timeout = Some(build.timeout);
        if let Some((budget, peaks)) = &build.memory {
            request.options.memory = Some(*budget);
            let known = (0..).zip(peaks).filter_map(|(step, peak): (usize, _)| Some((step, (*peak)?)));
            request.peaks = known.map(|(step, peak)| (format!("s{step}").into(), peak)).collect();
        }
        let durations = (0..).zip(&build.last_run_ms).filter_map(|(step, ms)| Some((step, (*ms)?)));
        request.durations =
            durations.map(|(step, ms): (usize, _)| (format!("s{step}").into(), Duration::from_millis(ms))).collect();

        let builder = Engine::builder(compose(Three { scripted, beside, apart }));
        let builder = builder.parallelism(NonZeroUsize::new(build.limits[0]).unwrap()).grace(GRACE);
        let (mut stream, control) = builder.build().unwrap().start(request).await.unwrap().into_parts();
        let cancelling = async {
            if let Some(after) = build.cancel_after {
                tokio::time::sleep(after).await;
                control.cancel();
            }
        };
        let mut events = Vec::new();
        let reading = async {
            while let Some(event) = stream.next().await {
                events.push(event);
            }
        };
        tokio::join!(reading, cancelling);
        let outcome = control.wait().await.unwrap();
        Run { events, outcome, memories: memories.map(|memory| mem::take(&mut *memory.lock().unwrap())) }
    })
}

/// Returns the milliseconds that the engine takes for a build whose steps all pass, on one pool.
pub(crate) fn pass_only(work: &Workload, slots: usize) -> u64 {
    let steps = work.durations_ms.len();
    let build = Build {
        graph: Graph { len: steps, edges: work.edges.iter().map(|&(from, to)| (from, to, false)).collect() },
        scripts: work.durations_ms.iter().map(|&after_ms| vec![Act::Exit { code: 0, after_ms }]).collect(),
        runner_of: vec![0; steps],
        timeout_seconds: vec![None; steps],
        last_run_ms: work.durations_ms.iter().copied().map(Some).collect(),
        outcomes: vec![OutcomeRules::default(); steps],
        memory: None,
        limits: [slots, 1],
        keep_going: false,
        cancel_after: None,
        timeout: Duration::MAX,
    };
    let outcome = run(&build, |runners| runners).outcome;
    assert_eq!(outcome.status, BuildStatus::Passed);
    (outcome.finished_at - outcome.started_at).num_milliseconds().unsigned_abs()
}

impl Run {
    /// Returns the step number of each step id in the events.
    fn steps(&self) -> BTreeMap<Uuid, usize> {
        self.outcome.steps.iter().enumerate().map(|(step, summary)| (summary.step_id, step)).collect()
    }

    /// Returns the build's result in the model's terms.
    fn played(self) -> Played {
        let steps = self.steps();
        let retries = self.events.iter().filter_map(|event| match event {
            BuildEvent::StepRetry { step_id, attempt, .. } => Some((steps[step_id], *attempt as usize)),
            _ => None,
        });
        let retries = retries.collect();
        let [local, apart] = self.memories;
        let summary =
            |step: &StepResultSummary| (step.status, step.exit_code, step.attempts as usize, step.duration_ms.into());
        let played = Played {
            attempts: [local.seen, apart.seen].concat(),
            retries,
            steps: self.outcome.steps.iter().map(summary).collect(),
            dropped: [local.dropped, apart.dropped].concat(),
            reaped: [local.reaped, apart.reaped].concat(),
            verdict: self.outcome.status,
            took: (self.outcome.finished_at - self.outcome.started_at).to_std().unwrap(),
        };
        played.sorted()
    }

    /// Checks the invariants of any build's events, which also hold if several courses of the build are
    /// right.
    fn check(&self, build: &Build) {
        let ids = self.steps();
        assert_eq!(ids.len(), build.graph.len);
        let mut ended = BTreeMap::new();
        let mut started = vec![0; build.graph.len];
        let mut running = BTreeSet::new();
        let pool_of = |step: usize| usize::from(build.runner_of[step] == 2);
        for (at, event) in self.events.iter().enumerate() {
            match event {
                BuildEvent::StepStart { step_id, attempt, .. } => {
                    let step = ids[step_id];
                    started[step] += 1;
                    assert_eq!(*attempt, started[step]);
                    for parent in build.graph.parents(step) {
                        let is_released = match ended.get(&parent) {
                            Some(FailedAllowed) => build.graph.lineage(step) != Some(parent),
                            status => matches!(status, Some(Passed | Flaky)),
                        };
                        assert!(is_released, "s{step} started before s{parent} passed");
                    }
                    assert!(running.insert(step), "two attempts of s{step} at once");
                    let in_pool = running.iter().filter(|other| pool_of(**other) == pool_of(step)).count();
                    assert!(in_pool <= build.limits[pool_of(step)], "{in_pool} attempts run");
                }
                BuildEvent::StepLog { step_id, .. } => assert!(running.contains(&ids[step_id])),
                BuildEvent::StepRetry { step_id, .. } => assert!(running.remove(&ids[step_id])),
                BuildEvent::StepEnd { step_id, status, .. } => {
                    running.remove(&ids[step_id]);
                    assert_eq!(ended.insert(ids[step_id], *status), None, "ended twice");
                }
                BuildEvent::BuildEnd { status, .. } => {
                    assert_eq!((at + 1, *status), (self.events.len(), self.outcome.status));
                }
                _ => {}
            }
        }
        assert!(matches!(self.events.last(), Some(BuildEvent::BuildEnd { .. })));
        assert_eq!(ended.into_values().collect::<Vec<_>>(), statuses(&self.outcome));
        let statuses = statuses(&self.outcome);
        let (has_passed, mut all) = (self.outcome.status == BuildStatus::Passed, statuses.iter());
        if has_passed {
            assert!(all.all(|status| matches!(status, Passed | Flaky | FailedAllowed | Skipped)), "{statuses:?}");
        } else {
            assert!(!all.all(|status| matches!(status, Passed | Flaky | FailedAllowed)), "{statuses:?}");
        }
        for (memory, limit) in self.memories.iter().zip(build.limits) {
            assert_eq!(memory.running, 0);
            assert!(memory.most_running <= limit);
        }
    }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn every_build_agrees_with_the_model(build in builds()) {
        let run = run(&build, |runners| runners);
        run.check(&build);
        if let Some(expected) = build.play() {
            prop_assert_eq!(run.played(), expected);
        }
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_repeated_build_gives_the_same_bytes_with_types_and_with_a_registry(build in builds()) {
        let first = json_lines(&run(&build, |runners| runners).events);
        prop_assert_eq!(&json_lines(&run(&build, |runners| runners).events), &first);
        prop_assert_eq!(&json_lines(&run(&build, Three::into_registry).events), &first);
    }
}
