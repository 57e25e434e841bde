//! A run's record as spans: one for the run, one for each step, and one for each attempt of a step with
//! several.
//!
//! Names and values are those of OpenTelemetry's semantic conventions for CI/CD. What these do not have
//! begins with `hm.`. Ids derive from the run's id, so that the same run has the same spans whenever it is
//! sent.

use hm_exec::{
    BuildStatus, StepStatus,
    event::{AttemptTimes, RunRecord, StepRecord, step_id},
    plan::StepIndex,
};
use prost::Message;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    messages::{
        AnyValue, ERROR, ExportTraceServiceRequest, INTERNAL, InstrumentationScope, KeyValue, Link, Resource,
        ResourceSpans, SERVER, ScopeSpans, Span, Status, Value,
    },
    settings::Settings,
};
use crate::find_step::describe;

/// The version of the conventions.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";

/// The kind of work that a run is.
const ACTION: &str = "RUN";

/// The most links of a span: collectors drop more.
const MAX_LINKS: usize = 128;

/// The length of a name or a message, in bytes.
const MAX_TEXT: usize = 1024;

/// The most spans of a request, and the size from which on it gets no more.
const MAX_SPANS: usize = 2000;
const MAX_BYTES: usize = 1 << 20;

/// A run as a trace.
pub(crate) struct Trace<'a> {
    run: Uuid,
    record: &'a RunRecord,
    settings: &'a Settings,
    id: [u8; 16],
    /// When the run ended, in milliseconds since its start.
    end_ms: u64,
}

/// A part of a trace, encoded.
pub(super) struct Request {
    pub(super) spans: usize,
    pub(super) body: Vec<u8>,
}

impl<'a> Trace<'a> {
    pub(crate) fn new(run: Uuid, record: &'a RunRecord, settings: &'a Settings) -> Self {
        let id = settings.parent.as_ref().map_or(*run.as_bytes(), |parent| parent.trace);
        // A run that was killed has no end. It lasted until the last thing that is known.
        let last =
            record.steps.iter().filter_map(|step| step.ended_ms.max(step.attempt_times.last().map(|it| it.started_ms)));
        let end_ms = record.end.map_or_else(|| last.max().unwrap_or(0), |(_, ms)| ms);
        Self { run, record, settings, id, end_ms }
    }

    /// Returns the trace's id, as people search for it.
    pub(crate) fn id(&self) -> String {
        Uuid::from_bytes(self.id).simple().to_string()
    }

    /// Returns the requests for all spans. Each is made when it is asked for, so that a large run needs
    /// little memory.
    pub(super) fn requests(&self) -> impl Iterator<Item = Request> {
        let mut steps = self.record.steps.iter().zip(0..);
        let mut first = Some(self.of_run());
        std::iter::from_fn(move || {
            let mut spans: Vec<Span> = first.take().into_iter().collect();
            let mut bytes: usize = spans.iter().map(Message::encoded_len).sum();
            while spans.len() < MAX_SPANS && bytes < MAX_BYTES {
                let Some((step, index)) = steps.next() else { break };
                let before = spans.len();
                self.push_step(&mut spans, step, StepIndex(index));
                bytes += spans[before..].iter().map(Message::encoded_len).sum::<usize>();
            }
            (!spans.is_empty()).then(|| Request { spans: spans.len(), body: self.encode(spans) })
        })
    }

    fn encode(&self, spans: Vec<Span>) -> Vec<u8> {
        let mut attributes: Vec<KeyValue> =
            self.settings.resource.iter().map(|(key, value)| text(key, value)).collect();
        let own = [
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("cicd.pipeline.name", &self.record.pipeline),
            text("cicd.pipeline.run.id", &self.run.to_string()),
        ];
        for attribute in own {
            if attributes.iter().all(|known| known.key != attribute.key) {
                attributes.push(attribute);
            }
        }
        let scope = InstrumentationScope { name: "hm".into(), version: env!("CARGO_PKG_VERSION").into() };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
        let resource = Some(Resource { attributes });
        let resource_spans = vec![ResourceSpans { resource, scope_spans, schema_url: SCHEMA.into() }];
        ExportTraceServiceRequest { resource_spans }.encode_to_vec()
    }

