//! Kept snapshots, and what happens to them if the store is damaged.

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::Arc,
};

use hm_exec::{
    SnapshotRef,
    store::{Base, Cached, CommitRequest, IdMap, KeepAs, LayerId, SnapshotConfig, Store},
};
use rusqlite::Connection;
use uuid::Uuid;

use crate::support::store::Bench;

const KEY: [u8; 32] = [7; 32];

/// A closed store with one cached step; the bench's own handle on it is closed too.
struct Kept {
    top: tempfile::TempDir,
    dir: PathBuf,
    snapshot: SnapshotRef,
    layer: LayerId,
}

fn kept(sync: bool) -> Kept {
    let bench = Bench::new();
    let snapshot = commit(&bench, "cached");
    bench
        .store
        .keep(&snapshot, KeepAs::Cached { key: &KEY, run: Uuid::nil(), pipeline: "ci", step: "a", created_at: 0 })
        .unwrap();
    if sync {
        bench.store.layers().sync().unwrap();
    }
    let layer = bench.store.snapshots().get(&snapshot).unwrap().layers[0].clone();
    let Bench { top, store } = bench;
    Kept { dir: store.dir().into(), top, snapshot, layer }
}

fn commit(bench: &Bench, text: &str) -> SnapshotRef {
    let source = bench.freeze().id;
    let staging = bench.store.stage().unwrap();
    fs::write(staging.upper().join("file"), text).unwrap();
    let request = CommitRequest { parent: None, base: Base::Host, source, delta: None, id_map: IdMap::Single };
    bench.store.commit(staging, request).unwrap()
}

