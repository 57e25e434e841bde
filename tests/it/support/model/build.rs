//! A reference model of a whole build, simple enough to be evidently right: the policy's model, a clock, and
//! how attempts end by definition.

use std::time::Duration;

use hm_exec::{
    BuildStatus,
    StepStatus::{self, Flaky, Passed},
    plan::OutcomeRules,
    schedule::{Answer, AttemptEnd, StopReason},
};

use super::{
    super::{
        graphs::Graph,
        scripted::{Act, PASS, Seen},
    },
    Alone, Model, Step, urgency,
};

/// The time between TERM and KILL in these builds.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// How long a runner may take to return after it is told to stop: the grace period and ten seconds.
const PATIENCE: Duration = GRACE.saturating_add(Duration::from_secs(10));

/// The runners of steps, by number. The first two share a pool.
pub(crate) const RUNNERS: [&str; 3] = ["scripted", "beside", "apart"];

/// A build, with the actions of its steps and its user.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    pub(crate) graph: Graph,
    /// The acts of each step's attempts; the last act is repeated.
    pub(crate) scripts: Vec<Vec<Act>>,
    pub(crate) runner_of: Vec<usize>,
    pub(crate) timeout_seconds: Vec<Option<u64>>,
    pub(crate) last_run_ms: Vec<Option<u64>>,
    pub(crate) outcomes: Vec<OutcomeRules>,
    /// The memory of the machine, if it matters, and the expected peaks of the steps.
    pub(crate) memory: Option<(u64, Vec<Option<u64>>)>,
    /// The limit of the first two runners' pool, and that of the third's.
    pub(crate) limits: [usize; 2],
    pub(crate) keep_going: bool,
    pub(crate) cancel_after: Option<Duration>,
    pub(crate) timeout: Duration,
}

/// The expected result of a build.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Played {
    /// Every attempt as its runner sees it.
    pub(crate) attempts: Vec<Seen>,
    /// `(step, attempt)` of each attempt that is followed by another.
    pub(crate) retries: Vec<(usize, usize)>,
    /// By step: its status, its command's exit code, its number of attempts, and the milliseconds from the
    /// start of its first attempt to its end.
    pub(crate) steps: Vec<(StepStatus, Option<i32>, usize, u128)>,
    /// The steps whose runner did not return.
    pub(crate) dropped: Vec<String>,
    /// The snapshots that each runner got back.
    pub(crate) reaped: Vec<(&'static str, String)>,
    pub(crate) verdict: BuildStatus,
    pub(crate) took: Duration,
}

fn key(step: usize) -> String {
    format!("s{step}")
}

/// A running attempt.
struct Attempt<'a> {
    step: usize,
    act: &'a Act,
    started: Duration,
    own_limit: Option<Duration>,
}

/// How an attempt ends.
struct End {
    at: Duration,
    how: AttemptEnd,
    is_dropped: bool,
}

impl Attempt<'_> {
    /// Returns how the attempt ends, unless the build ends first; the build may have been stopped for a
    /// reason.
    fn end(&self, stopped: Option<(Duration, StopReason)>) -> End {
        let (after_ms, act) = match self.act {
            Act::After(ms, act) => (*ms, &**act),
            Act::Exit { after_ms, .. } => (*after_ms, self.act),
            act => (0, act),
        };
        let done = self.started + Duration::from_millis(after_ms);
        let by_build = stopped.map(|(at, reason)| match reason {
            StopReason::TimedOut => (at, AttemptEnd::TimedOut),
            StopReason::Canceled | StopReason::Failed => (at, AttemptEnd::Canceled),
        });
        let by_limit = self.own_limit.map(|at| (at, AttemptEnd::TimedOut));
        let told = by_build.into_iter().chain(by_limit).min_by_key(|told| told.0);
        let end = |at, how| End { at, how, is_dropped: false };
        match (act, told) {
            (Act::Linger { ms }, Some((at, how))) if Duration::from_millis(*ms) <= PATIENCE => {
                end(at + Duration::from_millis(*ms), how)
            }
            (Act::Linger { .. } | Act::Ignore, Some((at, how))) => End { is_dropped: true, ..end(at + PATIENCE, how) },
            (Act::OnceTold(act), Some((at, how))) => {
                let by_build = by_build.is_some_and(|(by_build, _)| by_build == at);
                let how = match outcome(act) {
                    _ if says_it_was_told(act) => how,
                    // The step's own time is up: whatever failed, no time is left for another attempt.
                    AttemptEnd::Infrastructure { .. } if !by_build && !matches!(**act, Act::Panic) => how,
                    outcome => outcome,
                };
                end(at, how)
            }
            (Act::Linger { .. } | Act::Ignore | Act::OnceTold(_), None) => end(Duration::MAX, AttemptEnd::TimedOut),
            (_, Some((at, how))) if at < done => end(at, how),
            (act, _) if let (true, Some((_, how))) = (says_it_was_told(act), by_build) => end(done, how),
            (act, _) => end(done, outcome(act)),
        }
    }
}

