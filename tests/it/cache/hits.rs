//! Which steps are cache hits, and which changes make them misses.

use std::fs;

use hm_exec::{
    BuildEvent, Engine,
    StepStatus::{CacheHit, Failed, Passed, Skipped},
    event::CacheMissReason::{Absent, Expired, Refresh},
};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::layer_writer::{Bench, Ended, Runners, cached, chain, pipeline, plain, request};

fn kinds(events: &[BuildEvent]) -> Vec<Value> {
    events.iter().map(|event| serde_json::to_value(event).unwrap()["kind"].clone()).collect()
}

#[tokio::test]
async fn a_second_run_hits_every_step_and_neither_runs_nor_probes_anything() {
    let bench = Bench::new();
    let cold = bench.run(&chain()).await;
    assert_eq!(cold.statuses(), [Passed; 3]);
    assert!(cold.misses().values().all(|(reason, _)| *reason == Absent));
    assert_eq!((bench.take_ran().len(), bench.state().probes), (3, 1));
    let warm = bench.run(&chain()).await;
    assert_eq!(warm.statuses(), [CacheHit; 3]);
    assert_eq!((bench.take_ran().len(), bench.state().probes), (0, 1));
    let (hit, end) = ("step_cache_hit", "step_end");
    assert_eq!(kinds(&warm.events)[5..], [hit, end, hit, end, hit, end, "build_end"]);
    let ends = warm.events.iter().filter_map(|event| match event {
        BuildEvent::StepEnd { snapshot, attempt, exit_code, .. } => Some((snapshot.is_some(), *attempt, *exit_code)),
        _ => None,
    });
    assert_eq!(ends.collect::<Vec<_>>(), [(true, 0, 0); 3]);
}

#[tokio::test]
async fn a_hit_is_recorded_as_a_use_unless_the_last_one_is_recent() {
    let bench = Bench::new();
    bench.run(&pipeline(&[cached("a")], &[])).await;
    let index = Connection::open(bench.writer.store.dir().join("index.db")).unwrap();
    let used_at = || index.query_row("SELECT used_at FROM cache", [], |row| row.get::<_, i64>(0)).unwrap();
    let made = used_at();
    // Minutes ago, long ago, and after the clock was set back.
    for (ago, is_recorded) in [(60_000, false), (600_000, true), (-600_000, true)] {
        index.execute("UPDATE cache SET used_at = ?", [made - ago]).unwrap();
        let warm = bench.run(&pipeline(&[cached("a")], &[])).await;
        assert_eq!(warm.statuses(), [CacheHit]);
        let is_new = (made..made + 300_000).contains(&used_at());
        assert_eq!((is_new, used_at() == made - ago), (is_recorded, !is_recorded), "{ago} ms ago");
    }
}

/// A change to a pipeline or to what its runner sees.
type Change = dyn Fn(&Bench, &mut Value);

/// The published hm (0.0.9) makes a step's key from `cache.key` alone, and returns the result of another
/// image or environment.
#[tokio::test]
async fn the_same_cache_key_with_another_image_environment_command_or_runner_mode_is_a_miss() {
    let changes: [(&str, &Change); 9] = [
        ("image", &|_, ir| ir["graph"]["nodes"][0]["step"]["image"] = "alpine".into()),
        ("the identity of the image", &|bench, _| bench.state().digest = "2".into()),
        ("value", &|_, ir| ir["graph"]["nodes"][0]["env"]["CI"] = "2".into()),
        ("variable", &|_, ir| ir["graph"]["nodes"][0]["env"]["MORE"] = "".into()),
        ("command", &|_, ir| ir["graph"]["nodes"][0]["step"]["cmd"] = "make it".into()),
        ("key", &|_, ir| ir["graph"]["nodes"][0]["step"]["cache"]["key"] = "dsl-x".into()),
        ("mode", &|bench, _| bench.state().mode = "other".into()),
        ("network", &|_, ir| ir["graph"]["nodes"][0]["step"]["runner_args"] = json!({ "network": "none" })),
        ("limit", &|_, ir| ir["graph"]["nodes"][0]["step"]["runner_args"] = json!({ "cpus": 1, "speed": 9 })),
    ];
    for (what, change) in changes {
        let bench = Bench::new();
        let mut ir = pipeline(&[cached("a")], &[]);
        bench.run(&ir).await;
        change(&bench, &mut ir);
        assert_eq!(bench.run(&ir).await.statuses(), [Passed], "another {what}");
        assert_eq!(bench.run(&ir).await.statuses(), [CacheHit], "the same {what} again");
    }
}

#[tokio::test]
async fn labels_time_limits_and_step_keys_do_not_change_the_cache_key() {
    let bench = Bench::new();
    let mut ir = pipeline(&[cached("a")], &[]);
    bench.run(&ir).await;
    let step = &mut ir["graph"]["nodes"][0]["step"];
    (step["label"], step["timeout_seconds"], step["key"]) = ("A".into(), 9.into(), "renamed".into());
    assert_eq!(bench.run(&ir).await.statuses(), [CacheHit]);
}

#[tokio::test]
async fn children_of_a_step_that_ran_again_run_again() {
    let bench = Bench::new();
    bench.run(&chain()).await;
    bench.take_ran();
    let refreshed = bench.run_with(&chain(), |request| request.options.refresh = ["b".to_owned()].into()).await;
    assert_eq!(refreshed.statuses(), [CacheHit, Passed, Passed]);
    assert_eq!((refreshed.misses()["b"].0, refreshed.misses()["c"].0), (Refresh, Absent));
    assert_eq!(bench.run(&chain()).await.statuses(), [CacheHit; 3], "what it left took the place of what was there");
    assert_eq!(bench.take_ran(), ["b", "c"]);
}