    fn of_run(&self) -> Span {
        let (result, error) = match self.record.end {
            Some((BuildStatus::Passed, _)) => ("success", None),
            Some((BuildStatus::Failed, _)) => ("failure", Some("command_failed")),
            Some((BuildStatus::Canceled, _)) => ("cancellation", None),
            Some((BuildStatus::TimedOut, _)) => ("timeout", Some("timeout")),
            Some((BuildStatus::Infrastructure, _)) => ("error", Some("could_not_run")),
            None => ("error", Some("interrupted")),
            Some(_) => ("error", Some("_OTHER")),
        };
        let mut attributes = vec![
            text("cicd.pipeline.action.name", ACTION),
            text("cicd.pipeline.name", &self.record.pipeline),
            text("cicd.pipeline.run.id", &self.run.to_string()),
            text("cicd.pipeline.result", result),
        ];
        attributes.extend(error.map(|error| text("error.type", error)));
        let parent = self.settings.parent.as_ref();
        Span {
            trace_id: self.id.to_vec(),
            span_id: self.span_id("run", 0),
            trace_state: parent.map(|parent| parent.state.clone()).unwrap_or_default(),
            parent_span_id: parent.map(|parent| parent.span.to_vec()).unwrap_or_default(),
            name: clip(&format!("{ACTION} {}", self.record.pipeline)),
            kind: SERVER,
            start_time_unix_nano: self.nanos(0),
            end_time_unix_nano: self.nanos(self.end_ms),
            attributes,
            links: Vec::new(),
            dropped_links_count: 0,
            status: error.map(|error| Status { message: error.into(), code: ERROR }),
        }
    }

    /// Adds the spans of a step. A step that has neither started nor ended, because `hm` was killed, has
    /// none.
    fn push_step(&self, spans: &mut Vec<Span>, step: &StepRecord, index: StepIndex) {
        let end = match (step.ended_ms, step.started_ms) {
            (None, None) => return,
            (ended, _) => ended.unwrap_or(self.end_ms),
        };
        let (result, error) = result(step.status);
        let mut attributes = vec![
            text("cicd.pipeline.task.name", &step.display_name),
            text("cicd.pipeline.task.run.id", &step_id(self.run, index).to_string()),
            text("cicd.pipeline.task.run.result", result),
            text("hm.step.key", &step.key),
            text("hm.runner", &step.runner),
        ];
        attributes.extend(error.map(|error| text("error.type", error)));
        attributes.extend(step.image.as_deref().map(|image| text("container.image.name", image)));
        let flag = match step.status {
            Some(StepStatus::CacheHit) => Some("hm.cached"),
            Some(StepStatus::Flaky) => Some("hm.flaky"),
            Some(StepStatus::FailedAllowed) => Some("hm.failure_allowed"),
            _ => None,
        };
        attributes.extend(flag.map(|name| attribute(name, Value::Flag(true))));
        if step.started_ms.is_some() {
            attributes.push(number("hm.attempts", step.attempt_times.len() as u64));
            attributes.extend(exit_code(step.exit_code.filter(|_| step.status.is_some())));
        }
        if let Some(usage) = step.usage {
            attributes.push(number("hm.memory.peak_bytes", usage.peak_memory_bytes));
            attributes.push(number("hm.cpu.time_ms", usage.cpu_ms));
        }
        if let Some(tests) = &step.tests {
            attributes.push(number("hm.tests.count", tests.tests.into()));
            attributes.push(number("hm.tests.failed", tests.failed.into()));
            attributes.push(number("hm.tests.skipped", tests.skipped.into()));
        }
        let waited = step.builds_in.iter().map(|it| (it, "builds_in"));
        let waited: Vec<_> = waited.chain(step.depends_on.iter().map(|it| (it, "depends_on"))).collect();
        let id = self.span_id("step", index.0);
        let message = match &step.message {
            Some(reason) => format!("{}: {reason}", describe(step)),
            None => describe(step),
        };
        spans.push(Span {
            trace_id: self.id.to_vec(),
            span_id: id.clone(),
            trace_state: String::new(),
            parent_span_id: self.span_id("run", 0),
            name: clip(&step.display_name),
            kind: INTERNAL,
            start_time_unix_nano: self.nanos(step.started_ms.unwrap_or(end).min(end)),
            end_time_unix_nano: self.nanos(end),
            attributes,
            links: waited.iter().take(MAX_LINKS).map(|(parent, kind)| self.link(**parent, kind)).collect(),
            dropped_links_count: u32::try_from(waited.len().saturating_sub(MAX_LINKS)).unwrap_or(u32::MAX),
            status: error.map(|_| Status { message: clip(&message), code: ERROR }),
        });
        if step.attempt_times.len() > 1 {
            spans.extend(step.attempt_times.iter().map(|attempt| self.attempt(step, index, attempt, &id)));
        }
    }

