//! Equal steps that run at the same time.

use hm_exec::StepStatus::{CacheHit, Canceled, Failed, Passed};
use serde_json::Value;

use crate::support::layer_writer::{Bench, Ended, cached, pipeline, request};

/// Returns steps that share one cache key.
fn equal(keys: &[&str]) -> Value {
    let mut steps: Vec<Value> = keys.iter().map(|key| cached(key)).collect();
    for step in &mut steps {
        (step["cmd"], step["cache"]["key"]) = ("make it".into(), "one".into());
    }
    pipeline(&steps, &[])
}

#[tokio::test]
async fn equal_steps_of_a_build_run_once_whatever_the_parallelism() {
    for parallelism in [1, 4] {
        let bench = Bench::new();
        let engine = bench.builder().parallelism(parallelism.try_into().unwrap()).build().unwrap();
        let ended = Ended::of(engine.start(request(&equal(&["a", "b", "c"]))).await.unwrap()).await;
        assert_eq!(ended.statuses(), [Passed, CacheHit, CacheHit]);
        assert_eq!(bench.take_ran(), ["a"]);
    }
}

#[tokio::test]
async fn if_the_first_of_equal_steps_fails_the_next_one_runs() {
    let bench = Bench::new();
    bench.state().exits.insert("a".into(), vec![1]);
    let ended = bench.run_with(&equal(&["a", "b", "c"]), |request| request.options.keep_going = true).await;
    let statuses = ended.statuses();
    assert_eq!(statuses[0], Failed);
    assert_eq!(statuses[1..].iter().filter(|status| **status == Passed).count(), 1, "{statuses:?}");
    assert_eq!(statuses[1..].iter().filter(|status| **status == CacheHit).count(), 1, "{statuses:?}");
    assert_eq!(bench.take_ran().len(), 2);
}

#[tokio::test]
async fn equal_steps_of_two_builds_run_once() {
    let bench = Bench::new();
    let engine = bench.builder().build().unwrap();
    let first = engine.start(request(&equal(&["slow"]))).await.unwrap();
    bench.writer.waits.notified().await;
    let second = engine.start(request(&equal(&["slow"]))).await.unwrap();
    tokio::task::yield_now().await;
    bench.writer.go.notify_one();
    let (first, second) = tokio::join!(Ended::of(first), Ended::of(second));
    assert_eq!((first.statuses(), second.statuses()), (vec![Passed], vec![CacheHit]));
    assert_eq!(bench.take_ran(), ["slow"]);
}

#[tokio::test]
async fn a_build_that_waits_for_a_step_of_another_can_be_cancelled_alone() {
    let bench = Bench::new();
    let engine = bench.builder().build().unwrap();
    let first = engine.start(request(&equal(&["slow"]))).await.unwrap();
    bench.writer.waits.notified().await;
    let (_, second) = engine.start(request(&equal(&["slow"]))).await.unwrap().into_parts();
    tokio::task::yield_now().await;
    second.cancel();
    let outcome = second.wait().await.unwrap();
    assert_eq!((outcome.steps[0].status, outcome.steps[0].attempts), (Canceled, 0));
    bench.writer.go.notify_one();
    assert_eq!(Ended::of(first).await.statuses(), [Passed]);
}

#[tokio::test]
async fn a_waiting_build_takes_over_when_the_other_is_cancelled() {
    let bench = Bench::new();
    let engine = bench.builder().build().unwrap();
    let (_, first) = engine.start(request(&equal(&["slow"]))).await.unwrap().into_parts();
    bench.writer.waits.notified().await;
    let second = engine.start(request(&equal(&["slow"]))).await.unwrap();
    tokio::task::yield_now().await;
    first.cancel();
    first.wait().await.unwrap();
    bench.writer.waits.notified().await;
    bench.writer.go.notify_one();
    assert_eq!(Ended::of(second).await.statuses(), [Passed]);
    assert_eq!(bench.take_ran(), ["slow", "slow"]);
}
