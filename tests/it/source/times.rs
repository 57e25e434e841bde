//! The times of frozen files, and of deltas.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    sync::atomic::AtomicBool,
    time::{Duration, UNIX_EPOCH},
};

use hm_exec::{
    SnapshotRef,
    source::{self, FrozenSource, SourceTimes},
    store::{Base, CommitRequest, IdMap, Snapshot, Store},
};

use crate::support::store::{Bench, can_mark};

const FRESH: (i64, i64) = (946_684_800, 0);

fn freeze(bench: &Bench, times: SourceTimes) -> FrozenSource {
    source::freeze(&bench.store, &bench.source(""), times, &AtomicBool::new(false)).unwrap()
}

/// Gives a file, or a directory, another time.
fn touch(path: &Path, seconds: u64) {
    fs::File::open(path).unwrap().set_modified(UNIX_EPOCH + Duration::new(seconds, 5)).unwrap();
}

fn mtime(path: &Path) -> (i64, i64) {
    let metadata = path.symlink_metadata().unwrap();
    (metadata.mtime(), metadata.mtime_nsec())
}

/// Returns the time that a source shows at a path.
fn shown(source: &FrozenSource, path: &str) -> (i64, i64) {
    let path = Path::new("workspace").join(path);
    let root = source.roots.iter().find(|root| root.join(&path).symlink_metadata().is_ok());
    mtime(&root.unwrap().join(path))
}

/// Commits what `write` puts into the workspace of an upper directory.
fn step(bench: &Bench, source: &FrozenSource, write: impl FnOnce(&Path)) -> std::sync::Arc<Snapshot> {
    let staging = bench.store.stage().unwrap();
    fs::create_dir(staging.upper().join("workspace")).unwrap();
    write(&staging.upper().join("workspace"));
    let (source, id_map) = (source.id.clone(), IdMap::Single);
    let request = CommitRequest { parent: None, base: Base::Host, source, delta: None, id_map };
    let snapshot: SnapshotRef = bench.store.commit(staging, request).unwrap();
    bench.store.snapshots().get(&snapshot).unwrap()
}

#[test]
fn another_clone_is_the_same_source_with_one_time() {
    let bench = Bench::new();
    for file in ["a", "dir/b", "dir/deep/c"] {
        bench.put(file, file);
    }
    symlink("a", bench.source("link")).unwrap();
    let first = bench.freeze();
    for path in ["", "a", "dir", "dir/b", "dir/deep", "link"] {
        assert_eq!(shown(&first, path), FRESH, "{path}");
    }
    touch(&bench.source("a"), 1);
    touch(&bench.source("dir"), 5_000_000_000);
    assert_eq!(bench.freeze(), first, "times alone");
    for name in ["a", "link"] {
        fs::remove_file(bench.source(name)).unwrap();
    }
    bench.put("a", "a");
    symlink("a", bench.source("link")).unwrap();
    assert_eq!(bench.freeze(), first, "other files");
    let elsewhere = Store::open(&bench.top().join("elsewhere")).unwrap();
    let other = source::freeze(&elsewhere, &bench.source(""), SourceTimes::Normal, &AtomicBool::new(false)).unwrap();
    assert_eq!(other.id, first.id);

    bench.put("dir/b", "edited");
    bench.put("dir/new", "added");
    let second = bench.freeze();
    assert_eq!(second.layers.len(), 2);
    for path in ["", "dir", "dir/b", "dir/new", "dir/deep/c"] {
        assert_eq!(shown(&second, path), FRESH, "{path}");
    }
}

#[test]
fn the_setting_can_be_changed_back_and_forth() {
    let bench = Bench::new();
    bench.put("file", "text");
    touch(&bench.source("file"), 1_000_000_000);
    let normal = freeze(&bench, SourceTimes::Normal);
    let real = freeze(&bench, SourceTimes::Real);
    assert_ne!(normal.id, real.id);
    assert_eq!((shown(&normal, "file"), shown(&real, "file")), (FRESH, (1_000_000_000, 5)));
    assert_eq!(freeze(&bench, SourceTimes::Normal), normal);
    assert_eq!(freeze(&bench, SourceTimes::Real), real);
    // An edit under each setting builds on nothing of the other one.
    bench.put("added", "text");
    touch(&bench.source("added"), 1_000_000_001);
    for (times, expected) in [(SourceTimes::Normal, FRESH), (SourceTimes::Real, (1_000_000_001, 5))] {
        let frozen = freeze(&bench, times);
        assert_eq!(shown(&frozen, "added"), expected);
        assert_eq!(shown(&frozen, "file") == FRESH, times == SourceTimes::Normal);
    }
}

