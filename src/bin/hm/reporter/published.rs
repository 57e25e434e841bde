//! The event stream in the dialect of the published crate `hm-plugin-protocol` 0.0.9, which the programs of
//! the ecosystem read.
//!
//! Input: our events, and a few facts about the plan that they do not have. Output: events of the kinds that
//! the crate knows, with its meanings. Everything else is in extra fields of these kinds, or only in
//! `--format json-full`. `docs/design/moving-in.md` lists the differences.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use hm_exec::{
    BuildEvent, StepStatus,
    event::{CacheMissReason, Connection, ConnectionEnd},
    ir::EdgeKind,
    plan::{BoundPlan, Dag, StepIndex},
};
use serde::Serialize;
use uuid::Uuid;

/// What the dialect requires about a plan that our events do not have.
#[derive(Debug)]
pub(super) struct PlanFacts {
    /// By the index of the step, which is also the order of `step_queued`.
    steps: Vec<StepFacts>,
    /// `None` if the plan is not known, because another machine runs it.
    chain_count: Option<usize>,
}

#[derive(Debug, Clone)]
struct StepFacts {
    chain: usize,
    /// The position in the chain, from 0.
    position: usize,
    cache_key: Option<Arc<str>>,
    timeout: Option<Duration>,
}

impl PlanFacts {
    pub(super) fn of(plan: &BoundPlan) -> Self {
        let (places, chain_count) = chains(&plan.dag);
        let steps = plan.steps.iter().zip(places).map(|(bound, (chain, position))| StepFacts {
            chain,
            position,
            cache_key: bound.step.cache.as_ref().and_then(|cache| cache.key.clone()),
            timeout: bound.timeout(),
        });
        Self { steps: steps.collect(), chain_count: Some(chain_count) }
    }

    /// Returns the facts of a build that another machine runs: one chain, and no snapshots here.
    pub(super) fn observed() -> Self {
        Self { steps: Vec::new(), chain_count: None }
    }
}

/// Returns the chain of each step and its position in it, and the number of chains. A chain continues through
/// an only `builds_in` child that has no other parent; ours continue through the first one.
fn chains(dag: &Dag) -> (Vec<(usize, usize)>, usize) {
    let mut places: Vec<Option<(usize, usize)>> = vec![None; dag.len()];
    let mut count = 0;
    for first in dag.steps() {
        let (mut next, mut position) = (Some(first), 0);
        while let Some(step) = next.filter(|step| places[step.get()].is_none()) {
            places[step.get()] = Some((count, position));
            position += 1;
            next = only_heir(dag, step);
        }
        count += usize::from(position > 0);
    }
    (places.into_iter().map(Option::unwrap_or_default).collect(), count)
}

/// Returns the only `builds_in` child of `step`, if it has no other parent.
fn only_heir(dag: &Dag, step: StepIndex) -> Option<StepIndex> {
    let mut heirs = dag.children(step).iter().filter(|link| link.kind == EdgeKind::BuildsIn);
    let heir = heirs.next().filter(|_| heirs.next().is_none())?.step;
    (dag.parents(heir).len() == 1).then_some(heir)
}

/// Translates events.
#[derive(Debug)]
pub(super) struct Translator {
    plan: PlanFacts,
    queued: usize,
    steps: HashMap<Uuid, Step>,
    not_run: Vec<NotRun>,
}

/// What is known about a step.
#[derive(Debug)]
struct Step {
    key: Arc<str>,
    facts: Option<StepFacts>,
    /// Facts for the next event about the step.
    extra: Extra,
    /// The connections so far, if there are any.
    connections: Option<Connections>,
    status: Option<StepStatus>,
}

/// An event in the dialect.
#[derive(Debug, Serialize)]
pub(super) struct Translated<'a> {
    #[serde(flatten)]
    event: Cow<'a, BuildEvent>,
    #[serde(flatten)]
    extra: Extra,
}

/// Fields that the published crate does not know, of kinds that it knows.
#[derive(Debug, Default, Serialize)]
struct Extra {
    /// The reason why a cached step starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_miss: Option<CacheMiss>,
    /// The reason why the previous attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<Retry>,
    /// The reason why output is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    log_lost: Option<Arc<str>>,
    /// The steps that never ran.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_run: Vec<NotRun>,
    /// The connections of a step that has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<Connections>,
}

/// The sum of a step's connections.
#[derive(Debug, Default, Serialize)]
struct Connections {
    count: u64,
    blocked: u64,
    sent: u64,
    received: u64,
}

impl Connections {
    fn add(&mut self, connection: &Connection) {
        self.count += connection.count;
        if connection.end == ConnectionEnd::Blocked {
            self.blocked += connection.count;
        }
        self.sent = self.sent.saturating_add(connection.sent);
        self.received = self.received.saturating_add(connection.received);
    }
}

