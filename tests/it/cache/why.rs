//! Why a step ran.

use hm_exec::{
    StepStatus::{CacheHit, Passed},
    cache::{CacheVerdict, Difference, Explanation, explain, key_of},
    event::CacheMissReason::{Absent, Refresh},
    source::SourceTimes,
};
use rusqlite::{Connection, params};
use serde_json::{Value, json};

use crate::support::layer_writer::{Bench, cached, chain, pipeline, plain};

/// Explains a step of the last run.
fn why(bench: &Bench, step: &str) -> Explanation {
    let store = &bench.writer.store;
    let run = store.runs().last("/nonexistent/source".as_ref(), None).unwrap().unwrap();
    explain(store, &run, step).unwrap()
}

fn env(name: &str) -> String {
    name.to_owned()
}

#[tokio::test]
async fn a_miss_names_what_changed_since_the_last_run_without_values() {
    let bench = Bench::new();
    let mut ir = pipeline(&[cached("a")], &[]);
    ir["graph"]["nodes"][0]["env"] = json!({ "SAME": "1", "CHANGED": "hunter1", "GONE": "1" });
    bench.run(&ir).await;
    let first = why(&bench, "a");
    assert_eq!((first.compared_with, first.differences.len()), (None, 0));
    ir["graph"]["nodes"][0]["env"] = json!({ "SAME": "1", "CHANGED": "hunter2", "NEW": "1" });
    ir["graph"]["nodes"][0]["step"]["cmd"] = "make it".into();
    ir["graph"]["nodes"][0]["step"]["cache"]["key"] = "other".into();
    bench.run(&ir).await;
    let second = why(&bench, "a");
    assert_eq!(second.compared_with, Some(first.run));
    assert_eq!(
        second.differences,
        [
            Difference::DslKey,
            Difference::Command,
            Difference::EnvChanged { name: env("CHANGED") },
            Difference::EnvAdded { name: env("NEW") },
            Difference::EnvRemoved { name: env("GONE") },
        ]
    );
    let kept = std::fs::read(bench.writer.store.runs().dir(second.run).join("cache-keys")).unwrap();
    for value in ["hunter1", "hunter2", "make it"] {
        assert!(!kept.windows(value.len()).any(|window| window == value.as_bytes()), "{value}");
    }
}

#[tokio::test]
async fn a_changed_image_another_image_and_another_mode_are_distinguished() {
    let bench = Bench::new();
    let mut ir = pipeline(&[cached("a")], &[]);
    bench.run(&ir).await;
    bench.state().digest = "2".into();
    bench.run(&ir).await;
    let (image, was, is) = ("debian".into(), "debian@1".into(), "debian@2".into());
    assert_eq!(why(&bench, "a").differences, [Difference::ImageContent { image, was, is }]);
    ir["graph"]["nodes"][0]["step"]["image"] = "alpine".into();
    bench.state().mode = "other".into();
    bench.run(&ir).await;
    let image = Difference::Image { was: "debian".into(), is: "alpine".into() };
    assert_eq!(why(&bench, "a").differences, [image, Difference::Mode { was: "plain".into(), is: "other".into() }]);
}

#[tokio::test]
async fn other_times_of_source_files_are_another_step() {
    let bench = Bench::new();
    let ir = pipeline(&[cached("a")], &[]);
    let real = |request: &mut hm_exec::RunRequest| request.options.source_times = SourceTimes::Real;
    assert_eq!(bench.run(&ir).await.statuses(), [Passed]);
    assert_eq!(bench.run_with(&ir, real).await.statuses(), [Passed]);
    let difference = Difference::SourceTimes { was: SourceTimes::Normal, is: SourceTimes::Real };
    assert_eq!(why(&bench, "a").differences, [difference]);
    assert_eq!(bench.run_with(&ir, real).await.statuses(), [CacheHit]);
    assert_eq!(bench.run(&ir).await.statuses(), [CacheHit]);
}

#[tokio::test]
async fn a_chain_is_followed_to_the_step_that_caused_the_misses() {
    let bench = Bench::new();
    bench.run(&chain()).await;
    let mut changed = chain();
    changed["graph"]["nodes"][0]["step"]["cmd"] = "make another".into();
    bench.run(&changed).await;
    let explained = why(&bench, "c");
    assert_eq!(explained.differences, [Difference::ParentSnapshot { parent: "b".into() }]);
    let above: Vec<_> = explained.because.iter().map(|above| (&*above.step, above.differences.len())).collect();
    assert_eq!(above, [("b", 1), ("a", 1)]);
    assert_eq!(explained.because[1].differences, [Difference::Command]);
}

#[tokio::test]
async fn hits_refreshes_evictions_failures_and_uncacheable_steps_have_their_own_messages() {
    let bench = Bench::new();
    let ir: Value = pipeline(&[cached("a"), plain("b")], &[]);
    let first = bench.run(&ir).await;
    bench.run(&ir).await;
    let hit = why(&bench, "a");
    assert!(matches!(hit.verdict, Some(CacheVerdict::Hit { run, .. }) if run == first.outcome.build.run_id));
    assert_eq!((why(&bench, "b").verdict, why(&bench, "b").key), (None, None));
    let store = &bench.writer.store;
    let run = store.runs().last("/nonexistent/source".as_ref(), None).unwrap().unwrap();
    let key = key_of(store, &run, "a").unwrap().unwrap();
    assert_eq!(hit.key, Some(key.to_string()));
    assert!(store.steps().log(&key.0).is_file());

    bench.run_with(&ir, |request| request.options.no_cache = true).await;
    assert!(matches!(why(&bench, "a").verdict, Some(CacheVerdict::Miss { reason: Refresh, .. })));

    let index = Connection::open(store.dir().join("index.db")).unwrap();
    index.execute("DELETE FROM cache", []).unwrap();
    let eviction = "INSERT INTO evictions (key, step, bytes, at, cause) VALUES (?, 'a', 4096, 5, 'size')";
    index.execute(eviction, params![key.0]).unwrap();
    bench.run(&ir).await;
    let evicted = why(&bench, "a");
    assert!(matches!(evicted.verdict, Some(CacheVerdict::Miss { reason: Absent, .. })));
    let taken = evicted.evicted.unwrap();
    assert_eq!((taken.bytes, taken.at, taken.cause.as_str()), (4096, 5, "size"));

    bench.state().exits.insert("c".into(), vec![1]);
    let failing = pipeline(&[cached("c")], &[]);
    bench.run(&failing).await;
    bench.run(&failing).await;
    assert_eq!(why(&bench, "c").ended_before, Some(hm_exec::StepStatus::Failed));
}
