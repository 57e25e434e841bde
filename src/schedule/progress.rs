//! The progress of one build: it passes occurrences to the policy, records them, and emits their events.
//!
//! Input: the dispatcher's occurrences (an attempt ended, time passed, the user cancelled), each as one
//! synchronous call with the time since the start of the run. Output: attempts to start, state events, and
//! finally the outcome. The module knows no runtime, and nothing here waits.
//!
//! Over 500 lines because every occurrence changes the same state, and is one short function.

use std::{collections::BTreeMap, io, iter, path::PathBuf, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    executor::AttemptReport,
    finished::{FinishedBuild, Leavings, Record},
    policy::{Answer, AttemptEnd, OUT_OF_MEMORY, Policy, Start, StopReason},
};
use crate::{
    event::{EventWriter, StateEvent, StepEndDetails, is_full, step_id},
    model::{ArchiveId, BuildRef, BuildStatus, CacheMissReason, SnapshotRef, StepIndex, StepStatus, VerifiedStep},
    outcome::BuildOutcome,
    outputs::Collected,
    plan::{BoundPlan, BoundService, PlannedInput, SnapshotUse},
    runner::{CacheDecision, ExecutorInput, InputFiles, OtherSteps, RunnerIndex, Verification},
};

/// A running build.
#[derive(Debug)]
pub(super) struct BuildProgress<'plan> {
    plan: &'plan BoundPlan,
    policy: Policy<'plan>,
    events: EventWriter,
    records: Vec<Record>,
    /// The snapshots, by step; none before the first step has one.
    snapshots: Vec<Option<SnapshotRef>>,
    leavings: Leavings,
    run_id: Uuid,
    archive_id: ArchiveId,
    workdir: Arc<str>,
    journal_error: Option<io::Error>,
    /// Says that steps which are not found do not run.
    verification: Option<Arc<Verification>>,
}

impl<'plan> BuildProgress<'plan> {
    pub(super) fn new(
        plan: &'plan BoundPlan,
        policy: Policy<'plan>,
        events: EventWriter,
        run_id: Uuid,
        archive_id: ArchiveId,
    ) -> Self {
        Self {
            plan,
            policy,
            events,
            records: vec![Record::default(); plan.steps.len()],
            snapshots: Vec::new(),
            leavings: Leavings::default(),
            run_id,
            archive_id,
            workdir: "/workspace".into(),
            journal_error: None,
            verification: None,
        }
    }

    /// Makes steps which are not found end without having run: a run that only compares.
    pub(super) fn only_verify(&mut self, verification: Arc<Verification>) {
        self.verification = Some(verification);
    }

    /// Returns whether steps which are not found end without having run.
    pub(super) fn only_verifies(&self) -> bool {
        self.verification.is_some()
    }

    /// Starts the next attempt, if one may start now.
    pub(super) fn start_next(&mut self, now: Duration) -> Option<Start> {
        let start = self.policy.start_next()?;
        self.records[start.step.get()].start(now);
        self.emit(now, StateEvent::StepStart { step: start.step, attempt: start.attempt });
        Some(start)
    }

    /// Returns the next step to look up in the cache.
    pub(super) fn look_up_next(&mut self) -> Option<StepIndex> {
        self.policy.look_up_next()
    }

    /// Ends a step that the cache has, and whose outputs were copied. Returns false if the build's stop has
    /// ended it meanwhile.
    pub(super) fn found(
        &mut self,
        step: StepIndex,
        snapshot: SnapshotRef,
        collected: Collected,
        now: Duration,
    ) -> bool {
        if !self.policy.looked_up(step, true) {
            return false;
        }
        self.emit(now, StateEvent::StepCacheHit { step, tag: Arc::clone(&snapshot.0) });
        let status = StepStatus::CacheHit;
        let exit_code = code_without_exit(status, 0);
        let record = &mut self.records[step.get()];
        record.set_exit_code(exit_code);
        record.is_kept = true;
        self.set_snapshot(step, Some(snapshot.clone()));
        let Collected { artifacts, tests } = collected;
        self.leavings.add(step, &artifacts, tests.as_ref());
        let end = StateEvent::StepEnd {
            step,
            attempt: 0,
            status,
            exit_code,
            duration_ms: 0,
            snapshot: Some(snapshot),
            message: None,
            artifacts,
            details: StepEndDetails { tests: tests.map(Box::new), ..StepEndDetails::default() },
        };
        self.emit(now, end);
        true
    }