#[derive(Debug, Serialize)]
struct CacheMiss {
    reason: CacheMissReason,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Arc<str>>,
}

#[derive(Debug, Serialize)]
struct Retry {
    backoff_ms: u64,
    message: Arc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
}

/// A step that never ran, because of another step or because the build was cancelled.
#[derive(Debug, Serialize)]
struct NotRun {
    step_id: Uuid,
    key: Arc<str>,
    status: StepStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Arc<str>>,
}

impl Translator {
    pub(super) fn new(plan: PlanFacts) -> Self {
        Self { plan, queued: 0, steps: HashMap::new(), not_run: Vec::new() }
    }

    /// Returns `event` in the dialect. Returns `None` if the dialect has no such event.
    pub(super) fn translate<'a>(&mut self, event: &'a BuildEvent) -> Option<Translated<'a>> {
        if let Some(step) = event_step(event).and_then(|step_id| self.steps.get_mut(&step_id)) {
            match event {
                BuildEvent::StepCacheMiss { reason, message, .. } => {
                    step.extra.cache_miss = Some(CacheMiss { reason: *reason, message: message.clone() });
                    return None;
                }
                &BuildEvent::StepRetry { backoff_ms, ref message, exit_code, .. } => {
                    step.extra.retry = Some(Retry { backoff_ms, message: message.clone(), exit_code });
                    return None;
                }
                BuildEvent::Connection { connection, .. } => {
                    step.connections.get_or_insert_default().add(connection);
                    return None;
                }
                BuildEvent::StepShadow { .. } => return None,
                BuildEvent::StepLogLost { message, .. } => {
                    step.extra.log_lost = Some(message.clone());
                    return None;
                }
                _ => {}
            }
        }
        let mut event = Cow::Borrowed(event);
        let mut extra = Extra::default();
        match &*event {
            BuildEvent::StepLog { .. } | BuildEvent::BuildAccepted { .. } => {}
            BuildEvent::BuildStart { .. } => {
                if let BuildEvent::BuildStart { plan, .. } = event.to_mut() {
                    plan.chain_count = self.plan.chain_count.unwrap_or(1);
                }
            }
            BuildEvent::StepQueued { step_id, key, .. } => {
                let (step_id, key) = (*step_id, key.clone());
                let facts = self.plan.steps.get(self.queued).cloned();
                self.queued += 1;
                let position = match &facts {
                    Some(facts) => Some(facts.position),
                    None => self.plan.chain_count.is_none().then(|| self.queued - 1),
                };
                if let (BuildEvent::StepQueued { chain_idx, .. }, Some(position)) = (event.to_mut(), position) {
                    *chain_idx = position;
                }
                self.steps
                    .insert(step_id, Step { key, facts, extra: Extra::default(), connections: None, status: None });
            }
            BuildEvent::StepStart { step_id, .. } => extra = self.take_extra(*step_id),
            BuildEvent::StepCacheHit { step_id, .. } => {
                let facts = self.steps.get(step_id).and_then(|step| step.facts.as_ref());
                let cache_key = facts.and_then(|facts| facts.cache_key.clone()).unwrap_or_default();
                if let BuildEvent::StepCacheHit { key, .. } = event.to_mut() {
                    *key = cache_key;
                }
            }
            &BuildEvent::StepEnd { step_id, status, attempt, .. } => {
                extra = self.take_extra(step_id);
                if let Some(step) = self.steps.get_mut(&step_id) {
                    step.status = Some(status);
                    extra.connections = step.connections.take();
                }
                if attempt == 0 && matches!(status, StepStatus::Skipped | StepStatus::Canceled) {
                    self.note_not_run(step_id, &event);
                    return None;
                }
                if matches!(status, StepStatus::Passed | StepStatus::Flaky)
                    && self.plan.chain_count.is_some()
                    && let BuildEvent::StepEnd { snapshot: snapshot @ None, .. } = event.to_mut()
                {
                    *snapshot = Some(format!("ephemeral:{step_id}").as_str().into());
                }
            }
            BuildEvent::ChainFailed { .. } => {
                if let BuildEvent::ChainFailed { chain_idx, failed_step_id, exit_code, message, .. } = event.to_mut()
                    && let Some(step) = self.steps.get(failed_step_id)
                {
                    match &step.facts {
                        Some(facts) => *chain_idx = facts.chain,
                        None if self.plan.chain_count.is_none() => *chain_idx = 0,
                        None => {}
                    }
                    *message = failure_message(step, *exit_code, message);
                }
            }
            BuildEvent::BuildEnd { .. } => extra.not_run = std::mem::take(&mut self.not_run),
            _ => return None,
        }
        Some(Translated { event, extra })
    }

    fn take_extra(&mut self, step_id: Uuid) -> Extra {
        self.steps.get_mut(&step_id).map(|step| std::mem::take(&mut step.extra)).unwrap_or_default()
    }

    fn note_not_run(&mut self, step_id: Uuid, end: &BuildEvent) {
        if let (BuildEvent::StepEnd { status, message, .. }, Some(step)) = (end, self.steps.get(&step_id)) {
            let (key, message) = (step.key.clone(), message.clone());
            self.not_run.push(NotRun { step_id, key, status: *status, message });
        }
    }
}

