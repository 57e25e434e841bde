//! Garbage collection: what is removed, in which order, and what is never removed.

mod logs;
mod random;

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hm_exec::{
    SnapshotRef, source,
    store::{Base, Cached, CommitRequest, Forget, GcLimits, GcReport, GcRequest, IdMap, KeepAs, Store},
};
use rusqlite::Connection;
use uuid::Uuid;

use crate::support::store::Bench;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

fn key(n: u8) -> [u8; 32] {
    [n; 32]
}

/// Commits a snapshot with one more layer, of the given size.
fn commit(bench: &Bench, store: &Arc<Store>, parent: Option<&SnapshotRef>, bytes: usize) -> SnapshotRef {
    let source = bench.freeze().id;
    let parent = parent.map(|parent| store.snapshots().get(parent).unwrap());
    let staging = store.stage().unwrap();
    fs::write(staging.upper().join("file"), vec![1; bytes]).unwrap();
    let request =
        CommitRequest { parent: parent.as_deref(), base: Base::Host, source, delta: None, id_map: IdMap::Single };
    store.commit(staging, request).unwrap()
}

fn cache(store: &Store, snapshot: &SnapshotRef, n: u8) {
    let step = format!("step-{n}");
    store
        .keep(snapshot, KeepAs::Cached { key: &key(n), run: Uuid::nil(), pipeline: "ci", step: &step, created_at: 0 })
        .unwrap();
}

fn is_cached(store: &Store, n: u8) -> bool {
    match store.steps().cached(&key(n)).unwrap() {
        Cached::Found { .. } => true,
        Cached::Absent => false,
        damaged => panic!("{damaged:?}"),
    }
}

/// Returns limits on the size alone.
fn limits(store: &Store, max_bytes: u64) -> GcLimits {
    let mut limits = store.default_limits().unwrap();
    limits.max_bytes = max_bytes;
    limits.min_free_bytes = 0;
    limits
}

fn gc(store: &Store, max_bytes: u64) -> GcReport {
    store.gc(&GcRequest::new(limits(store, max_bytes))).unwrap().unwrap()
}

fn forget(store: &Store, what: Forget) -> GcReport {
    let mut request = GcRequest::new(limits(store, u64::MAX));
    request.forget = what;
    store.gc(&request).unwrap().unwrap()
}

fn sql(store: &Store, statement: &str) {
    Connection::open(store.dir().join("index.db")).unwrap().execute_batch(statement).unwrap();
}

fn layers(store: &Store) -> usize {
    fs::read_dir(store.dir().join("layers")).unwrap().count()
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

#[test]
fn the_least_recently_used_is_removed_first_and_no_more_than_necessary() {
    let bench = Bench::new();
    for n in 1..=4 {
        cache(&bench.store, &commit(&bench, &bench.store, None, 800_000), n);
        sql(
            &bench.store,
            &format!("UPDATE cache SET used_at = {} WHERE step = 'step-{n}'", now_ms() - 1000 + i64::from(n)),
        );
    }
    bench.store.steps().touch(&[key(1)]).unwrap();
    let all = gc(&bench.store, u64::MAX);
    assert_eq!((all.cached.count, all.freed_bytes > 0), (0, false), "{all:?}");
    let mut dry = GcRequest::new(limits(&bench.store, all.bytes - 1_200_000));
    dry.dry_run = true;
    let dry = bench.store.gc(&dry).unwrap().unwrap();
    assert_eq!(dry.cached.count, 2);
    assert!(is_cached(&bench.store, 2), "a dry run removes nothing");
    let report = gc(&bench.store, all.bytes - 1_200_000);
    assert_eq!((report.cached, report.bytes), (dry.cached, dry.bytes));
    assert!(report.bytes <= all.bytes - 1_200_000 && report.cached.bytes >= 1_600_000, "{report:?}");
    assert_eq!([1, 2, 3, 4].map(|n| is_cached(&bench.store, n)), [true, false, false, true]);
    assert_eq!(layers(&bench.store), 3, "two steps and the source");
    let evicted = "SELECT count(*), min(bytes), min(cause) FROM evictions WHERE step IN ('step-2', 'step-3')";
    let index = Connection::open(bench.store.dir().join("index.db")).unwrap();
    let (count, bytes, cause) = index
        .query_row(evicted, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?)))
        .unwrap();
    assert!(count == 2 && bytes >= 800_000 && cause == "size");
}