    /// Allows a step to start that the cache does not have. Ends it in a run that only compares.
    pub(super) fn missed(
        &mut self,
        step: StepIndex,
        reason: CacheMissReason,
        message: Option<Arc<str>>,
        now: Duration,
    ) {
        match self.verification.clone() {
            None => self.runs(step, reason, message, now),
            Some(verification) => self.passed_over((step, &verification), reason, message, now),
        }
    }

    /// Allows a step to start that was looked up.
    pub(super) fn runs(&mut self, step: StepIndex, reason: CacheMissReason, message: Option<Arc<str>>, now: Duration) {
        if self.policy.looked_up(step, false) {
            self.emit(now, StateEvent::StepCacheMiss { step, reason, message });
        }
    }

    #[cold]
    fn passed_over(
        &mut self,
        (step, verification): (StepIndex, &Verification),
        reason: CacheMissReason,
        message: Option<Arc<str>>,
        now: Duration,
    ) {
        if !self.policy.pass_over(step) {
            return;
        }
        let key = &self.plan.step(step).step.key;
        if verification.covers(key) {
            let why = message.as_deref().unwrap_or("it has no result");
            verification.add(VerifiedStep::not_compared(Arc::clone(key), self.events.masked_text(why)));
        }
        self.emit(now, StateEvent::StepCacheMiss { step, reason, message });
        self.end_bystanders(now);
    }

    /// Returns the snapshot that a step committed, or that was found.
    pub(super) fn snapshot(&self, step: StepIndex) -> Option<&SnapshotRef> {
        self.snapshots.get(step.get())?.as_ref()
    }

    fn set_snapshot(&mut self, step: StepIndex, snapshot: Option<SnapshotRef>) {
        if self.snapshots.is_empty() && snapshot.is_some() {
            self.snapshots = vec![None; self.records.len()];
        }
        if let Some(place) = self.snapshots.get_mut(step.get()) {
            *place = snapshot;
        }
    }

    /// Marks the snapshot of a step as owned by the cache.
    pub(super) fn keep_snapshot(&mut self, step: StepIndex) {
        self.records[step.get()].is_kept = true;
    }

    /// Returns whether the snapshot of a step is owned by the cache.
    pub(super) fn is_kept(&self, step: StepIndex) -> bool {
        self.records[step.get()].is_kept
    }

    /// Returns for how long a step has been running.
    pub(super) fn age(&self, step: StepIndex, now: Duration) -> Duration {
        self.records[step.get()].age(now)
    }

    /// Returns whether a step has ended.
    pub(super) fn has_ended(&self, step: StepIndex) -> bool {
        self.policy.status(step).is_some()
    }

    /// Ends the output of an attempt, and returns the path of its log, which exists if there is any output.
    pub(super) fn close_log(&self, start: Start) -> PathBuf {
        self.events.close_log(start.step, start.attempt);
        self.events.log_path(start.step, start.attempt)
    }

    /// Returns the run's directory.
    pub(super) fn dir(&self) -> PathBuf {
        self.events.dir()
    }

    /// Returns the runner's input for an attempt of `step`. Copies no text but the tag of a new snapshot.
    pub(super) fn input(&self, step: StepIndex, snapshot: SnapshotUse) -> ExecutorInput {
        let bound = &self.plan.steps[step.get()];
        let step_id = step_id(self.run_id, step);
        ExecutorInput {
            step: Arc::clone(&bound.step),
            workspace_archive_id: self.archive_id,
            env: Arc::clone(&bound.env),
            workdir: Arc::clone(&self.workdir),
            run_id: self.run_id,
            step_id,
            cache_lookup: if snapshot.is_wanted() {
                CacheDecision::MissBuildAs { tag: tag(step_id) }
            } else {
                CacheDecision::MissNoCommit
            },
            parent_snapshot: if self.snapshots.is_empty() {
                None
            } else {
                self.plan.dag.lineage_parent(step).and_then(|parent| self.snapshot(parent).cloned())
            },
            other_steps: self.other_steps(step),
        }
    }

    /// Returns what a step gets of other steps than its parent.
    fn other_steps(&self, step: StepIndex) -> Option<Arc<OtherSteps>> {
        if !self.plan.waits_for_others(step) {
            return None;
        }
        OtherSteps::of(self.service_snapshots(step), self.input_files(step))
    }

    /// Returns the snapshots that the services of a step boot from.
    fn service_snapshots(&self, step: StepIndex) -> BTreeMap<Arc<str>, SnapshotRef> {
        let of = |seed| Some((Arc::clone(&self.plan.step(seed).step.key), self.snapshot(seed)?.clone()));
        self.plan.services(step).iter().filter_map(BoundService::seed).filter_map(of).collect()
    }

