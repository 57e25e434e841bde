//! Random collections beside random runs, compared with what each run found and what was kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Arc,
};

use hm_exec::{
    SnapshotRef,
    store::{Cached, Forget, Lease, Store},
};
use proptest::prelude::*;

use super::{cache, commit, forget, gc, is_cached, key};
use crate::support::store::Bench;

#[derive(Debug, Clone)]
enum Op {
    /// Commits a new snapshot, possibly on a kept one, and keeps it under a key.
    Keep {
        n: u8,
        parent: Option<u8>,
        kilobytes: usize,
    },
    Touch(u8),
    /// A run begins, and looks up everything.
    Lease,
    /// The oldest run keeps a snapshot on one that it found, and ends.
    Release {
        n: u8,
        child_of: u8,
    },
    Gc {
        max_kilobytes: u64,
    },
    Clean,
}

fn op() -> impl Strategy<Value = Op> {
    let n = 0..6_u8;
    prop_oneof![
        4 => (n.clone(), proptest::option::of(n.clone()), 4..100_usize)
            .prop_map(|(n, parent, kilobytes)| Op::Keep { n, parent, kilobytes }),
        2 => n.clone().prop_map(Op::Touch),
        2 => Just(Op::Lease),
        2 => (n.clone(), n).prop_map(|(n, child_of)| Op::Release { n, child_of }),
        3 => (100..600_u64).prop_map(|max_kilobytes| Op::Gc { max_kilobytes }),
        1 => Just(Op::Clean),
    ]
}

/// A run, with the snapshots that it found when it took its lease.
struct Run {
    store: Arc<Store>,
    _lease: Lease,
    found: BTreeMap<u8, SnapshotRef>,
}

impl Run {
    fn begin(bench: &Bench) -> Self {
        let store = Store::open(bench.store.dir()).unwrap();
        let lease = store.lease().unwrap();
        let found = (0..6).filter_map(|n| match store.steps().cached(&key(n)).unwrap() {
            Cached::Found { snapshot, .. } => Some((n, snapshot)),
            Cached::Absent => None,
            damaged => panic!("{damaged:?}"),
        });
        let found = found.collect();
        Self { store, _lease: lease, found }
    }

    /// Checks that everything that the run found is unchanged.
    fn check(&self) {
        for snapshot in self.found.values() {
            let snapshot = self.store.snapshots().get(snapshot).unwrap();
            assert!(snapshot.layers.iter().all(|layer| self.store.layers().dir(layer).join("file").exists()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn collection_removes_enough_and_never_what_is_needed(ops in prop::collection::vec(op(), 1..30)) {
        let bench = Bench::new();
        bench.freeze();
        // The first collection writes the index to its place on the disk, the second one finds it there.
        gc(&bench.store, u64::MAX);
        let fixed = gc(&bench.store, u64::MAX).bytes;
        let mut runs: Vec<Run> = Vec::new();
        // The snapshot of each key, if nothing was collected since.
        let mut kept: BTreeMap<u8, SnapshotRef> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Keep { n, parent, kilobytes } => {
                    let _lease = bench.store.lease().unwrap();
                    let parent = parent.and_then(|parent| match bench.store.steps().cached(&key(parent)).unwrap() {
                        Cached::Found { snapshot, .. } => Some(snapshot),
                        _ => None,
                    });
                    let snapshot = commit(&bench, &bench.store, parent.as_ref(), kilobytes << 10);
                    cache(&bench.store, &snapshot, n);
                    kept.insert(n, snapshot);
                }
                Op::Touch(n) => bench.store.steps().touch(&[key(n)]).unwrap(),
                Op::Lease => runs.push(Run::begin(&bench)),
                Op::Release { n, child_of } if !runs.is_empty() => {
                    let run = runs.remove(0);
                    if let Some(parent) = run.found.get(&child_of) {
                        let child = commit(&bench, &run.store, Some(parent), 4096);
                        cache(&run.store, &child, n);
                        kept.insert(n, child);
                    }
                }
                Op::Release { .. } => {}
                Op::Gc { max_kilobytes } => {
                    let report = gc(&bench.store, max_kilobytes << 10);
                    prop_assert!(report.bytes <= (max_kilobytes << 10).max(fixed + 64_000), "{:?}", report);
                    kept.retain(|n, _| is_cached(&bench.store, *n));
                }
                Op::Clean => {
                    forget(&bench.store, Forget::Cached);
                    kept.clear();
                }
            }
            runs.iter().for_each(Run::check);
            let fresh = Store::open(bench.store.dir()).unwrap();
            for n in 0..6 {
                let expected = kept.get(&n);
                match fresh.steps().cached(&key(n)).unwrap() {
                    Cached::Found { snapshot, .. } => prop_assert_eq!(Some(&snapshot), expected),
                    found => prop_assert!(found == Cached::Absent && expected.is_none(), "{:?}", found),
                }
            }
        }
        runs.clear();
        let report = forget(&bench.store, Forget::Everything);
        prop_assert_eq!(report.waiting_layers, 0);
        let own: BTreeSet<_> = fs::read_dir(bench.store.dir().join("layers")).unwrap().collect::<Result<Vec<_>, _>>().unwrap()
            .into_iter().map(|entry| entry.file_name()).collect();
        prop_assert!(own.is_empty(), "{:?}", own);
    }
}