/// Returns whether the runner reports that it was told to stop. The report is believed if it was told to.
fn says_it_was_told(act: &Act) -> bool {
    matches!(act, Act::OwnLimit | Act::Desert)
}

/// Returns the outcome of an act by itself.
fn outcome(act: &Act) -> AttemptEnd {
    match act {
        Act::Exit { code, .. } => AttemptEnd::Exited(*code),
        Act::Print(_) => AttemptEnd::Exited(0),
        Act::Break | Act::Desert => AttemptEnd::Infrastructure { retryable: true },
        Act::BreakForGood | Act::Panic => AttemptEnd::Infrastructure { retryable: false },
        Act::Swell => AttemptEnd::OutOfMemory,
        Act::Starve { code } => AttemptEnd::MemoryWasShort(*code),
        Act::OwnLimit => AttemptEnd::TimedOut,
        Act::Linger { .. } | Act::Ignore | Act::After(..) | Act::OnceTold(_) => unreachable!("it waits for something"),
    }
}

impl Build {
    /// Returns the name of a step's snapshot, if another step builds on it.
    fn snapshot(&self, step: usize) -> Option<String> {
        let is_needed = self.graph.edges.iter().any(|edge| edge.0 == step && edge.2);
        is_needed.then(|| format!("{}:{}", RUNNERS[self.runner_of[step]], key(step)))
    }

    fn model(&self) -> Model {
        let steps = self.graph.len;
        Model {
            parents: (0..steps).map(|step| self.graph.parents(step)).collect(),
            lineage: (0..steps).map(|step| self.graph.lineage(step)).collect(),
            takes: vec![Vec::new(); steps],
            outcomes: self.outcomes.clone(),
            memory: self.memory.clone(),
            is_beside: vec![false; steps],
            alone: vec![Alone::No; steps],
            pool_of: self.runner_of.iter().map(|runner| usize::from(*runner == 2)).collect(),
            to_look_up: vec![false; steps],
            urgency: urgency(&self.graph.edges, &self.last_run_ms),
            limits: self.limits.to_vec(),
            keep_going: self.keep_going,
            backoffs: [100, 200].map(Duration::from_millis).to_vec(),
            steps: vec![Step::Idle; steps],
            attempts: vec![0; steps],
            command_failures: vec![0; steps],
            stop: None,
        }
    }