fn entries(dir: &std::path::Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn a_cached_step_is_found_until_its_layer_changes() {
    let Kept { top: _top, dir, snapshot, layer } = kept(true);
    let file = dir.join("layers").join(layer.as_str()).join("root/file");
    let cached = |dir| Store::open(dir).unwrap().steps().cached(&KEY).unwrap();
    assert!(matches!(cached(&dir), Cached::Found { snapshot: found, step, .. } if found == snapshot && step == "a"));
    assert_eq!(Store::open(&dir).unwrap().steps().cached(&[8; 32]).unwrap(), Cached::Absent);
    File::options().write(true).open(&file).unwrap().set_len(2).unwrap();
    assert!(matches!(cached(&dir), Cached::Damaged { reason } if reason.contains(layer.as_str())));
    fs::remove_file(&file).unwrap();
    assert!(matches!(cached(&dir), Cached::Damaged { .. }));
    fs::remove_dir_all(dir.join("layers").join(layer.as_str())).unwrap();
    assert!(matches!(cached(&dir), Cached::Damaged { .. }));
}

#[test]
fn a_power_cut_loses_only_what_was_not_synced() {
    for synced in [true, false] {
        let Kept { top: _top, dir, .. } = kept(synced);
        Connection::open(dir.join("index.db")).unwrap().execute("UPDATE layers SET boot = 'another'", []).unwrap();
        let store = Store::open(&dir).unwrap();
        let found = store.steps().cached(&KEY).unwrap();
        assert_eq!(matches!(found, Cached::Found { .. }), synced, "{found:?}");
        assert_eq!(found == Cached::Absent, !synced);
        drop(store);
        assert_eq!(entries(&dir.join("layers")) > 0, synced);
    }
}

#[test]
fn a_damaged_or_missing_index_loses_only_the_cache() {
    for damage in ["garbage", "half", "missing", "foreign"] {
        let Kept { top: _top, dir, .. } = kept(true);
        let index = dir.join("index.db");
        // Closing the database moves the contents of its log into it.
        Connection::open(&index).unwrap().execute("UPDATE counters SET value = value", []).unwrap();
        match damage {
            "garbage" => fs::write(&index, "this is no database, however long one looks at it").unwrap(),
            "half" => File::options().write(true).open(&index).unwrap().set_len(6000).unwrap(),
            "missing" => fs::remove_file(&index).unwrap(),
            _ => Connection::open(&index).unwrap().execute_batch("DROP TABLE cache; DROP TABLE layers").unwrap(),
        }
        // Damage that is not detected when the store is opened is detected at the first use, and set aside at
        // the next opening.
        let _ = Store::open(&dir).unwrap().steps().cached(&KEY);
        let store = Store::open(&dir).unwrap();
        assert_eq!(store.steps().cached(&KEY).unwrap(), Cached::Absent, "{damage}");
        drop(store);
        assert_eq!(entries(&dir.join("layers")), 0, "{damage}: nothing tells what the layers were");
    }
}

#[test]
fn an_index_of_a_later_version_is_refused_and_left_alone() {
    let Kept { top: _top, dir, .. } = kept(true);
    let index = || Connection::open(dir.join("index.db")).unwrap();
    let version: u32 = index().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    index().pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(&dir).unwrap_err().to_string();
    assert!(error.contains("version 99") && error.contains("newer"), "{error}");
    index().pragma_update(None, "user_version", version).unwrap();
    assert!(matches!(Store::open(&dir).unwrap().steps().cached(&KEY).unwrap(), Cached::Found { .. }));
}

#[test]
fn an_index_of_version_1_is_migrated_without_losing_entries() {
    let Kept { top: _top, dir, .. } = kept(true);
    let index = Connection::open(dir.join("index.db")).unwrap();
    index
        .execute_batch(
            "ALTER TABLE layers DROP COLUMN blob; ALTER TABLE layers DROP COLUMN blob_bytes; DROP TABLE contents;
             ALTER TABLE layers DROP COLUMN blob_blake3; DROP TABLE cache_dirs; DROP TABLE input_digests;
             DROP TABLE traces; ALTER TABLE layers DROP COLUMN chunks; DROP TABLE scopes;
              ALTER TABLE cache DROP COLUMN traced;
             PRAGMA user_version = 1",
        )
        .unwrap();
    assert!(matches!(Store::open(&dir).unwrap().steps().cached(&KEY).unwrap(), Cached::Found { .. }));
    let columns: u32 =
        index.query_row("SELECT count(*) FROM contents, layers WHERE blob > ''", [], |row| row.get(0)).unwrap();
    assert_eq!(columns, 0);
}

#[test]
fn a_store_without_an_index_opens() {
    let top = tempfile::tempdir().unwrap();
    for dir in ["snapshots", "layers/0123456789abcdef0123456789abcdef/root", "sources/x/root", "locks", "tmp"] {
        fs::create_dir_all(top.path().join(dir)).unwrap();
    }
    fs::write(top.path().join("format"), "hm-exec store 1\n").unwrap();
    fs::write(top.path().join("snapshots/0123.json"), "{}").unwrap();
    drop(Store::open(top.path()).unwrap());
    assert!(!top.path().join("snapshots").exists());
    assert_eq!((entries(&top.path().join("layers")), entries(&top.path().join("sources"))), (0, 0));
    drop(Store::open(top.path()).unwrap());
}

#[test]
fn snapshots_that_were_not_kept_end_with_their_process_unless_others_build_on_them() {
    let bench = Bench::new();
    let (kept, other) = (commit(&bench, "a"), commit(&bench, "b"));
    bench.store.keep(&kept, KeepAs::ForInspection { run: Uuid::nil(), step: "a", passed: false }).unwrap();
    bench.store.snapshots().remove(&[kept.clone(), other.clone()]).unwrap();
    assert!(bench.store.snapshots().get(&kept).is_ok() && bench.store.snapshots().get(&other).is_err());
    let dir = bench.store.layers().dir(&bench.store.snapshots().get(&kept).unwrap().layers[0]);
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "a");
}

#[test]
fn the_environment_of_a_step_is_kept_with_its_snapshot() {
    let bench = Bench::new();
    let snapshot = commit(&bench, "a");
    assert_eq!(bench.store.snapshots().config(&snapshot).unwrap(), None);
    let around = SnapshotConfig {
        cmd: Some("make".into()),
        env: Arc::new([("GREETING".into(), "hello".into())].into()),
        workdir: "/workspace".into(),
        runner_args: Some(serde_json::json!({ "network": "none" })),
        host_dirs: vec!["/opt".into()],
        had_secrets: true,
    };
    bench.store.snapshots().describe(&snapshot, Arc::new(around.clone()));
    bench.store.keep(&snapshot, KeepAs::ForInspection { run: Uuid::nil(), step: "a", passed: false }).unwrap();
    let Bench { top: _top, store } = bench;
    let dir = store.dir().to_owned();
    drop(store);
    let store = Store::open(&dir).unwrap();
    assert_eq!(store.snapshots().config(&snapshot).unwrap().as_deref(), Some(&around));
    assert_eq!(store.snapshots().config(&SnapshotRef::from("docker:x")).unwrap(), None);
}