    /// Returns the files of other steps that a step gets. Those steps have ended.
    pub(super) fn input_files(&self, step: StepIndex) -> Vec<InputFiles> {
        let files = |PlannedInput { step, path, target, .. }: &PlannedInput| InputFiles {
            step: Arc::clone(&self.plan.step(*step).step.key),
            // A runner that made no snapshot although it was asked for one is told so by the name.
            snapshot: self.snapshot(*step).cloned().unwrap_or_else(|| SnapshotRef::from("none")),
            path: Arc::clone(path),
            target: Arc::clone(target),
        };
        self.plan.inputs.get(&step).map(|inputs| inputs.iter().map(files).collect()).unwrap_or_default()
    }

    /// Handles an attempt's end, and its consequences for other steps.
    pub(super) fn attempt_ended(&mut self, report: AttemptReport, now: Duration) {
        let AttemptReport { start, end, snapshot, artifacts, usage, tests, message, .. } = report;
        let Start { step, attempt } = start;
        let usage = usage.map(|usage| self.leavings.usages.get(&step).map_or(usage, |before| before.then(usage)));
        if let Some(usage) = usage {
            self.leavings.usages.insert(step, usage);
        }
        let answer = self.policy.attempt_ended(step, end, now);
        let command_code = match end {
            AttemptEnd::Exited(code) | AttemptEnd::MemoryWasShort(code) => Some(code),
            _ => None,
        };
        let Answer::Ended(status) = answer else {
            return self.retried(start, answer, command_code, message, now);
        };
        self.set_snapshot(step, snapshot.clone());
        let record = &mut self.records[step.get()];
        if let Some(code) = command_code {
            record.set_exit_code(code);
        }
        record.duration_ms = millis(record.age(now));
        let duration_ms = record.duration_ms;
        self.leavings.add(step, &artifacts, tests.as_deref());
        let details = StepEndDetails { usage: self.leavings.usages.get(&step).copied(), tests, ..details(status, end) };
        let base = details.allowed.unwrap_or(status);
        let exit_code = record.exit_code().unwrap_or_else(|| code_without_exit(base, attempt));
        let chain_message = chain_message(status, exit_code, message.as_deref());
        let end = StateEvent::StepEnd {
            step,
            attempt,
            status,
            exit_code,
            duration_ms,
            snapshot,
            message,
            artifacts,
            details,
        };
        self.emit(now, end);
        if let Some(message) = chain_message {
            self.emit(now, StateEvent::ChainFailed { step, exit_code, message });
        }
        self.end_bystanders(now);
    }

    /// Reports an attempt that failed and that another follows. Apart from what runs for each step.
    #[cold]
    fn retried(
        &mut self,
        Start { step, attempt }: Start,
        answer: Answer,
        command_code: Option<i32>,
        message: Option<Arc<str>>,
        now: Duration,
    ) {
        let (backoff_ms, message, exit_code) = match answer {
            Answer::Retry(backoff) => (millis(backoff), self.retry_message(step, command_code, message), command_code),
            Answer::RetryAlone | Answer::Ended(_) => {
                let reason = message.unwrap_or_else(|| "the machine ran out of memory".into());
                (0, format!("{reason}; it runs again with no other step beside it").into(), None)
            }
        };
        self.emit(now, StateEvent::StepRetry { step, attempt, backoff_ms, message, exit_code });
    }

    /// Describes why an attempt failed that another follows.
    fn retry_message(&self, step: StepIndex, command_code: Option<i32>, message: Option<Arc<str>>) -> Arc<str> {
        let Some(code) = command_code else { return message.unwrap_or_else(|| "unknown".into()) };
        let (done, allowed) = self.policy.command_retries(step);
        let reason = message.unwrap_or_else(|| format!("the command exited with {code}").into());
        format!("{reason}; retry {done} of {allowed}").into()
    }

    /// Ends all waiting steps, and prevents further starts.
    pub(super) fn stop(&mut self, reason: StopReason, now: Duration) {
        self.policy.stop(reason);
        self.end_bystanders(now);
    }

    /// Returns the reason why the build stops before all steps have ended, if it does.
    pub(super) fn stopping(&self) -> Option<StopReason> {
        self.policy.stopping()
    }

    /// Makes the retries ready that are due.
    pub(super) fn retry_due(&mut self, now: Duration) {
        self.policy.retry_due(now);
    }

    /// Returns when the next retry is due.
    pub(super) fn next_retry(&self) -> Option<Duration> {
        self.policy.next_retry()
    }

    /// Returns whether every step has ended.
    pub(super) fn is_done(&self) -> bool {
        self.policy.is_done()
    }

