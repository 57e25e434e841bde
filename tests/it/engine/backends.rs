//! Backends: those of other crates, behind pointers, and with more than one reader.

#![expect(clippy::disallowed_methods, reason = "a backend of another crate spawns tasks of its own")]

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::DateTime;
use futures_util::stream;
use hm_exec::{
    BackendError, BackendHandle, BuildEvent, BuildOutcome, BuildRef, BuildStatus, Capabilities, DynExecutionBackend,
    EventStream, ExecutionBackend, RunRequest, StepResultSummary, StepStatus, event::EventBatch,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{
    graphs::Graph,
    scripted::{Act, PASS, Scripted, request},
};

/// A backend that says that each step passed.
#[derive(Debug, Default)]
struct Claims {
    /// Whether builds go on until they are cancelled.
    never_ends: bool,
    /// Whether such a build was cancelled.
    was_cancelled: Arc<AtomicBool>,
}

fn build(run_id: Uuid) -> BuildRef {
    BuildRef { run_id, number: Some(7), org: None, pipeline: "p".into() }
}

fn build_end() -> BuildEvent {
    BuildEvent::BuildEnd { seq: 1, exit_code: 0, duration_ms: 0, status: BuildStatus::Passed }
}

impl ExecutionBackend for Claims {
    fn name(&self) -> &'static str {
        "claims"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::none();
        capabilities.supports_no_watch = true;
        capabilities
    }

    async fn start(&self, request: RunRequest) -> hm_exec::Result<BackendHandle> {
        let (events, receiver) = mpsc::channel(1);
        let cancel = CancellationToken::new();
        let (cancelled, never_ends) = (cancel.clone(), self.never_ends);
        let was_cancelled = Arc::clone(&self.was_cancelled);
        let outcome = tokio::spawn(async move {
            let build = build(request.run_id.unwrap());
            let accepted = BuildEvent::BuildAccepted { seq: 0, build: build.clone(), watch_url: None };
            // The caller may have dropped the stream.
            let _ = events.send(accepted).await;
            let mut status = BuildStatus::Passed;
            if never_ends {
                cancelled.cancelled().await;
                was_cancelled.store(true, Ordering::Relaxed);
                status = BuildStatus::Canceled;
            }
            let _ = events.send(build_end()).await;
            let mut outcome = BuildOutcome::new(build, status, DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH);
            for step in request.plan.dag().steps() {
                let key = Arc::clone(&request.plan.pipeline().nodes[step.get()].step.key);
                outcome.steps.push(StepResultSummary::new(Uuid::nil(), key, StepStatus::Passed));
            }
            Ok(outcome)
        });
        Ok(BackendHandle::spawn(receiver, cancel, outcome))
    }
}

async fn all(mut events: EventStream) -> Vec<BuildEvent> {
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        seen.push(event);
    }
    assert_eq!(events.next().await, None, "a stream that has ended stays at its end");
    seen
}

/// Runs a build on a backend, and returns its events and its outcome.
async fn run_on(backend: &dyn DynExecutionBackend) -> (Vec<BuildEvent>, BuildOutcome) {
    let (events, control) = backend.start(request(&Graph::chain(2))).await.unwrap().into_parts();
    let events = all(events).await;
    (events, control.wait().await.unwrap())
}

#[tokio::test]
async fn a_backend_of_another_crate_runs_builds_by_itself_and_behind_pointers() {
    let (events, outcome) = run_on(&Claims::default()).await;
    assert!(matches!(&events[..], [BuildEvent::BuildAccepted { .. }, last] if last.is_build_end()), "{events:?}");
    assert!(!events[0].is_build_end());
    let steps: Vec<_> = outcome.steps.iter().map(|step| (&*step.key, step.status, step.attempts)).collect();
    assert_eq!(steps, [("s0", StepStatus::Passed, 1), ("s1", StepStatus::Passed, 1)]);

    let boxed: Box<dyn DynExecutionBackend> = Box::new(Claims::default());
    let shared: Arc<dyn DynExecutionBackend> = Arc::new(Claims::default());
    assert_eq!((boxed.name(), shared.name()), ("claims", "claims"));
    assert!(boxed.capabilities().supports_no_watch && shared.capabilities().supports_no_watch);
    let engine: Box<dyn DynExecutionBackend> = Box::new(Scripted::new([]).engine().build().unwrap());
    assert_eq!(engine.name(), "local");
    assert_eq!(run_on(&*boxed).await, (events.clone(), outcome.clone()));
    assert_eq!(run_on(&*shared).await, (events, outcome));
    assert_eq!(run_on(&*engine).await.1.status, BuildStatus::Passed);
}