#[test]
fn a_child_is_removed_before_its_parent_and_keeps_the_layers_that_it_needs() {
    let bench = Bench::new();
    let parent = commit(&bench, &bench.store, None, 800_000);
    let child = commit(&bench, &bench.store, Some(&parent), 800_000);
    cache(&bench.store, &parent, 1);
    cache(&bench.store, &child, 2);
    sql(&bench.store, &format!("UPDATE cache SET used_at = {}", now_ms() - 1000));
    // The index and its log count, too: they change by some 100 KB.
    let all = gc(&bench.store, u64::MAX).bytes;
    let report = gc(&bench.store, all - 400_000);
    assert_eq!([1, 2].map(|n| is_cached(&bench.store, n)), [true, false], "{report:?}");

    let child = commit(&bench, &bench.store, Some(&parent), 800_000);
    cache(&bench.store, &child, 2);
    forget(&bench.store, Forget::Steps(vec!["step-1".into()]));
    assert_eq!([1, 2].map(|n| is_cached(&bench.store, n)), [false, true]);
    let stack = bench.store.snapshots().get(&child).unwrap().layers.clone();
    assert!(stack.len() == 2 && stack.iter().all(|layer| bench.store.layers().dir(layer).join("file").exists()));
}

#[test]
fn leased_snapshots_stay_until_the_lease_ends() {
    let bench = Bench::new();
    bench.put("source", "x");
    let snapshot = commit(&bench, &bench.store, None, 100_000);
    cache(&bench.store, &snapshot, 1);
    let stack = bench.store.snapshots().get(&snapshot).unwrap().layers.clone();
    // A second handle, which the store treats as another process.
    let run = Store::open(bench.store.dir()).unwrap();
    let lease = run.lease().unwrap();
    assert!(is_cached(&run, 1));
    let report = forget(&bench.store, Forget::Everything);
    assert_eq!((report.cached.count, report.sources.count, report.waiting_layers), (1, 1, 2), "{report:?}");
    assert!(report.waiting_bytes >= 100_000);
    assert!(!is_cached(&run, 1), "the name is gone at once");
    let found = run.snapshots().get(&snapshot).unwrap();
    assert!(found.layers.iter().all(|layer| run.layers().dir(layer).join("file").exists()));
    assert!(source::delta(&run, &found, &bench.freeze()).is_ok(), "the manifest of its source is there");
    forget(&bench.store, Forget::Everything);
    assert!(run.snapshots().get(&snapshot).is_ok());
    drop(lease);
    let report = forget(&bench.store, Forget::Everything);
    assert_eq!(report.waiting_layers, 0, "{report:?}");
    assert!(run.snapshots().get(&snapshot).is_err() && stack.iter().all(|layer| !run.layers().dir(layer).exists()));
}

#[test]
fn a_later_lease_does_not_delay_collection() {
    let bench = Bench::new();
    cache(&bench.store, &commit(&bench, &bench.store, None, 1000), 1);
    let early = Store::open(bench.store.dir()).unwrap();
    let lease = early.lease().unwrap();
    forget(&bench.store, Forget::Everything);
    let late = Store::open(bench.store.dir()).unwrap();
    let _late_lease = late.lease().unwrap();
    drop(lease);
    assert_eq!((forget(&bench.store, Forget::Nothing).waiting_layers, layers(&bench.store)), (0, 0));
}

#[test]
fn keeping_a_child_saves_a_layer_that_was_to_be_removed() {
    let bench = Bench::new();
    let parent = commit(&bench, &bench.store, None, 1000);
    cache(&bench.store, &parent, 1);
    let run = Store::open(bench.store.dir()).unwrap();
    let lease = run.lease().unwrap();
    assert!(is_cached(&run, 1));
    forget(&bench.store, Forget::Everything);
    let child = commit(&bench, &run, Some(&parent), 1000);
    cache(&run, &child, 2);
    drop(lease);
    forget(&bench.store, Forget::Nothing);
    forget(&bench.store, Forget::Nothing);
    let fresh = Store::open(bench.store.dir()).unwrap();
    assert!(is_cached(&fresh, 2) && fresh.snapshots().get(&parent).is_err(), "the parent has no name of its own");
}

#[test]
fn freezing_a_source_again_saves_it_from_removal_without_a_copy() {
    let bench = Bench::new();
    bench.put("file", "x");
    let frozen = bench.freeze();
    let run = Store::open(bench.store.dir()).unwrap();
    let lease = run.lease().unwrap();
    forget(&bench.store, Forget::Everything);
    assert_eq!(bench.freeze(), frozen);
    drop(lease);
    forget(&bench.store, Forget::Nothing);
    assert_eq!(bench.freeze(), frozen);
    assert!(frozen.roots.iter().all(|root| root.join("workspace/file").exists()));
}

