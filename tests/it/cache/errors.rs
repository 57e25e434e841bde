//! A problem with the cache is a miss, reported in an event, and never a failed build.

use std::{
    fs::{self, File},
    path::Path,
    time::Duration,
};

use hm_exec::{
    BuildStatus,
    StepStatus::{CacheHit, Canceled, Infrastructure, Passed, Skipped},
    event::CacheMissReason::{Absent, Damaged, Unavailable},
    store::Store,
};
use rusqlite::Connection;
use serde_json::Value;

use crate::support::layer_writer::{Bench, Ended, cached, chain, pipeline, plain, request};

/// Returns the directory of the layer that has `file`.
fn layer_with(store: &Path, file: &str) -> std::path::PathBuf {
    let layers = fs::read_dir(store.join("layers")).unwrap().map(|entry| entry.unwrap().path());
    layers.into_iter().find(|layer| layer.join("root").join(file).exists()).unwrap()
}

/// Reopens the same store as another process would, with nothing of it checked yet.
fn reopen(bench: &mut Bench) {
    bench.writer.store = Store::open(bench.writer.store.dir()).unwrap();
}

/// Returns a chain of three cached steps, and a step that is not cached on top.
fn used_chain() -> Value {
    pipeline(&[cached("a"), cached("b"), cached("c"), plain("d")], &[(0, 1), (1, 2), (2, 3)])
}

#[tokio::test]
async fn a_damaged_layer_is_a_reported_miss_and_is_repaired() {
    for damage in ["cut", "emptied", "removed", "unreadable"] {
        let mut bench = Bench::new();
        bench.run(&used_chain()).await;
        let layer = layer_with(bench.writer.store.dir(), "b");
        match damage {
            "cut" => File::options().write(true).open(layer.join("root/b")).unwrap().set_len(1).unwrap(),
            "emptied" => fs::remove_file(layer.join("root/b")).unwrap(),
            "removed" => fs::remove_dir_all(&layer).unwrap(),
            _ => {
                fs::remove_dir_all(layer.join("root")).unwrap();
                fs::write(layer.join("root"), "a file").unwrap();
            }
        }
        reopen(&mut bench);
        let ended = bench.run(&used_chain()).await;
        // The layer is part of what `d` boots from, and then of what `c` boots from.
        assert_eq!(ended.statuses(), [CacheHit, Passed, Passed, Passed], "{damage}");
        let (reason, message) = &ended.misses()["b"];
        assert_eq!((*reason, message.contains("layer")), (Damaged, true), "{damage}: {message}");
        assert_eq!(ended.misses()["c"].0, Absent, "{damage}: its parent is another now");
        reopen(&mut bench);
        let hits = [CacheHit, CacheHit, CacheHit, Passed];
        assert_eq!(bench.run(&used_chain()).await.statuses(), hits, "{damage}");
    }
}

#[tokio::test]
async fn a_damaged_layer_that_no_step_boots_from_is_not_looked_at() {
    let mut bench = Bench::new();
    bench.run(&used_chain()).await;
    fs::remove_dir_all(layer_with(bench.writer.store.dir(), "b")).unwrap();
    reopen(&mut bench);
    assert_eq!(bench.run(&chain()).await.statuses(), [CacheHit; 3]);
    // In the same process, too, it is found when it is needed.
    assert_eq!(bench.run(&used_chain()).await.statuses(), [CacheHit, Passed, Passed, Passed]);
}

#[tokio::test]
async fn of_two_steps_over_one_result_the_one_that_runs_has_it_checked() {
    let fork = |last: Value| pipeline(&[cached("a"), cached("b"), last], &[(0, 1), (0, 2)]);
    let mut bench = Bench::new();
    bench.run(&fork(cached("c"))).await;
    let layer = layer_with(bench.writer.store.dir(), "a");
    fs::remove_file(layer.join("root/a")).unwrap();
    reopen(&mut bench);
    assert_eq!(bench.run(&fork(cached("c"))).await.statuses(), [CacheHit; 3]);
    let ended = bench.run(&fork(plain("d"))).await;
    assert_eq!((ended.statuses(), ended.misses()["a"].0), (vec![Passed; 3], Damaged));
}