/// A backend as version 0.0.9 had them.
#[derive(Debug)]
struct Refuses;

#[async_trait::async_trait]
impl DynExecutionBackend for Refuses {
    fn name(&self) -> &str {
        "refuses"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::cloud()
    }

    async fn start(&self, request: RunRequest) -> hm_exec::Result<BackendHandle> {
        // So that there is something to wait for.
        tokio::task::yield_now().await;
        Err(BackendError::NotFound(request.pipeline_slug))
    }
}

#[tokio::test]
async fn a_backend_that_uses_async_trait_needs_another_trait_name_only() {
    let backend: Box<dyn DynExecutionBackend> = Box::new(Refuses);
    let error = backend.run(request(&Graph::chain(1))).await.unwrap_err();
    assert_eq!(error.to_string(), "not found: source");
    let boxed: BackendError = Box::<dyn std::error::Error + Send + Sync>::from("odd").into();
    assert!(matches!(boxed, BackendError::Other(_)));
}

#[tokio::test]
async fn a_source_that_is_too_large_is_described_with_its_largest_entries() {
    let error = |largest_paths| BackendError::SourceTooLarge { observed_bytes: 7, cap_bytes: 6, largest_paths };
    let sizes = vec![("target".to_owned(), 3 << 20), ("a b".to_owned(), 5)];
    assert_eq!(
        error(sizes).to_string(),
        "the packed source has 7 bytes, but at most 6 are accepted; the largest are target (3.0 MiB), a b (5 B)"
    );
    assert_eq!(error(vec![]).to_string(), "the packed source has 7 bytes, but at most 6 are accepted");
}

#[tokio::test]
async fn a_stream_of_another_crate_returns_single_events_as_batches_and_has_one_reader() {
    let outcome = tokio::spawn(pending());
    let handle = BackendHandle::new(stream::iter([build_end()]), CancellationToken::new(), outcome);
    let (mut events, control) = handle.into_parts();
    assert!(control.subscribe().is_none());
    assert_eq!(events.next_batch().await, Some(EventBatch::Event(build_end())));
    assert_eq!(events.next_batch().await, None);
    assert_eq!(events.next_batch().await, None);
    assert!(events.error().is_none());
}

#[tokio::test(start_paused = true)]
async fn every_reader_of_an_engines_build_gets_all_events_whenever_it_subscribes() {
    let runner = Scripted::new([("s0", vec![Act::Print(b"one\ntwo\n")]), ("s1", vec![PASS])]);
    let handle = runner.engine().build().unwrap().start(request(&Graph::chain(2))).await.unwrap();
    // A backend that wraps the engine.
    let (events, control) = handle.into_parts();
    let (mut first, control) = BackendHandle::from_parts(events, control).into_parts();
    let early = control.subscribe().unwrap();
    let mut seen = vec![first.next().await.unwrap()];
    let midway = control.subscribe().unwrap();
    seen.extend(all(first).await);
    let late = control.subscribe().unwrap();
    assert_eq!(control.wait().await.unwrap().status, BuildStatus::Passed);
    assert!(seen.last().unwrap().is_build_end());
    for reader in [early, midway, late] {
        assert_eq!(all(reader).await, seen);
    }
}

#[tokio::test(start_paused = true)]
async fn a_build_that_is_run_to_its_end_returns_its_outcome_and_is_cancelled_if_dropped() {
    let runner = Scripted::new([]);
    let outcome = runner.engine().build().unwrap().run(request(&Graph::chain(2))).await.unwrap();
    assert_eq!((outcome.status, outcome.steps.len()), (BuildStatus::Passed, 2));

    let runner = Scripted::new([("s0", vec![Act::Linger { ms: 5 }])]);
    let engine = runner.engine().build().unwrap();
    let limit = Duration::from_secs(1);
    assert!(tokio::time::timeout(limit, engine.run(request(&Graph::chain(2)))).await.is_err());
    tokio::time::sleep(limit).await;
    assert_eq!(runner.memory.lock().unwrap().running, 0);
    assert_eq!(runner.seen().len(), 1, "the second step never started");

    let waiting = Claims { never_ends: true, ..Claims::default() };
    let claimed = tokio::time::timeout(limit, waiting.run(request(&Graph::chain(1)))).await;
    assert!(claimed.is_err());
    tokio::time::sleep(limit).await;
    assert!(waiting.was_cancelled.load(Ordering::Relaxed));
}