#[tokio::test]
async fn with_no_cache_everything_runs_and_replaces_the_cached_results() {
    let bench = Bench::new();
    let snapshots = |events: &[BuildEvent]| -> Vec<String> {
        let snapshot = |event: &BuildEvent| match event {
            BuildEvent::StepEnd { snapshot, .. } => snapshot.as_ref().map(ToString::to_string),
            _ => None,
        };
        events.iter().filter_map(snapshot).collect()
    };
    bench.run(&chain()).await;
    let forced = bench.run_with(&chain(), |request| request.options.no_cache = true).await;
    assert_eq!(forced.statuses(), [Passed; 3]);
    assert!(forced.misses().values().all(|(reason, _)| *reason == Refresh));
    let warm = bench.run(&chain()).await;
    assert_eq!(warm.statuses(), [CacheHit; 3]);
    assert_eq!(snapshots(&warm.events), snapshots(&forced.events));
}

#[tokio::test]
async fn failed_steps_are_not_cached_and_steps_without_a_policy_always_run() {
    let bench = Bench::new();
    bench.state().exits.insert("a".into(), vec![1, 0]);
    let none = json!({ "key": "n", "cmd": "true", "cache": { "policy": "none" } });
    let keyless = json!({ "key": "k", "cmd": "true", "cache": { "policy": "forever" } });
    let ir = pipeline(&[cached("a"), cached("b"), plain("c"), none, keyless], &[(0, 1), (1, 2)]);
    let failed = bench.run_with(&ir, |request| request.options.keep_going = true).await;
    assert_eq!(failed.statuses(), [Failed, Skipped, Skipped, Passed, Passed]);
    assert_eq!(bench.run(&ir).await.statuses(), [Passed; 5]);
    assert_eq!(bench.run(&ir).await.statuses(), [CacheHit, CacheHit, Passed, Passed, Passed]);
}

#[tokio::test]
async fn an_engine_without_a_cache_and_a_runner_without_layers_run_everything() {
    let bench = Bench::new();
    bench.run(&chain()).await;
    let engine = Engine::builder(Runners::clone(bench.builder().build().unwrap().runners())).build().unwrap();
    let bare = Ended::of(engine.start(request(&chain())).await.unwrap()).await;
    assert_eq!((bare.statuses(), bare.misses().len()), (vec![Passed; 3], 0));
    bench.state().layers = false;
    let incapable = bench.run(&chain()).await;
    assert_eq!((incapable.statuses(), incapable.misses().len()), (vec![Passed; 3], 0));
}

#[tokio::test]
async fn entries_expire_by_their_policy_and_an_entry_from_the_future_has_no_known_age() {
    let bench = Bench::new();
    let mut step = cached("a");
    step["cache"] = json!({ "policy": "ttl", "key": "k", "duration_seconds": 3600 });
    let ir = pipeline(&[step], &[]);
    bench.run(&ir).await;
    assert_eq!(bench.run(&ir).await.statuses(), [CacheHit]);
    for change in ["created_at - 3700000", "created_at + 100000"] {
        let index = Connection::open(bench.writer.store.dir().join("index.db")).unwrap();
        index.execute(&format!("UPDATE cache SET created_at = {change}"), []).unwrap();
        let expired = bench.run(&ir).await;
        assert_eq!((expired.statuses(), expired.misses()["a"].0), (vec![Passed], Expired), "{change}");
        assert_eq!(bench.run(&ir).await.statuses(), [CacheHit]);
    }
}

#[tokio::test]
async fn the_output_of_a_cached_step_outlives_its_run_and_has_no_secrets() {
    let bench = Bench::new();
    let ir = pipeline(&[cached("hunter2")], &[]);
    bench.run_with(&ir, |request| request.secrets.insert("TOKEN", "hunter2")).await;
    fs::remove_dir_all(&bench.runs).unwrap();
    let logs: Vec<_> = fs::read_dir(bench.writer.store.dir().join("logs")).unwrap().collect();
    let [Ok(log)] = &logs[..] else { panic!("one log: {logs:?}") };
    assert_eq!(fs::read_to_string(log.path()).unwrap(), "*** ran\n");
}

#[tokio::test]
async fn what_is_kept_of_keys_has_no_secret_of_an_images_name() {
    let bench = Bench::new();
    let mut step = cached("a");
    step["image"] = "registry.example/hunter2:1".into();
    bench.run_with(&pipeline(&[step], &[]), |request| request.secrets.insert("TOKEN", "hunter2")).await;
    let runs: Vec<_> = fs::read_dir(&bench.runs).unwrap().map(|run| run.unwrap().path()).collect();
    let [run] = &runs[..] else { panic!("one run: {runs:?}") };
    let kept = fs::read(run.join("cache-keys")).unwrap();
    let kept = String::from_utf8_lossy(&kept);
    assert!(kept.contains("registry.example/***:1") && !kept.contains("hunter2"), "{kept}");
}

#[tokio::test]
async fn the_store_records_the_run_and_how_it_ended() {
    let bench = Bench::new();
    bench.state().exits.insert("a".into(), vec![1]);
    let ended = bench.run(&chain()).await;
    let run = bench.writer.store.runs().last("/nonexistent/source".as_ref(), None).unwrap().unwrap();
    assert_eq!((run.id, run.exit_code), (ended.outcome.build.run_id, Some(1)));
    assert!(run.ended_at.is_some());
}
