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
        let state = |tick: usize| job.states[tick.min(job.states.len() - 1)];
        let Some(canceled) = self.canceled else { return state(self.tick) };
        let before = state(canceled);
        match before {
            _ if TERMINAL.contains(&before) => before,
            _ if self.tick > canceled + self.script.stopping => "canceled",
            _ => "canceling",
        }
    }

    pub(super) fn has_ended(&self, at: usize) -> bool {
        TERMINAL.contains(&self.job_state(at))
    }

    pub(super) fn state(&self) -> &'static str {
        let states: Vec<_> = (0..self.script.jobs.len()).map(|at| self.job_state(at)).collect();
        if !states.iter().all(|state| TERMINAL.contains(state)) || self.tick < self.script.planning {
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
        let has_run = job.states.iter().take(self.tick + 1).any(|state| matches!(*state, "running" | "timing_out"));
        let (has_ended, id) = (self.has_ended(at), self.ids[at]);
        json!({
            "id": id, "step_key": job.key, "name": format!("Step {}", job.key), "state": state, "command": "true",
            "exit_code": if has_ended { job.exit_code } else { None }, "soft_failed": job.soft_failed,
            "depends_on": [], "created_at": time(0), "started_at": has_run.then(|| time(2)),
            "finished_at": (has_ended && has_run).then(|| time(5)),
            "error_code": job.error.map(|(code, _)| code), "error_message": job.error.map(|(_, text)| text),
            "retry_policy": null, "soft_fail_policy": null,
        })
    }
}
