//! What builds of the stand-in do.

use std::collections::VecDeque;

use serde_json::{Value, json};
use uuid::Uuid;

/// The course of a build.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    pub(crate) jobs: Vec<Job>,
    /// The ticks until there are jobs.
    pub(crate) planning: usize,
    /// The state at the end, if the jobs do not tell.
    pub(crate) state: Option<&'static str>,
    /// The ticks that jobs need to stop.
    pub(crate) stopping: usize,
}

impl Script {
    pub(crate) fn new(jobs: impl IntoIterator<Item = Job>) -> Self {
        Self { jobs: jobs.into_iter().collect(), ..Self::default() }
    }
}

/// The course of a job.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) key: String,
    /// The states, one per tick. The last one stays.
    pub(crate) states: Vec<&'static str>,
    pub(crate) exit_code: Option<i64>,
    pub(crate) soft_failed: bool,
    /// How the service runs it again.
    pub(crate) retry: Option<Retry>,
    /// The tick from which the service has it.
    pub(crate) appears: usize,
    pub(crate) error: Option<(&'static str, &'static str)>,
    /// The kind of the stream, and the text.
    pub(crate) chunks: Vec<(i64, String)>,
    /// The position of the first part.
    pub(crate) first_seq: i64,
    /// What goes wrong with its next connections.
    pub(crate) log_faults: VecDeque<LogFault>,
    /// The parts that were sent to any connection.
    pub(crate) sent: usize,
}

/// How the service runs a job again, whose states have a second `running`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retry {
    /// The number of parts of output of the first attempt.
    pub(crate) first_output: usize,
    /// Whether the log of the second attempt has no parts of the first.
    pub(crate) begins_anew: bool,
}

/// What goes wrong with a log's connection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum LogFault {
    /// This status.
    Status(u16),
    /// The connection closes after this many parts that follow the history.
    CloseAfter(usize),
    /// It closes in the middle of the next part.
    HalfPart,
    /// It ends properly, but without `done`, after this many parts.
    EndAfter(usize),
    /// It sends the whole history twice.
    HistoryTwice,
    /// It sends an event that is no JSON.
    Malformed,
    /// It says nothing, for ever.
    Silent,
}

