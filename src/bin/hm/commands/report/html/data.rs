//! What the page knows of a run, as JSON.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use hm_exec::{
    StepStatus,
    event::{self, Connection, StepRecord},
    outcome::TestResults,
    plan::StepIndex,
};
use serde::{Serialize, Serializer};

use super::{
    super::Report,
    log_tails::{Lines, LogTails},
};
use crate::{
    commands::{runs::RunResult, why},
    reporter::text,
};

/// The most failed steps whose last lines are shown among all failures.
const MAX_EXCERPTS: usize = 50;

/// The most connections of a step, and of all steps.
const MAX_CONNECTIONS: (usize, usize) = (100, 10_000);

/// The most artifacts of a step that are named.
const MAX_OUTPUTS: usize = 200;

/// A run. The steps are made while they are written.
#[derive(Serialize)]
pub(super) struct Run<'a> {
    hm: &'static str,
    run: String,
    pipeline: &'a str,
    result: RunResult,
    started_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    steps: Steps<'a>,
}

impl<'a> Run<'a> {
    pub(super) fn of(report: &'a Report<'a>, tails: &'a LogTails) -> Self {
        Self {
            hm: env!("CARGO_PKG_VERSION"),
            run: report.run.id.to_string(),
            pipeline: &report.run.pipeline,
            result: RunResult::of(report.store, report.run),
            started_at: report.run.started_at,
            duration_ms: report.record.end.map(|(_, ms)| ms),
            steps: Steps { report, tails, connections: connections(report) },
        }
    }
}

struct Steps<'a> {
    report: &'a Report<'a>,
    tails: &'a LogTails,
    connections: BTreeMap<Arc<str>, StepConnections>,
}

#[derive(Debug, Default)]
struct StepConnections {
    shown: Vec<(u32, Connection)>,
    more: usize,
}

impl Serialize for Steps<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let excerpts = RefCell::new(0);
        let steps = self.report.record.steps.iter().zip(0..).map(|(step, index)| {
            let excerpt = if is_failure(step) && *excerpts.borrow() < MAX_EXCERPTS {
                *excerpts.borrow_mut() += 1;
                self.tails.excerpt(StepIndex(index))
            } else {
                None
            };
            self.step(step, StepIndex(index), excerpt)
        });
        serializer.collect_seq(steps)
    }
}

/// A step. What is not there is not written.
#[derive(Serialize)]
struct Step<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
    runner: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
    /// The command, and how many bytes of it are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<(&'a str, u64)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<StepStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    needs: Vec<u32>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    services: &'a [Arc<str>],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<(u32, u64, Option<u64>, Option<&'a str>)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tests: Option<&'a TestResults>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cache: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    outputs: Vec<(&'a str, u64)>,
    #[serde(skip_serializing_if = "is_zero")]
    more_outputs: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    net: Vec<Net<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    more_net: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    excerpt: Option<Lines>,
}

/// A connection.
#[derive(Serialize)]
struct Net<'a> {
    attempt: u32,
    protocol: String,
    to: String,
    end: String,
    blocked: bool,
    sent: u64,
    received: u64,
    took: u64,
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn is_failure(step: &StepRecord) -> bool {
    use StepStatus::{Failed, Infrastructure, OutOfMemory, TimedOut};
    matches!(step.status, Some(Failed | TimedOut | OutOfMemory | Infrastructure))
}

impl Steps<'_> {
    fn step<'s>(&'s self, step: &'s StepRecord, index: StepIndex, excerpt: Option<Lines>) -> Step<'s> {
        let connections = self.connections.get(&step.key);
        let outputs: Vec<_> =
            step.artifacts.iter().take(MAX_OUTPUTS).map(|it| (it.key.as_str(), it.size_bytes)).collect();
        Step {
            key: &step.key,
            label: Some(&*step.display_name).filter(|name| *name != &*step.key),
            runner: &step.runner,
            image: step.image.as_deref(),
            cmd: step.command.as_ref().map(|command| (&*command.text, command.omitted_bytes)),
            status: step.status,
            exit: step.exit_code.filter(|_| step.started_ms.is_some()),
            start: step.started_ms,
            end: step.ended_ms,
            took: step.duration_ms,
            message: step.message.as_deref(),
            base: step.builds_in.map(|parent| parent.0),
            needs: step.depends_on.iter().map(|parent| parent.0).collect(),
            services: &step.services,
            attempts: step
                .attempt_times
                .iter()
                .map(|it| (it.attempt, it.started_ms, it.ended_ms, it.retry.as_deref()))
                .collect(),
            peak: step.usage.map(|usage| usage.peak_memory_bytes).filter(|peak| *peak > 0),
            cpu: step.usage.map(|usage| usage.cpu_ms),
            tests: step.tests.as_deref(),
            cache: self.cache(step),
            more_outputs: step.artifacts.len() - outputs.len(),
            outputs,
            net: connections.map(|of| of.shown.iter().map(net).collect()).unwrap_or_default(),
            more_net: connections.map_or(0, |of| of.more),
            logs: self.tails.attempts(index),
            excerpt,
        }
    }

    /// Returns the lines that say why a step ran, or where its result came from.
    fn cache(&self, step: &StepRecord) -> Vec<String> {
        let Some(explainer) = &self.report.explainer else { return Vec::new() };
        match explainer.explain_one(&step.key) {
            Ok(explanation) if explanation.verdict.is_none() => Vec::new(),
            Ok(explanation) => why::as_text(&explanation, step).lines().map(|line| line.trim().to_owned()).collect(),
            Err(error) => vec![format!("unknown: {error}")],
        }
    }
}

fn net((attempt, connection): &(u32, Connection)) -> Net<'_> {
    let Connection { protocol, end, sent, received, duration_ms, count, .. } = *connection;
    Net {
        attempt: *attempt,
        protocol: protocol.to_string(),
        to: text::clean(&connection.destination()),
        end: end.to_string(),
        blocked: end == event::ConnectionEnd::Blocked,
        sent,
        received,
        took: duration_ms,
        count,
        reason: connection.reason.as_deref(),
    }
}

/// Returns the first connections of each step.
fn connections(report: &Report<'_>) -> BTreeMap<Arc<str>, StepConnections> {
    let mut found: BTreeMap<Arc<str>, StepConnections> = BTreeMap::new();
    let mut all = 0;
    let read = event::connections(report.store.runs().dir(report.run.id), None, |record| {
        let of = found.entry(record.step).or_default();
        if of.shown.len() < MAX_CONNECTIONS.0 && all < MAX_CONNECTIONS.1 {
            of.shown.push((record.attempt, record.connection));
            all += 1;
        } else {
            of.more += 1;
        }
        true
    });
    if let Err(error) = read {
        tracing::debug!(%error, "failed to read the connections of the run");
    }
    found
}