#[test]
fn names_age_while_the_store_is_used_and_not_when_the_clock_jumps() {
    let bench = Bench::new();
    for n in 1..=3 {
        cache(&bench.store, &commit(&bench, &bench.store, None, 1000), n);
    }
    let now = now_ms();
    let used = |n: u8, at: i64| sql(&bench.store, &format!("UPDATE cache SET used_at = {at} WHERE step = 'step-{n}'"));
    let collected =
        |at: i64| sql(&bench.store, &format!("UPDATE counters SET value = {at} WHERE name = 'collected_at'"));
    // The clock has just jumped ahead by ten years: an entry used the day before the jump is a day old, and
    // so on.
    collected(now - 3650 * DAY_MS);
    used(1, now - 3651 * DAY_MS);
    used(2, now - 3660 * DAY_MS);
    used(3, now - 3690 * DAY_MS);
    assert_eq!(gc(&bench.store, u64::MAX).cached.count, 1);
    assert_eq!([1, 2, 3].map(|n| is_cached(&bench.store, n)), [true, true, false]);
    // The next collection does not find them older either.
    assert_eq!(gc(&bench.store, u64::MAX).cached.count, 0);
    // The clock was ahead, and is right again.
    collected(now + 3650 * DAY_MS);
    used(1, now + 3650 * DAY_MS);
    assert_eq!(gc(&bench.store, u64::MAX).cached.count, 0);
    collected(now);
    used(1, now - 31 * DAY_MS);
    assert_eq!(gc(&bench.store, u64::MAX).cached.count, 1);
    assert!(!is_cached(&bench.store, 1));
}

#[test]
fn snapshots_of_failed_steps_stay_three_days() {
    let bench = Bench::new();
    let run = Uuid::from_u128(7);
    for (step, days) in [("old", 4), ("new", 2)] {
        let snapshot = commit(&bench, &bench.store, None, 1000);
        bench.store.keep(&snapshot, KeepAs::ForInspection { run, step, passed: false }).unwrap();
        sql(&bench.store, &format!("UPDATE kept SET created_at = {} WHERE step = '{step}'", now_ms() - days * DAY_MS));
    }
    assert_eq!(gc(&bench.store, u64::MAX).leftovers.count, 1);
    assert!(
        bench.store.steps().of_run(run, "old").unwrap().is_none()
            && bench.store.steps().of_run(run, "new").unwrap().is_some()
    );
}

#[test]
fn files_that_layers_share_count_once_and_are_removed_with_the_last_layer() {
    let bench = Bench::new();
    let one = commit(&bench, &bench.store, None, 500_000);
    let staging = bench.store.stage().unwrap();
    let file = bench.store.layers().dir(&bench.store.snapshots().get(&one).unwrap().layers[0]).join("file");
    fs::hard_link(file, staging.upper().join("same")).unwrap();
    let source = bench.freeze().id;
    let request = CommitRequest { parent: None, base: Base::Host, source, delta: None, id_map: IdMap::Single };
    let two = bench.store.commit(staging, request).unwrap();
    cache(&bench.store, &one, 1);
    cache(&bench.store, &two, 2);
    sql(&bench.store, &format!("UPDATE cache SET used_at = {} WHERE step = 'step-1'", now_ms() - 1000));
    // According to their rows, they take a megabyte.
    assert_eq!(gc(&bench.store, 900_000).cached.count, 0);
    let report = gc(&bench.store, 400_000);
    assert!(report.cached.count == 2 && report.bytes <= 400_000, "removing the first frees nothing: {report:?}");
    let usage = bench.store.usage().unwrap();
    assert!(usage.bytes < 5_000_000, "{usage:?}");
}