#[tokio::test]
async fn a_refreshed_step_has_the_result_below_it_checked() {
    let mut bench = Bench::new();
    bench.run(&chain()).await;
    fs::remove_dir_all(layer_with(bench.writer.store.dir(), "b")).unwrap();
    reopen(&mut bench);
    let mut refreshing = request(&chain());
    refreshing.options.refresh = ["c".to_owned()].into();
    let engine = bench.builder().build().unwrap();
    let ended = Ended::of(engine.start(refreshing).await.unwrap()).await;
    assert_eq!((ended.statuses(), ended.misses()["b"].0), (vec![CacheHit, Passed, Passed], Damaged));
}

#[tokio::test]
async fn an_index_that_breaks_during_a_run_disables_only_the_cache() {
    let bench = Bench::new();
    bench.run(&chain()).await;
    let index = Connection::open(bench.writer.store.dir().join("index.db")).unwrap();
    index.execute_batch("DROP TABLE cache").unwrap();
    let ended = bench.run(&chain()).await;
    assert_eq!(ended.statuses(), [Passed; 3]);
    let (reason, message) = &ended.misses()["a"];
    assert_eq!((*reason, message.contains("index")), (Unavailable, true), "{message}");
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_disables_only_the_cache() {
    let bench = Bench::new();
    let blocked = bench.writer.store.dir().join("format");
    let engine = bench.builder().cache(hm_exec::store::StoreHandle::new(&blocked)).build().unwrap();
    let ended = Ended::of(engine.start(request(&chain())).await.unwrap()).await;
    assert_eq!((ended.statuses(), ended.misses()["c"].0), (vec![Passed; 3], Unavailable));
}

#[tokio::test]
async fn a_result_that_was_made_in_another_way_than_its_key_describes_is_not_kept() {
    let bench = Bench::new();
    bench.state().mode_at_work = Some("other".into());
    let ir = pipeline(&[cached("a")], &[]);
    assert!(bench.run(&ir).await.passed());
    let state = |bench: &Bench, mode: &str| {
        bench.state().mode = mode.into();
        bench.state().mode_at_work = None;
    };
    state(&bench, "plain");
    assert_eq!(bench.run(&ir).await.statuses(), [Passed]);
    state(&bench, "other");
    assert_eq!(bench.run(&ir).await.statuses(), [Passed], "nor under the other key");
}

#[tokio::test]
async fn a_runner_that_is_certainly_needed_is_probed_before_the_build() {
    let bench = Bench::new();
    bench.state().usable = false;
    let engine = bench.builder().build().unwrap();
    let error = engine.start(request(&pipeline(&[cached("a"), plain("b")], &[]))).await.unwrap_err();
    assert!(error.to_string().contains("it is broken; mend it"), "{error}");
    let mut request = request(&chain());
    request.options.refresh = ["b".to_owned()].into();
    assert!(engine.start(request).await.is_err());
}

#[tokio::test]
async fn an_unusable_runner_is_probed_once_at_the_first_miss_and_the_step_reports_it() {
    let bench = Bench::new();
    bench.run(&pipeline(&[cached("a")], &[])).await;
    bench.state().usable = false;
    bench.state().probes = 0;
    assert!(bench.run(&pipeline(&[cached("a")], &[])).await.passed(), "nobody needs the runner");
    let ir = pipeline(&[cached("a"), cached("x"), cached("y"), cached("z")], &[(1, 3)]);
    let ended = bench.run_with(&ir, |request| request.options.keep_going = true).await;
    assert_eq!(ended.outcome.status, BuildStatus::Infrastructure);
    assert_eq!(ended.statuses(), [CacheHit, Infrastructure, Infrastructure, Skipped]);
    assert_eq!((bench.take_ran().len(), bench.state().probes), (1, 1));
    let message = ended.events.iter().find_map(|event| match event {
        hm_exec::BuildEvent::StepEnd { message, .. } => message.clone(),
        _ => None,
    });
    assert_eq!(message.as_deref(), Some("runner `writer` is not available: it is broken; mend it"));
}

#[tokio::test]
async fn a_build_cancelled_during_a_cached_step_keeps_its_published_results() {
    let bench = Bench::new();
    let ir = pipeline(&[cached("a"), cached("slow")], &[(0, 1)]);
    let engine = bench.builder().grace(Duration::ZERO).build().unwrap();
    let (_, control) = engine.start(request(&ir)).await.unwrap().into_parts();
    bench.writer.waits.notified().await;
    control.cancel();
    let outcome = control.wait().await.unwrap();
    assert_eq!(outcome.steps.iter().map(|step| step.status).collect::<Vec<_>>(), [Passed, Canceled]);
    bench.writer.go.notify_one();
    assert_eq!(bench.run(&ir).await.statuses(), [CacheHit, Passed]);
}