    fn attempt(&self, step: &StepRecord, index: StepIndex, attempt: &AttemptTimes, parent: &[u8]) -> Span {
        let failed = step.failed_attempts.iter().find(|(number, _)| *number == attempt.attempt);
        let ((result, error), code) = match (&attempt.retry, failed) {
            (Some(_), Some((_, code))) => (result(Some(StepStatus::Failed)), Some(*code)),
            (Some(_), None) => (result(Some(StepStatus::Infrastructure)), None),
            (None, _) => (result(step.status), step.exit_code.filter(|_| step.status.is_some())),
        };
        let mut attributes =
            vec![number("hm.attempt", attempt.attempt.into()), text("cicd.pipeline.task.run.result", result)];
        attributes.extend(error.map(|error| text("error.type", error)));
        attributes.extend(exit_code(code));
        let message = attempt.retry.as_deref().or(step.message.as_deref()).unwrap_or_default();
        let end = attempt.ended_ms.unwrap_or(self.end_ms).max(attempt.started_ms);
        Span {
            trace_id: self.id.to_vec(),
            span_id: self.span_id(&format!("attempt {}", attempt.attempt), index.0),
            trace_state: String::new(),
            parent_span_id: parent.to_vec(),
            name: format!("attempt {}", attempt.attempt),
            kind: INTERNAL,
            start_time_unix_nano: self.nanos(attempt.started_ms),
            end_time_unix_nano: self.nanos(end),
            attributes,
            links: Vec::new(),
            dropped_links_count: 0,
            status: error.map(|_| Status { message: clip(message), code: ERROR }),
        }
    }

    fn link(&self, parent: StepIndex, kind: &str) -> Link {
        let span_id = self.span_id("step", parent.0);
        Link { trace_id: self.id.to_vec(), span_id, attributes: vec![text("hm.edge", kind)] }
    }

    /// Returns the id of a span of this run.
    fn span_id(&self, kind: &str, index: u32) -> Vec<u8> {
        let digest = Sha256::new().chain_update(self.run.as_bytes()).chain_update(index.to_le_bytes());
        let digest = digest.chain_update(kind).finalize();
        let id = &digest[..8];
        // Zero is no id.
        if id == [0; 8] { vec![1; 8] } else { id.to_vec() }
    }

    /// Returns a time of the run in nanoseconds since the Unix epoch.
    fn nanos(&self, ms: u64) -> u64 {
        let start = u64::try_from(self.record.started_at.timestamp_millis()).unwrap_or(0);
        start.saturating_add(ms).saturating_mul(1_000_000)
    }
}

/// Returns a result in the words of the conventions, and the class of its error.
fn result(status: Option<StepStatus>) -> (&'static str, Option<&'static str>) {
    match status {
        Some(StepStatus::Passed | StepStatus::Flaky | StepStatus::CacheHit) => ("success", None),
        Some(StepStatus::Failed | StepStatus::FailedAllowed) => ("failure", Some("command_failed")),
        Some(StepStatus::OutOfMemory) => ("failure", Some("out_of_memory")),
        Some(StepStatus::TimedOut) => ("timeout", Some("timeout")),
        Some(StepStatus::Infrastructure) => ("error", Some("could_not_run")),
        Some(StepStatus::Skipped) => ("skip", None),
        Some(StepStatus::Canceled) => ("cancellation", None),
        None => ("error", Some("interrupted")),
        Some(_) => ("error", Some("_OTHER")),
    }
}

fn exit_code(code: Option<i32>) -> Option<KeyValue> {
    code.map(|code| attribute("process.exit.code", Value::Number(code.into())))
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::Text(clip(value)))
}

fn number(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::Number(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

fn clip(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}