/// Returns the step of an event that the dialect does not have.
fn event_step(event: &BuildEvent) -> Option<Uuid> {
    match event {
        BuildEvent::StepCacheMiss { step_id, .. }
        | BuildEvent::StepRetry { step_id, .. }
        | BuildEvent::Connection { step_id, .. }
        | BuildEvent::StepShadow { step_id, .. }
        | BuildEvent::StepLogLost { step_id, .. } => Some(*step_id),
        _ => None,
    }
}

/// Returns the message of `chain_failed`, which names the step.
fn failure_message(step: &Step, exit_code: i32, message: &str) -> Arc<str> {
    let key = &step.key;
    let limit = step.facts.as_ref().and_then(|facts| facts.timeout);
    match (step.status, limit) {
        (Some(StepStatus::Failed), _) => format!("step '{key}' exited with code {exit_code}").into(),
        (Some(StepStatus::TimedOut), Some(limit)) => {
            format!("step '{key}' timed out after {}s", limit.as_secs()).into()
        }
        _ => format!("step '{key}': {message}").into(),
    }
}

#[cfg(test)]
mod tests {
    use hm_exec::{event::Protocol, ir::Edge};

    use super::*;

    const SKIPPED: Uuid = Uuid::from_u128(2);

    fn ids(at: u128) -> Uuid {
        Uuid::from_u128(at)
    }

