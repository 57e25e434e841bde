//! One store, used by several processes (or several instances in one process).

use std::{fs, sync::atomic::AtomicBool};

use hm_exec::{
    source::{self, SourceTimes},
    store::{Base, Cached, CommitRequest, IdMap, KeepAs, Store, StoreError, StoreHandle},
};
use uuid::Uuid;

use crate::support::store::Bench;

#[test]
fn opening_a_store_in_another_process_removes_nothing_of_this_one() {
    let bench = Bench::new();
    bench.put("file", "x");
    let source = bench.freeze();
    let staging = bench.store.stage().unwrap();
    fs::write(staging.upper().join("file"), "x").unwrap();
    let other = Store::open(bench.store.dir()).unwrap();
    drop(other);
    assert!(staging.upper().join("file").exists());
    let request =
        CommitRequest { parent: None, base: Base::Host, source: source.id, delta: None, id_map: IdMap::Single };
    let snapshot = bench.store.commit(staging, request).unwrap();
    let other = Store::open(bench.store.dir()).unwrap();
    assert!(matches!(other.snapshots().get(&snapshot), Err(StoreError::UnknownSnapshot { .. })), "it is not kept yet");
    bench
        .store
        .keep(&snapshot, KeepAs::Cached { key: &[7; 32], run: Uuid::nil(), pipeline: "ci", step: "a", created_at: 0 })
        .unwrap();
    assert_eq!(other.snapshots().get(&snapshot).unwrap(), bench.store.snapshots().get(&snapshot).unwrap());
    assert!(
        matches!(other.steps().cached(&[7; 32]).unwrap(), Cached::Found { snapshot: found, .. } if found == snapshot)
    );
    assert_eq!(
        source::freeze(&other, &bench.source(""), SourceTimes::Normal, &AtomicBool::new(false)).unwrap(),
        bench.freeze()
    );
}

#[test]
fn a_closed_store_leaves_no_temporary_files_and_keeps_kept_snapshots() {
    let bench = Bench::new();
    let source = bench.freeze();
    let store = Store::open(bench.store.dir()).unwrap();
    let (kept, dropped) = (store.stage().unwrap(), store.stage().unwrap());
    fs::create_dir_all(dropped.upper().join("a/b/c")).unwrap();
    fs::write(kept.upper().join("file"), "x").unwrap();
    let request =
        CommitRequest { parent: None, base: Base::Host, source: source.id.clone(), delta: None, id_map: IdMap::Single };
    let snapshot = store.commit(kept, request).unwrap();
    store.keep(&snapshot, KeepAs::ForInspection { run: Uuid::nil(), step: "a", passed: true }).unwrap();
    let forgotten = store.stage().unwrap();
    fs::write(forgotten.upper().join("file"), "x").unwrap();
    let request =
        CommitRequest { parent: None, base: Base::Host, source: source.id, delta: None, id_map: IdMap::Single };
    store.commit(forgotten, request).unwrap();
    drop(dropped);
    drop(store);
    for dir in ["tmp", "locks"] {
        assert_eq!(fs::read_dir(bench.store.dir().join(dir)).unwrap().count(), 1, "{dir}");
    }
    let layers = fs::read_dir(bench.store.dir().join("layers")).unwrap().count();
    assert_eq!(layers, 2, "that of the source, and the one that was kept");
    let store = Store::open(bench.store.dir()).unwrap();
    assert_eq!(store.steps().of_run(Uuid::nil(), "a").unwrap(), Some((snapshot.clone(), true)));
    assert!(store.layers().dir(&store.snapshots().get(&snapshot).unwrap().layers[0]).join("file").exists());
}

#[test]
fn a_store_of_another_version_is_refused() {
    let top = tempfile::tempdir().unwrap();
    drop(Store::open(top.path()).unwrap());
    fs::write(top.path().join("format"), "hm-exec store 99\n").unwrap();
    let error = Store::open(top.path()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }) && error.to_string().contains("99"), "{error}");
}

#[test]
fn a_handle_opens_the_store_once_and_only_when_needed() {
    let top = tempfile::tempdir().unwrap();
    let handle = StoreHandle::new(top.path().join("store"));
    let clone = handle.clone();
    assert!(handle.get_opened().is_none() && !top.path().join("store").exists());
    let store = handle.get().unwrap();
    assert!(std::sync::Arc::ptr_eq(&store, &clone.get().unwrap()));
    fs::write(top.path().join("file"), "x").unwrap();
    assert!(StoreHandle::new(top.path().join("file/store")).get().is_err());
}