    /// Waits until output needs to be recorded. Never returns if the journal has failed.
    pub(super) async fn output_waits(&self) {
        match self.journal_error {
            None => self.events.dirty().await,
            Some(_) => std::future::pending().await,
        }
    }

    /// Writes the emitted events. A build that cannot be recorded stops; later events are still written if
    /// possible.
    pub(super) fn flush(&mut self, now: Duration) {
        if let Err(error) = self.events.flush()
            && self.journal_error.is_none()
        {
            // The outcome reports this error.
            if is_full(&error) {
                tracing::debug!(%error, "failed to record the run");
            } else {
                tracing::error!(%error, "failed to record the run");
            }
            self.journal_error = Some(error);
            self.stop(StopReason::Failed, now);
        }
    }

    /// Returns the build's status, once every step has ended.
    pub(super) fn status(&self) -> BuildStatus {
        if self.journal_error.is_some() { BuildStatus::Infrastructure } else { self.policy.verdict() }
    }

    /// Returns the snapshots that steps committed and the cache does not own, by the runner that made them,
    /// in the order of the plan.
    pub(super) fn take_snapshots(&mut self) -> Vec<(RunnerIndex, Vec<SnapshotRef>)> {
        let mut by_runner: Vec<_> =
            (0_u16..).map(RunnerIndex).zip(iter::repeat_n(Vec::new(), self.plan.runners.len())).collect();
        for ((snapshot, record), step) in self.snapshots.drain(..).zip(&self.records).zip(&self.plan.steps) {
            if let Some(snapshot) = snapshot.filter(|_| !record.is_kept) {
                by_runner[usize::from(step.runner.0)].1.push(snapshot);
            }
        }
        by_runner.retain(|(_, snapshots)| !snapshots.is_empty());
        by_runner
    }

    /// Ends the build: emits its last event, and returns everything of its outcome that is not in the plan.
    pub(super) fn finish(mut self, build: BuildRef, started_at: DateTime<Utc>, now: Duration) -> FinishedBuild {
        let verdict = self.status();
        self.emit(now, StateEvent::BuildEnd { status: verdict, duration_ms: millis(now) });
        self.flush(now);
        let (status, message) = match &self.journal_error {
            None => (verdict, None),
            Some(error) => (BuildStatus::Infrastructure, Some(format!("failed to record the run: {error}"))),
        };
        FinishedBuild {
            ends: self.policy.into_ends().collect(),
            records: self.records,
            leavings: self.leavings,
            outcome: BuildOutcome {
                build,
                status,
                message,
                steps: Vec::new(),
                started_at,
                finished_at: started_at + now,
                watch_url: None,
                shadow_differences: 0,
                shadow_failures: 0,
                verified: Vec::new(),
            },
        }
    }

    fn end_bystanders(&mut self, now: Duration) {
        for (step, status) in self.policy.take_bystanders() {
            let attempt = self.policy.attempts(step);
            let record = &mut self.records[step.get()];
            record.duration_ms = millis(record.age(now));
            let duration_ms = record.duration_ms;
            let exit_code = code_without_exit(status, attempt);
            let end = StateEvent::StepEnd {
                step,
                attempt,
                status,
                exit_code,
                duration_ms,
                snapshot: None,
                message: None,
                artifacts: Vec::new(),
                details: StepEndDetails::default(),
            };
            self.emit(now, end);
        }
    }