#[test]
fn journals_are_removed_by_age_number_and_size_but_not_those_of_a_live_run() {
    let bench = Bench::new();
    let runs = bench.store.dir().join("runs");
    let make = |n: u128, days: u64| {
        let dir = runs.join(Uuid::from_u128(n).to_string());
        fs::create_dir_all(dir.join("logs")).unwrap();
        fs::write(dir.join("logs/0-1.log"), vec![b'x'; 50_000]).unwrap();
        let journal = File::create(dir.join("journal")).unwrap();
        let then = SystemTime::now() - Duration::from_secs(days * 86_400 + 60);
        journal.set_modified(then).unwrap();
        File::open(&dir).unwrap().set_modified(then).unwrap();
        (dir, journal)
    };
    let made: Vec<(PathBuf, File)> = (0..30).map(|n| make(n, u64::try_from(n).unwrap())).collect();
    let (live, journal) = make(99, 300);
    journal.try_lock_shared().unwrap();
    let report = gc(&bench.store, u64::MAX);
    // The newest twenty stay whatever their age, and the live one is one of them.
    assert_eq!(report.runs.count, 11, "{report:?}");
    assert!(made.iter().enumerate().all(|(n, (dir, _))| dir.exists() == (n < 19)) && live.exists());
    let mut few = limits(&bench.store, u64::MAX);
    few.max_runs = 6;
    assert_eq!(bench.store.gc(&GcRequest::new(few)).unwrap().unwrap().runs.count, 14);
    assert!(gc(&bench.store, 150_000).runs.count >= 3);
    let ended = fs::read_dir(&runs).unwrap().count() - 1;
    assert_eq!(forget(&bench.store, Forget::Everything).runs.count, ended);
    assert!(live.join("logs/0-1.log").exists());
    drop(journal);
    assert_eq!(forget(&bench.store, Forget::Everything).runs.count, 1);
}

#[test]
fn unreferenced_files_are_removed_when_they_are_old() {
    let bench = Bench::new();
    bench.put("file", "x");
    let source = bench.freeze().id;
    cache(&bench.store, &commit(&bench, &bench.store, None, 1000), 1);
    let hex = |n: u8| format!("{n:02x}").repeat(32);
    let old = SystemTime::now() - Duration::from_secs(2 * 60 * 60);
    let put = |path: String, time: SystemTime| {
        let path = bench.store.dir().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(&path).unwrap().set_modified(time).unwrap();
        path
    };
    let kept = [
        put(format!("logs/{}", hex(1)), old),
        put(format!("logs/{}", hex(2)), SystemTime::now()),
        bench.store.dir().join("sources").join(source.as_str()).join("manifest"),
    ];
    let gone = [
        put(format!("logs/{}", hex(3)), old),
        put(format!("logs/{}", hex(4)), SystemTime::now() + Duration::from_secs(86_400)),
        put("index.db-damaged-1".into(), old),
        put(format!("sources/{}", hex(5)), old),
    ];
    gc(&bench.store, u64::MAX);
    assert!(kept.iter().all(|path| path.exists()) && gone.iter().all(|path| !path.exists()));
    forget(&bench.store, Forget::Cached);
    assert!(!kept[0].exists(), "the log goes with its step");
}

#[test]
fn names_of_a_layer_that_was_removed_by_hand_are_removed() {
    let bench = Bench::new();
    let parent = commit(&bench, &bench.store, None, 1000);
    cache(&bench.store, &parent, 1);
    cache(&bench.store, &commit(&bench, &bench.store, Some(&parent), 1000), 2);
    cache(&bench.store, &commit(&bench, &bench.store, None, 1000), 3);
    let layer = bench.store.snapshots().get(&parent).unwrap().layers[0].clone();
    fs::remove_dir_all(bench.store.layers().dir(&layer).parent().unwrap()).unwrap();
    gc(&bench.store, u64::MAX);
    let store = Store::open(bench.store.dir()).unwrap();
    assert_eq!([1, 2, 3].map(|n| is_cached(&store, n)), [false, false, true]);
}

#[test]
fn only_one_process_at_a_time_collects() {
    let bench = Bench::new();
    let lock = File::create(bench.store.dir().join("gc.lock")).unwrap();
    lock.lock().unwrap();
    let mut request = GcRequest::new(limits(&bench.store, u64::MAX));
    request.wait = false;
    assert_eq!(bench.store.gc(&request).unwrap(), None);
    drop(lock);
    assert!(bench.store.gc(&request).unwrap().is_some());
}

#[test]
fn collection_is_due_after_a_day_or_when_too_much_is_kept() {
    let bench = Bench::new();
    let store = Store::open(bench.store.dir()).unwrap();
    let due = |max_bytes| store.gc_is_due(&limits(&store, max_bytes)).unwrap();
    assert!(!due(0), "this process kept nothing");
    cache(&store, &commit(&bench, &store, None, 100_000), 1);
    assert!(due(50_000) && !due(50_000_000));
    sql(&store, &format!("UPDATE counters SET value = {} WHERE name = 'collected_at'", now_ms() - 2 * DAY_MS));
    assert!(due(u64::MAX));
    gc(&store, u64::MAX);
    assert!(!due(u64::MAX));
    let mut full = limits(&store, u64::MAX);
    full.min_free_bytes = u64::MAX;
    assert!(store.gc_is_due(&full).unwrap());
}