#[test]
fn what_a_delta_changes_is_later_than_everything_in_the_snapshot() {
    if !can_mark() {
        return;
    }
    let bench = Bench::new();
    for file in ["edited", "same", "run", "gone/a", "kept/a", "kept/b", "hidden/a"] {
        bench.put(file, "old");
    }
    for before in [SourceTimes::Normal, SourceTimes::Real] {
        // In the second round as after an update from a version without the setting.
        bench.put("edited", "old");
        let old = freeze(&bench, before);
        let snapshot = step(&bench, &old, |workspace| {
            fs::create_dir_all(workspace.join("out/deep")).unwrap();
            fs::write(workspace.join("out/deep/object"), "built").unwrap();
            touch(&workspace.join("out/deep/object"), 4_000_000_000);
        });
        bench.put("edited", "new");
        touch(&bench.source("edited"), 7);
        let new = bench.freeze();
        let id = source::delta(&bench.store, &snapshot, &new).unwrap().unwrap();
        let delta = bench.store.layers().dir(&id).join("workspace");
        assert_eq!(mtime(&delta.join("edited")), (4_000_000_001, 0));
        assert_eq!(fs::read_dir(&delta).unwrap().count(), 1, "nothing else");
        assert_ne!(mtime(&delta), (4_000_000_001, 0), "no name in it changed");
        assert_eq!(source::delta(&bench.store, &snapshot, &new).unwrap(), Some(id), "made once");
    }
}

#[test]
fn what_a_step_removed_stays_away() {
    if !can_mark() {
        return;
    }
    let bench = Bench::new();
    for file in ["removed/a", "removed/b", "target/x"] {
        bench.put(file, "old");
    }
    symlink("nowhere", bench.source("link")).unwrap();
    let old = bench.freeze();
    let snapshot = step(&bench, &old, |workspace| {
        for name in ["removed", "target"] {
            assert!(crate::support::overlay_view::whiteout(&workspace.join(name)));
        }
    });
    fs::remove_file(bench.source("removed/a")).unwrap();
    fs::remove_file(bench.source("link")).unwrap();
    symlink("target", bench.source("link")).unwrap();
    let new = bench.freeze();
    let id = source::delta(&bench.store, &snapshot, &new).unwrap().unwrap();
    let names = fs::read_dir(bench.store.layers().dir(&id).join("workspace")).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["link"]);
}

#[test]
fn a_link_that_leads_in_circles_ends() {
    if !can_mark() {
        return;
    }
    let bench = Bench::new();
    for file in ["dir/a", "other/b"] {
        bench.put(file, "old");
    }
    symlink("dir", bench.source("link")).unwrap();
    let old = bench.freeze();
    let snapshot = step(&bench, &old, |workspace| fs::write(workspace.join("built"), "").unwrap());
    for (link, target) in [("link", "."), ("dir/up", ".."), ("loop", "loop"), ("far", "/etc"), ("above", "../..")] {
        let _ = fs::remove_file(bench.source(link));
        symlink(target, bench.source(link)).unwrap();
    }
    let new = bench.freeze();
    let id = source::delta(&bench.store, &snapshot, &new).unwrap().unwrap();
    let delta = bench.store.layers().dir(&id).join("workspace");
    let time = mtime(&delta.join("loop"));
    for path in ["", "link", "dir", "dir/a", "dir/up", "other", "other/b", "far"] {
        assert_eq!(mtime(&delta.join(path)), time, "{path}");
    }
}

#[test]
fn with_real_times_a_delta_has_only_what_a_layer_hides() {
    let bench = Bench::new();
    bench.put("edited", "old");
    bench.put("written", "old");
    let old = freeze(&bench, SourceTimes::Real);
    let snapshot = step(&bench, &old, |workspace| fs::write(workspace.join("written"), "mine").unwrap());
    bench.put("edited", "new");
    let new = freeze(&bench, SourceTimes::Real);
    assert_eq!(source::delta(&bench.store, &snapshot, &new).unwrap(), None);
    bench.put("written", "new");
    touch(&bench.source("written"), 1_000_000_000);
    let new = freeze(&bench, SourceTimes::Real);
    let id = source::delta(&bench.store, &snapshot, &new).unwrap().unwrap();
    assert_eq!(mtime(&bench.store.layers().dir(&id).join("workspace/written")), (1_000_000_000, 5));
}

#[test]
fn the_latest_time_of_a_layer_is_found_again_if_its_record_is_damaged() {
    if !can_mark() {
        return;
    }
    let bench = Bench::new();
    bench.put("file", "0");
    let old = bench.freeze();
    let snapshot = step(&bench, &old, |workspace| {
        fs::write(workspace.join("built"), "").unwrap();
        touch(&workspace.join("built"), 4_000_000_000);
    });
    let record = bench.store.layers().dir(&snapshot.layers[0]).with_file_name("newest");
    assert!(!record.exists());
    for (round, damage) in ["", "1 ", "x 1\n", "1 1", "\u{fffd}"].into_iter().enumerate() {
        bench.put("file", &format!("round {round}"));
        let id = source::delta(&bench.store, &snapshot, &bench.freeze()).unwrap().unwrap();
        let file = bench.store.layers().dir(&id).join("workspace/file");
        assert_eq!(mtime(&file), (4_000_000_001, 0), "before {damage:?}");
        assert_eq!(fs::read_to_string(&record).unwrap(), "4000000000 5\n");
        fs::write(&record, damage).unwrap();
    }
    // A record that cannot be written costs only time.
    fs::remove_file(&record).unwrap();
    fs::create_dir(&record).unwrap();
    fs::set_permissions(&record, fs::Permissions::from_mode(0o500)).unwrap();
    bench.put("file", "last");
    assert!(source::delta(&bench.store, &snapshot, &bench.freeze()).unwrap().is_some());
}