    fn emit(&mut self, now: Duration, event: StateEvent) {
        self.events.emit(millis(now), event);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the exit code of a step without one, as documented for `step_end`.
fn code_without_exit(status: StepStatus, attempt: u32) -> i32 {
    match status {
        StepStatus::CacheHit => 0,
        _ if attempt == 0 => -1,
        StepStatus::Passed | StepStatus::Flaky => 0,
        StepStatus::Failed | StepStatus::FailedAllowed => 1,
        StepStatus::TimedOut => 124,
        StepStatus::Canceled => 130,
        StepStatus::OutOfMemory => 137,
        StepStatus::Infrastructure => 3,
        StepStatus::Skipped => -1,
    }
}

/// Returns which failure is allowed, if `status` is that of an allowed one.
fn details(status: StepStatus, end: AttemptEnd) -> StepEndDetails {
    let mut details = StepEndDetails::default();
    if status == StepStatus::FailedAllowed {
        details.allowed = Some(match end {
            AttemptEnd::TimedOut => StepStatus::TimedOut,
            AttemptEnd::OutOfMemory | AttemptEnd::MemoryWasShort(OUT_OF_MEMORY) => StepStatus::OutOfMemory,
            _ => StepStatus::Failed,
        });
    }
    details
}

/// Returns the message for the chain that a step ends. Returns `None` if the step did not fail, or failed
/// because of another step.
fn chain_message(status: StepStatus, exit_code: i32, message: Option<&str>) -> Option<Arc<str>> {
    match status {
        StepStatus::Passed
        | StepStatus::Flaky
        | StepStatus::CacheHit
        | StepStatus::FailedAllowed
        | StepStatus::Skipped
        | StepStatus::Canceled => None,
        StepStatus::Failed => Some(format!("the command exited with {exit_code}").into()),
        StepStatus::TimedOut | StepStatus::OutOfMemory | StepStatus::Infrastructure => {
            Some(message.unwrap_or("unknown").into())
        }
    }
}

/// Returns a name for the snapshot of a step. It is made on the hot path, so formatting machinery is avoided.
fn tag(step_id: Uuid) -> SnapshotRef {
    const PREFIX: &[u8] = b"step:";
    let mut text = [0; PREFIX.len() + uuid::fmt::Hyphenated::LENGTH];
    text[..PREFIX.len()].copy_from_slice(PREFIX);
    step_id.hyphenated().encode_lower(&mut text[PREFIX.len()..]);
    SnapshotRef::from(str::from_utf8(&text).expect("a UUID is ASCII"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::fixture::{build, journal, plan, progress};

    const NOW: Duration = Duration::from_millis(5);

    fn ends(step: u32, end: AttemptEnd) -> AttemptReport {
        let start = Start { step: StepIndex(step), attempt: 1 };
        let (snapshot, artifacts, usage, tests, traced, tracing) = (None, Vec::new(), None, None, None, None);
        AttemptReport { start, end, snapshot, artifacts, usage, tests, traced, tracing, message: None }
    }

    fn statuses(outcome: &BuildOutcome) -> Vec<StepStatus> {
        outcome.steps.iter().map(|step| step.status).collect()
    }

    #[test]
    fn a_failure_stops_a_build_and_what_runs_is_waited_for() {
        let plan = plan(4, r#"[0,1,"builds_in"]"#);
        let mut progress = progress(&plan, journal(&plan).0);
        assert_eq!(progress.start_next(NOW).map(|start| start.step), Some(StepIndex(0)));
        assert_eq!(progress.start_next(NOW).map(|start| start.step), Some(StepIndex(2)));
        assert_eq!(progress.start_next(NOW), None, "two at once");
        progress.attempt_ended(ends(0, AttemptEnd::Exited(9)), NOW * 3);
        assert_eq!(progress.stopping(), Some(StopReason::Failed));
        assert_eq!((progress.start_next(NOW), progress.is_done()), (None, false));
        progress.attempt_ended(ends(2, AttemptEnd::Canceled), NOW * 4);
        assert!(progress.is_done());
        let finished = progress.finish(build(), DateTime::UNIX_EPOCH, NOW * 4);
        let outcome = finished.outcome(plan);
        assert_eq!(outcome.status, BuildStatus::Failed);
        let expected = [StepStatus::Failed, StepStatus::Skipped, StepStatus::Canceled, StepStatus::Skipped];
        assert_eq!(statuses(&outcome), expected);
        assert_eq!((outcome.steps[0].duration_ms, outcome.steps[0].exit_code), (10, Some(9)));
    }

    #[test]
    fn a_child_gets_its_parent_s_snapshot_and_only_a_parent_is_asked_for_one() {
        let plan = plan(2, r#"[0,1,"builds_in"]"#);
        let mut progress = progress(&plan, journal(&plan).0);
        progress.start_next(NOW);
        let input = progress.input(StepIndex(0), plan.snapshot_use(StepIndex(0), false));
        let tag = CacheDecision::MissBuildAs { tag: format!("step:{}", input.step_id).into() };
        assert_eq!((input.cache_lookup, input.parent_snapshot), (tag, None));
        let snapshot = Some(SnapshotRef::from("hm1:x"));
        progress.attempt_ended(AttemptReport { snapshot: snapshot.clone(), ..ends(0, AttemptEnd::Exited(0)) }, NOW);
        let input = progress.input(StepIndex(1), plan.snapshot_use(StepIndex(1), false));
        assert_eq!((input.cache_lookup, input.parent_snapshot), (CacheDecision::MissNoCommit, snapshot));
        assert_eq!(progress.take_snapshots(), [(RunnerIndex(0), vec!["hm1:x".into()])]);
        assert_eq!(progress.take_snapshots(), [], "once");
    }
}