impl Job {
    fn new(key: &str, states: &[&'static str]) -> Self {
        Self {
            key: key.into(),
            states: states.to_vec(),
            exit_code: None,
            soft_failed: false,
            retry: None,
            appears: 0,
            error: None,
            chunks: Vec::new(),
            first_seq: 0,
            log_faults: VecDeque::new(),
            sent: 0,
        }
    }

    /// A job that runs for a tick and passes.
    pub(crate) fn passes(key: &str) -> Self {
        Self { exit_code: Some(0), ..Self::new(key, &["scheduled", "running", "passed"]) }
    }

    pub(crate) fn fails(key: &str, code: i64) -> Self {
        Self { exit_code: Some(code), ..Self::new(key, &["scheduled", "running", "failed"]) }
    }

    /// A job that runs until the build is cancelled.
    pub(crate) fn hangs(key: &str) -> Self {
        Self::new(key, &["running"])
    }

    pub(crate) fn is(key: &str, states: &[&'static str]) -> Self {
        Self::new(key, states)
    }

    pub(crate) fn out(mut self, text: &str) -> Self {
        self.chunks.push((0, text.into()));
        self
    }

    pub(crate) fn err(mut self, text: &str) -> Self {
        self.chunks.push((1, text.into()));
        self
    }

    /// A job whose first attempt has printed all so far, and that the service may run again.
    pub(crate) fn retried(mut self) -> Self {
        self.retry = Some(Retry { first_output: self.chunks.len(), begins_anew: false });
        self
    }

    pub(crate) fn log_fault(mut self, fault: LogFault) -> Self {
        self.log_faults.push_back(fault);
        self
    }
}

/// A build of the stand-in.
#[derive(Debug)]
pub(super) struct Build {
    pub(super) org: String,
    pub(super) pipeline: String,
    pub(super) number: i64,
    pub(super) script: Script,
    pub(super) tick: usize,
    /// The tick at which it was cancelled.
    pub(super) canceled: Option<usize>,
    pub(super) request: Value,
    pub(super) ids: Vec<Uuid>,
}

const TERMINAL: [&str; 5] = ["passed", "failed", "skipped", "canceled", "timed_out"];

/// Returns a time so many half seconds after the stand-in's epoch.
pub(super) fn time(halves: usize) -> String {
    format!(
        "2026-01-01T00:{:02}:{:02}.{}Z",
        halves / 120 % 60,
        halves / 2 % 60,
        if halves % 2 == 1 { "5" } else { "0" }
    )
}

impl Build {
    pub(super) fn job_state(&self, at: usize) -> &'static str {
        let job = &self.script.jobs[at];
        let state = |tick: usize| job.states[tick.saturating_sub(job.appears).min(job.states.len() - 1)];
        let Some(canceled) = self.canceled else { return state(self.tick) };
        let before = state(canceled);
        match before {
            _ if TERMINAL.contains(&before) => before,
            _ if self.tick > canceled + self.script.stopping => "canceled",
            _ => "canceling",
        }
    }

    /// Returns which attempt of a job runs or has run.
    fn attempt(&self, at: usize) -> usize {
        let job = &self.script.jobs[at];
        let before = |n: usize| n.checked_sub(1).and_then(|n| job.states.get(n).copied());
        let starts = |n: &usize| job.states[*n] == "running" && before(*n) != Some("running");
        let passed = (self.tick + 1).saturating_sub(job.appears).min(job.states.len());
        (0..passed).filter(starts).count()
    }

    /// Returns whether a job has failed and has another attempt before it.
    fn will_run_again(&self, at: usize) -> bool {
        let job = &self.script.jobs[at];
        let is_last = self.tick.saturating_sub(job.appears) + 1 >= job.states.len();
        job.retry.is_some() && self.canceled.is_none() && !is_last
    }

    /// Returns whether a failed attempt has output that no connection has got. Its job waits for that.
    pub(super) fn waits_for_a_reader(&self) -> bool {
        let waits = |at: usize| {
            let job = &self.script.jobs[at];
            let is_unread = job.retry.is_some_and(|retry| job.sent < retry.first_output);
            is_unread && self.will_run_again(at) && self.job_state(at) == "failed"
        };
        (0..self.script.jobs.len()).any(waits)
    }

    /// Returns the parts of output that a job has by now, and that its log has.
    pub(super) fn parts(&self, at: usize) -> std::ops::Range<usize> {
        let job = &self.script.jobs[at];
        match job.retry {
            Some(retry) if self.attempt(at) < 2 => 0..retry.first_output,
            Some(retry) if retry.begins_anew => retry.first_output..job.chunks.len(),
            _ => 0..job.chunks.len(),
        }
    }

    /// Returns the position of a part of a job's output.
    pub(super) fn seq(&self, at: usize, part: usize) -> i64 {
        let job = &self.script.jobs[at];
        job.first_seq + i64::try_from(part - self.parts(at).start.min(part)).unwrap()
    }

    pub(super) fn has_ended(&self, at: usize) -> bool {
        TERMINAL.contains(&self.job_state(at))
    }

    pub(super) fn state(&self) -> &'static str {
        let states: Vec<_> = (0..self.script.jobs.len()).map(|at| self.job_state(at)).collect();
        let is_over = |at: usize| TERMINAL.contains(&states[at]) && !self.will_run_again(at);
        if !(0..states.len()).all(is_over) || self.tick < self.script.planning {
            return if self.canceled.is_some() { "canceling" } else { "running" };
        }
        let fails = |(state, job): (&&str, &Job)| matches!(*state, "failed" | "timed_out") && !job.soft_failed;
        match self.script.state {
            Some(state) => state,
            None if states.contains(&"canceled") => "canceled",
            None if states.iter().zip(&self.script.jobs).any(fails) => "failed",
            None => "passed",
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let text = |name: &str| self.request.get(name).cloned().unwrap_or(Value::Null);
        json!({
            "number": self.number, "state": self.state(), "pipeline_slug": self.pipeline, "branch": text("branch"),
            "commit": text("commit"), "message": text("message"), "source": text("source"), "created_at": time(0),
            "scheduled_at": time(0), "started_at": null, "finished_at": null, "error_code": null,
            "error_message": null,
        })
    }

    pub(super) fn job_to_json(&self, at: usize) -> Value {
        let (job, state) = (&self.script.jobs[at], self.job_state(at));
        let has_run = job
            .states
            .iter()
            .take((self.tick + 1).saturating_sub(job.appears))
            .any(|state| matches!(*state, "running" | "timing_out"));
        let (has_ended, id) = (self.has_ended(at), self.ids[at]);
        // Each attempt starts at a time of its own.
        let later = if self.attempt(at) > 1 { 8 } else { 0 };
        let exit_code = if job.retry.is_some() && state == "passed" { Some(0) } else { job.exit_code };
        json!({
            "id": id, "step_key": job.key, "name": format!("Step {}", job.key), "state": state, "command": "true",
            "exit_code": if has_ended { exit_code } else { None }, "soft_failed": job.soft_failed,
            "depends_on": [], "created_at": time(job.appears), "started_at": has_run.then(|| time(2 + later)),
            "finished_at": (has_ended && has_run).then(|| time(5 + later)),
            "error_code": job.error.map(|(code, _)| code), "error_message": job.error.map(|(_, text)| text),
            "retry_policy": job.retry.map(|_| json!({"limit": 1})), "soft_fail_policy": null,
        })
    }
}