    /// Translates events of two steps, and decodes the result with the published crate.
    fn translated(events: &[BuildEvent]) -> Vec<serde_json::Value> {
        let facts = |chain| StepFacts { chain, position: 0, cache_key: None, timeout: None };
        let mut translator = Translator::new(PlanFacts { steps: vec![facts(0), facts(1)], chain_count: Some(2) });
        let queued = [(ids(1), "a"), (SKIPPED, "b")].map(|(step_id, key)| BuildEvent::StepQueued {
            seq: 0,
            step_id,
            key: key.into(),
            chain_idx: 9,
            parent_key: None,
            display_name: key.into(),
        });
        let mut shown = Vec::new();
        for event in queued.iter().chain(events) {
            let Some(translated) = translator.translate(event) else { continue };
            let json = serde_json::to_string(&translated).unwrap();
            assert!(json.starts_with(r#"{"kind":""#), "{json}");
            serde_json::from_str::<hm_plugin_protocol::BuildEvent>(&json).unwrap();
            shown.push(serde_json::from_str(&json).unwrap());
        }
        shown.split_off(2)
    }

    fn start(attempt: u32) -> BuildEvent {
        BuildEvent::StepStart { seq: 0, step_id: ids(1), runner: "sandbox".into(), image: None, attempt }
    }

    fn retry(backoff_ms: u64, message: &str, exit_code: Option<i32>) -> BuildEvent {
        BuildEvent::StepRetry { seq: 0, step_id: ids(1), attempt: 1, backoff_ms, message: message.into(), exit_code }
    }

    fn end(step_id: Uuid, status: StepStatus, exit_code: i32, attempt: u32) -> BuildEvent {
        let (snapshot, message, artifacts) = (None, Some("why".into()), Vec::new());
        BuildEvent::StepEnd {
            seq: 0,
            step_id,
            exit_code,
            duration_ms: 1,
            snapshot,
            status,
            attempt,
            message,
            artifacts,
            usage: None,
            tests: None,
        }
    }

    #[test]
    fn connections_are_summed_up_at_the_end_of_their_step() {
        let connection = |end, sent| {
            let mut connection = Connection::new(Protocol::Tcp, end);
            connection.sent = sent;
            let (connection, ts) = (Box::new(connection), chrono::DateTime::UNIX_EPOCH);
            BuildEvent::Connection { seq: 0, step_id: ids(1), attempt: 1, ts, connection }
        };
        let shown = translated(&[
            start(1),
            connection(ConnectionEnd::Closed, 3),
            connection(ConnectionEnd::Blocked, 0),
            connection(ConnectionEnd::Closed, 4),
            end(ids(1), StepStatus::Failed, 1, 1),
        ]);
        assert_eq!(shown.len(), 2);
        let sum = serde_json::json!({"count": 3, "blocked": 1, "sent": 7, "received": 0});
        assert_eq!(shown[1]["connections"], sum);
        assert_eq!(shown[0].get("connections"), None);
    }

    #[test]
    fn what_the_published_crate_does_not_know_travels_with_the_next_event_that_it_knows() {
        let shown = translated(&[
            BuildEvent::StepCacheMiss {
                seq: 0,
                step_id: ids(1),
                key: "a".into(),
                reason: CacheMissReason::Damaged,
                message: Some("gone".into()),
            },
            start(1),
            retry(250, "lost", None),
            start(2),
            BuildEvent::StepLogLost { seq: 0, step_id: ids(1), attempt: 2, message: "removed".into() },
            BuildEvent::Unknown(serde_json::Map::new()),
            end(ids(1), StepStatus::Infrastructure, 3, 2),
            BuildEvent::ChainFailed {
                seq: 0,
                chain_idx: 9,
                failed_step_id: ids(1),
                failed_step_key: "a".into(),
                exit_code: 3,
                message: "why".into(),
                ts: chrono::DateTime::UNIX_EPOCH,
            },
        ]);
        let kinds: Vec<_> = shown.iter().map(|event| event["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["step_start", "step_start", "step_end", "chain_failed"]);
        assert_eq!(shown[0]["cache_miss"], serde_json::json!({ "reason": "damaged", "message": "gone" }));
        assert_eq!(shown[1]["retry"], serde_json::json!({ "backoff_ms": 250, "message": "lost" }));
        assert!(shown[1].get("cache_miss").is_none() && shown[2]["log_lost"] == "removed");
        assert_eq!((&shown[3]["message"], &shown[3]["chain_idx"]), (&"step 'a': why".into(), &0.into()));
    }

    #[test]
    fn a_flaky_step_has_passed_and_an_allowed_failure_keeps_its_exit_code() {
        let shown = translated(&[
            start(1),
            retry(0, "the command exited with 7; retry 1 of 1", Some(7)),
            start(2),
            end(ids(1), StepStatus::Flaky, 0, 2),
            end(SKIPPED, StepStatus::FailedAllowed, 9, 1),
            BuildEvent::BuildEnd { seq: 0, exit_code: 0, duration_ms: 1, status: hm_exec::BuildStatus::Passed },
        ]);
        let kinds: Vec<_> = shown.iter().map(|event| event["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["step_start", "step_start", "step_end", "step_end", "build_end"]);
        assert_eq!(shown[1]["retry"]["exit_code"], 7);
        assert_eq!((&shown[2]["status"], &shown[2]["exit_code"]), (&"flaky".into(), &0.into()));
        assert_eq!(shown[2]["snapshot"], format!("ephemeral:{}", ids(1)));
        assert_eq!((&shown[3]["status"], &shown[3]["exit_code"]), (&"failed_allowed".into(), &9.into()));
        assert!(shown[3]["snapshot"].is_null() && shown[4].get("not_run").is_none());
    }

    #[test]
    fn steps_that_never_ran_are_listed_at_the_end_and_cancelled_ones_end() {
        let shown = translated(&[
            end(ids(1), StepStatus::Canceled, 130, 1),
            end(SKIPPED, StepStatus::Skipped, -1, 0),
            BuildEvent::BuildEnd { seq: 0, exit_code: 1, duration_ms: 1, status: hm_exec::BuildStatus::Failed },
        ]);
        assert_eq!((&shown[0]["exit_code"], &shown[0]["snapshot"]), (&130.into(), &serde_json::Value::Null));
        let not_run = serde_json::json!([{ "step_id": SKIPPED, "key": "b", "status": "skipped", "message": "why" }]);
        assert_eq!((shown.len(), &shown[1]["not_run"]), (2, &not_run));
    }

    fn places(len: usize, edges: &[Edge]) -> (Vec<(usize, usize)>, usize) {
        chains(&Dag::new(len, edges).unwrap())
    }

    #[test]
    fn a_chain_ends_at_a_fork_and_before_a_step_with_two_parents() {
        use EdgeKind::{BuildsIn, DependsOn};
        let line = [Edge(0, 1, BuildsIn), Edge(1, 2, BuildsIn)];
        assert_eq!(places(3, &line), (vec![(0, 0), (0, 1), (0, 2)], 1));
        let fork = [Edge(0, 1, BuildsIn), Edge(0, 2, BuildsIn)];
        assert_eq!(places(3, &fork), (vec![(0, 0), (1, 0), (2, 0)], 3));
        let join = [Edge(0, 1, BuildsIn), Edge(2, 1, DependsOn)];
        assert_eq!(places(3, &join), (vec![(0, 0), (1, 0), (2, 0)], 3));
        // A child before its parent in the IR has a chain of its own.
        assert_eq!(places(2, &[Edge(1, 0, BuildsIn)]), (vec![(0, 0), (1, 0)], 2));
        assert_eq!(places(0, &[]), (vec![], 0));
    }
}
