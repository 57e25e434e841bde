//! A disk that runs full at any point: typed errors, no damage, and a way to recover.

use std::{
    fs,
    sync::{Arc, atomic::AtomicBool},
};

use hm_exec::{
    SnapshotRef,
    source::{self, FrozenSource, SourceTimes},
    store::{Base, Cached, CommitRequest, Forget, GcRequest, IdMap, KeepAs, Store, StoreError},
};
use uuid::Uuid;

use crate::support::filesystem::Filesystem;

/// The additional free bytes of each round.
const STEP_BYTES: u64 = 20_480;

fn key(n: u16) -> [u8; 32] {
    let mut key = [7; 32];
    key[..2].copy_from_slice(&n.to_be_bytes());
    key
}

/// Returns the value, or `None` if the disk is full; every other error is a failure.
#[track_caller]
fn unless_full<T>(result: Result<T, StoreError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(StoreError::Full { .. }) => None,
        Err(error) => panic!("{error:?}"),
    }
}

/// A store on a small filesystem, and a source elsewhere.
struct Small {
    source: tempfile::TempDir,
    filesystem: Filesystem,
}

impl Small {
    fn of(filesystem: Filesystem) -> Self {
        let source = tempfile::tempdir().unwrap();
        fs::write(source.path().join("file"), "source").unwrap();
        Self { source, filesystem }
    }

    fn open(&self) -> Result<Arc<Store>, StoreError> {
        Store::open(&self.filesystem.dir().join("store"))
    }

    fn freeze(&self, store: &Store) -> Result<FrozenSource, StoreError> {
        source::freeze(store, self.source.path(), SourceTimes::Normal, &AtomicBool::new(false))
    }

    /// Runs a step that writes its number and some kilobytes. Returns `None` if it could not.
    fn step(&self, store: &Arc<Store>, n: u16, kilobytes: usize) -> Option<SnapshotRef> {
        let source = unless_full(self.freeze(store))?;
        let staging = unless_full(store.stage())?;
        fs::write(staging.upper().join("number"), n.to_string()).ok()?;
        fs::write(staging.upper().join("large"), vec![b'x'; kilobytes << 10]).ok()?;
        let request =
            CommitRequest { parent: None, base: Base::Host, source: source.id, delta: None, id_map: IdMap::Single };
        let snapshot = unless_full(store.commit(staging, request))?;
        let name = KeepAs::Cached { key: &key(n), run: Uuid::nil(), pipeline: "ci", step: "step", created_at: 0 };
        unless_full(store.keep(&snapshot, name))?;
        Some(snapshot)
    }

    /// Returns how many steps are cached. Checks that each has everything that its step wrote.
    fn check(&self, store: &Store) -> usize {
        let found = (0..1000).filter(|n| match store.steps().cached(&key(*n)).unwrap() {
            Cached::Found { snapshot, .. } => {
                let layers = store.snapshots().get(&snapshot).unwrap().layers.clone();
                let number = fs::read_to_string(store.layers().dir(&layers[0]).join("number")).unwrap();
                assert_eq!(number, n.to_string());
                true
            }
            Cached::Absent => false,
            damaged => panic!("{damaged:?}"),
        });
        found.count()
    }
}

fn filesystems() -> impl Iterator<Item = Small> {
    [Filesystem::tmpfs(24), Filesystem::ext4(48)].into_iter().flatten().map(Small::of)
}

#[test]
fn filling_the_disk_keeps_earlier_snapshots() {
    for small in filesystems() {
        let store = small.open().unwrap();
        let kept = (0..1000).take_while(|n| small.step(&store, *n, 900).is_some()).count();
        assert!(kept > 3 && kept < 100, "{kept}");
        assert_eq!(small.check(&store), kept);
        drop(store);
        let store = small.open().unwrap();
        assert_eq!(small.check(&store), kept);
        let mut request = GcRequest::new(store.default_limits().unwrap());
        request.forget = Forget::Cached;
        assert_eq!(store.gc(&request).unwrap().unwrap().cached.count, kept);
        assert!((0..3).all(|n| small.step(&store, n, 900).is_some()));
    }
}

#[test]
fn every_operation_on_a_full_disk_works_or_reports_a_full_disk() {
    for small in filesystems() {
        let store = small.open().unwrap();
        assert!((0..3).all(|n| small.step(&store, n, 10).is_some()));
        // From no free bytes to nearly enough: each additional byte lets a later point be the first that
        // fails.
        for spare in (0..16).map(|n| n * STEP_BYTES) {
            small.filesystem.fill(spare);
            let n = 100 + u16::try_from(spare / STEP_BYTES).unwrap();
            fs::write(small.source.path().join("file"), n.to_string()).unwrap();
            small.step(&store, n, 1);
            unless_full(store.steps().touch(&[key(0)]));
            unless_full(store.layers().sync());
            if let Some(other) = unless_full(small.open()) {
                assert!(small.check(&other) >= 3);
            }
            small.filesystem.free();
            let other = small.open().unwrap();
            let found = small.check(&other);
            assert!(small.step(&other, 999, 10).is_some() && found >= 3);
        }
    }
}

#[test]
fn garbage_can_be_collected_on_a_full_disk() {
    for small in filesystems() {
        let store = small.open().unwrap();
        assert!((0..5).all(|n| small.step(&store, n, 1000).is_some()));
        drop(store);
        small.filesystem.fill(0);
        let store = small.open().unwrap();
        let mut request = GcRequest::new(store.default_limits().unwrap());
        request.forget = Forget::Cached;
        let report = store.gc(&request).unwrap().unwrap();
        assert!(report.cached.count == 5 && report.freed_bytes > 4_000_000, "{report:?}");
        assert!(small.step(&store, 6, 1000).is_some());
    }
}