    /// Returns the expected result. `None` if two things happen at the same time, so that more than one
    /// course is right.
    pub(crate) fn play(&self) -> Option<Played> {
        let mut model = self.model();
        let (mut attempts, mut retries, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
        let (mut begun, mut ended) = (vec![None; self.graph.len], vec![None; self.graph.len]);
        let mut codes = vec![None; self.graph.len];
        let mut running: Vec<Attempt<'_>> = Vec::new();
        let (mut now, mut stopped) = (Duration::ZERO, None);
        loop {
            if self.cancel_after.is_some_and(|at| at <= now) {
                model.stop(StopReason::Canceled);
            }
            if self.timeout <= now {
                model.stop(StopReason::TimedOut);
            }
            model.retry_due(now);
            while let Some((step, attempt)) = model.start_next() {
                let act = self.scripts[step].get(attempt - 1).or(self.scripts[step].last()).unwrap_or(&PASS);
                let own_limit = self.timeout_seconds[step].map(|seconds| now + Duration::from_secs(seconds));
                running.push(Attempt { step, act, started: now, own_limit });
                begun[step].get_or_insert(now);
                attempts.push(self.seen(step, attempt, now));
            }
            stopped = stopped.or(model.stop.map(|reason| (now, reason)));
            for (step, state) in model.steps.iter().enumerate() {
                if matches!(state, Step::Ended(_)) {
                    ended[step].get_or_insert(now);
                }
            }
            if model.is_done() {
                break;
            }

            let ends: Vec<End> = running.iter().map(|attempt| attempt.end(stopped)).collect();
            let first = (0..ends.len()).min_by_key(|nth| ends[*nth].at);
            let due = model.steps.iter().filter_map(|step| match step {
                Step::BackingOff { due } => Some(*due),
                _ => None,
            });
            let alarms = [self.cancel_after, due.min()];
            let alarms = alarms.into_iter().flatten().filter(|_| stopped.is_none());
            let time_is_up = Some(self.timeout).filter(|_| stopped.is_none());
            let next = alarms.clone().chain(time_is_up).chain(first.map(|first| ends[first].at)).min();
            let next = next.expect("something is to happen");
            if next > now && stopped.is_none() {
                let happens = |(attempt, end): &(&Attempt<'_>, &End)| end.at == next || attempt.own_limit == Some(next);
                let attempts = running.iter().zip(&ends).filter(happens).count();
                let reaches_limit = running.iter().any(|attempt| attempt.own_limit == Some(next));
                let happening = attempts + alarms.filter(|alarm| *alarm == next).count();
                // When the build's time is up, an attempt that ends by itself at that moment has ended in
                // time.
                let is_late = time_is_up == Some(next) && (happening > attempts || reaches_limit);
                if happening > 1 || is_late {
                    return None;
                }
            }
            now = next;
            if let Some(first) = first.filter(|first| ends[*first].at == now) {
                let Attempt { step, .. } = running.remove(first);
                match (model.attempt_ended(step, ends[first].how, now), ends[first].how) {
                    (Answer::Retry(_) | Answer::RetryAlone, _) => retries.push((step, model.attempts[step])),
                    (Answer::Ended(_), AttemptEnd::Exited(code) | AttemptEnd::MemoryWasShort(code)) => {
                        codes[step] = Some(code)
                    }
                    (Answer::Ended(_), _) => {}
                }
                if ends[first].is_dropped {
                    dropped.push(key(step));
                }
            }
        }

        let passed = |step: &usize| matches!(model.steps[*step], Step::Ended(Passed | Flaky));
        let snapshots = (0..self.graph.len).filter(passed);
        let reaped = snapshots.filter_map(|step| Some((RUNNERS[self.runner_of[step]], self.snapshot(step)?)));
        let steps = model.steps.iter().enumerate().map(|(step, state)| {
            let Step::Ended(status) = *state else { unreachable!("the build is done") };
            let took = begun[step].map_or(0, |begun| (ended[step].unwrap() - begun).as_millis());
            (status, codes[step], model.attempts[step], took)
        });
        let steps = steps.collect();
        let played =
            Played { attempts, retries, steps, dropped, reaped: reaped.collect(), verdict: model.verdict(), took: now };
        Some(played.sorted())
    }

    fn seen(&self, step: usize, attempt: usize, at: Duration) -> Seen {
        Seen {
            key: key(step),
            attempt: u32::try_from(attempt).unwrap(),
            at,
            parent: self.graph.lineage(step).and_then(|parent| self.snapshot(parent)),
            commits: self.snapshot(step).is_some(),
        }
    }
}

impl Played {
    /// Returns the result in an order that does not depend on the order of simultaneous events.
    pub(crate) fn sorted(mut self) -> Self {
        self.attempts.sort();
        self.retries.sort_unstable();
        self.dropped.sort();
        self.reaped.sort();
        self
    }
}
