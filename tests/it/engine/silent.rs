//! Runners that do not answer: a build neither waits for them for ever nor starts on them.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use hm_exec::{
    BackendError, BuildEvent, BuildStatus, Engine, ExecutorInput, RunnerSet, StepResult,
    event::CacheMissReason,
    runner::{Probe, RunnerError, StepContext, StepRunner},
};

use crate::support::{
    graphs::Graph,
    layer_writer::{Bench, Ended, cached, pipeline, request as cached_request},
    scripted::request,
};

/// A runner whose probe never ends.
#[derive(Debug)]
struct Silent;

impl StepRunner for Silent {
    const NAME: &'static str = "silent";

    async fn execute(&self, _: &StepContext, _: ExecutorInput) -> Result<StepResult, RunnerError> {
        Ok(StepResult::exited(0))
    }

    async fn probe(&self) -> Probe {
        pending().await
    }
}

#[derive(Debug, RunnerSet)]
struct Runners {
    #[runner(default)]
    silent: Silent,
}

#[tokio::test(start_paused = true)]
async fn a_runner_whose_probe_does_not_end_is_unusable() {
    let begun = tokio::time::Instant::now();
    let engine = Engine::builder(Runners { silent: Silent }).build().unwrap();
    let error = engine.start(request(&Graph::chain(1))).await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), 30);
    let BackendError::Unusable { runner, reason, .. } = error else { panic!("{error:?}") };
    assert_eq!((&*runner, &*reason), ("silent", "its check did not end within 30 s"));
    assert_eq!(engine.runners().probe_all().await.len(), 1);
    assert_eq!(begun.elapsed().as_secs(), 60);

    let limit = Duration::from_millis(1500);
    let impatient = Engine::builder(Runners { silent: Silent }).probe_limit(limit).build().unwrap();
    let error = impatient.run(request(&Graph::chain(1))).await.unwrap_err();
    assert!(error.to_string().contains("within 1.5 s"), "{error}");
}

#[tokio::test]
async fn a_step_whose_runner_never_names_its_cache_key_runs() {
    let bench = Bench::new();
    bench.state().identity_hangs = true;
    let engine = bench.builder().probe_limit(Duration::from_millis(20)).build().unwrap();
    let handle = engine.start(cached_request(&pipeline(&[cached("a")], &[]))).await.unwrap();
    let ended = Ended::of(handle).await;
    assert!(ended.passed());
    let miss = ended.events.iter().find_map(|event| match event {
        BuildEvent::StepCacheMiss { reason, message, .. } => Some((*reason, message.clone()?)),
        _ => None,
    });
    let message = "the runner did not answer within 0.02 s".into();
    assert_eq!(miss, Some((CacheMissReason::Unavailable, message)));
}

#[tokio::test]
async fn a_runner_that_is_probed_late_and_does_not_answer_fails_its_steps() {
    let bench = Bench::new();
    bench.state().probe_hangs = true;
    let begun = Instant::now();
    let engine = bench.builder().probe_limit(Duration::from_millis(20)).build().unwrap();
    let handle = engine.start(cached_request(&pipeline(&[cached("a")], &[]))).await.unwrap();
    let ended = Ended::of(handle).await;
    assert_eq!(ended.outcome.status, BuildStatus::Infrastructure, "after {:?}", begun.elapsed());
    assert!(bench.take_ran().is_empty());
}
