//! Layers, snapshots and deltas.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use hm_exec::{
    SnapshotRef,
    source::{self, FrozenSource, SourceTimes},
    store::{Base, CommitRequest, IdMap, MAX_LAYERS, Snapshot, StoreError, tree},
};
use proptest::prelude::*;

use crate::support::{
    overlay_view::{Node, View, make_opaque, remove_below, view, whiteout},
    store::{Bench, can_mark},
};

/// Commits what `write` puts into an upper directory, as a step over `source` would.
fn step(bench: &Bench, source: &FrozenSource, parent: Option<&SnapshotRef>, write: impl FnOnce(&Path)) -> SnapshotRef {
    let parent = parent.map(|parent| bench.store.snapshots().get(parent).unwrap());
    let delta = parent.as_ref().and_then(|parent| source::delta(&bench.store, parent, source).unwrap());
    let staging = bench.store.stage().unwrap();
    write(&staging.upper());
    let request = CommitRequest {
        parent: parent.as_deref(),
        base: Base::Host,
        source: source.id.clone(),
        delta,
        id_map: IdMap::Single,
    };
    bench.store.commit(staging, request).unwrap()
}

fn put(upper: &Path, path: &str, text: &str) {
    let path = upper.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn dirs(bench: &Bench, snapshot: &Snapshot) -> Vec<PathBuf> {
    snapshot.layers.iter().map(|layer| bench.store.layers().dir(layer)).collect()
}

/// Returns what a child of a snapshot would see under a source.
fn shown(bench: &Bench, snapshot: &SnapshotRef, source: &FrozenSource) -> View {
    let snapshot = bench.store.snapshots().get(snapshot).unwrap();
    let delta = source::delta(&bench.store, &snapshot, source).unwrap();
    let mut all: Vec<_> = delta.iter().map(|layer| bench.store.layers().dir(layer)).collect();
    all.extend(dirs(bench, &snapshot));
    all.extend_from_slice(&source.roots);
    view(&all)
}

#[test]
fn an_untouched_layer_is_dropped_and_an_attribute_is_a_change() {
    let bench = Bench::new();
    let source = bench.freeze();
    let untouched = step(&bench, &source, None, |_| {});
    assert!(bench.store.snapshots().get(&untouched).unwrap().layers.is_empty());
    let chmodded =
        step(&bench, &source, None, |upper| fs::set_permissions(upper, Permissions::from_mode(0o700)).unwrap());
    assert_eq!(bench.store.snapshots().get(&chmodded).unwrap().layers.len(), 1);
}

#[test]
fn premade_directories_become_part_of_a_layer_only_when_touched() {
    let bench = Bench::new();
    let source = bench.freeze();
    let machine = bench.top().join("machine");
    for name in ["usr", "etc", "var/lib/db"] {
        fs::create_dir_all(machine.join(name)).unwrap();
    }
    fs::set_permissions(machine.join("var/lib"), Permissions::from_mode(0o711)).unwrap();
    for (touch, expected) in [("", 0), ("usr/file", 1), ("chmod", 1)] {
        let staging = bench.store.stage().unwrap();
        for name in ["usr", "etc", "var/lib/db"] {
            let made = staging.premake(Path::new(name), std::slice::from_ref(&machine)).unwrap();
            assert_eq!(made, staging.upper().join(name));
        }
        assert_eq!(fs::metadata(staging.upper().join("var/lib")).unwrap().mode() & 0o7777, 0o711);
        match touch {
            "" => {}
            "chmod" => fs::set_permissions(staging.upper().join("var/lib/db"), Permissions::from_mode(0o700)).unwrap(),
            file => fs::write(staging.upper().join(file), "x").unwrap(),
        }
        let request = CommitRequest {
            parent: None,
            base: Base::Host,
            source: source.id.clone(),
            delta: None,
            id_map: IdMap::Single,
        };
        let snapshot = bench.store.snapshots().get(&bench.store.commit(staging, request).unwrap()).unwrap();
        assert_eq!(snapshot.layers.len(), expected, "{touch}");
        for dir in dirs(&bench, &snapshot) {
            assert!(!dir.join("etc").exists());
            assert_eq!(dir.join("usr").exists(), touch == "usr/file");
        }
    }
}

#[test]
fn removing_a_snapshot_keeps_the_layers_that_others_use() {
    let bench = Bench::new();
    let source = bench.freeze();
    let parent = step(&bench, &source, None, |upper| put(upper, "workspace/a", "a"));
    let child = step(&bench, &source, Some(&parent), |upper| put(upper, "workspace/b", "b"));
    let (shared, own) = {
        let snapshot = bench.store.snapshots().get(&child).unwrap();
        (bench.store.layers().dir(&snapshot.layers[1]), bench.store.layers().dir(&snapshot.layers[0]))
    };
    bench.store.snapshots().remove(&[parent.clone(), "hm1:../../nonsense".into(), "other:x".into()]).unwrap();
    assert!(matches!(bench.store.snapshots().get(&parent), Err(StoreError::UnknownSnapshot { .. })));
    assert!(shared.exists() && own.exists());
    bench.store.snapshots().remove(&[child]).unwrap();
    assert!(!shared.exists() && !own.exists());
}

#[test]
fn long_lineages_stay_shallow_and_show_the_same() {
    if !can_mark() {
        return;
    }
    let bench = Bench::new();
    bench.put("gone", "source");
    let source = bench.freeze();
    let mut snapshot = step(&bench, &source, None, |upper| {
        fs::create_dir(upper.join("workspace")).unwrap();
        assert!(whiteout(&upper.join("workspace/gone")));
    });
    let steps = 2 * MAX_LAYERS + 3;
    for number in 0..steps {
        snapshot = step(&bench, &source, Some(&snapshot), |upper| {
            put(upper, &format!("workspace/step-{number}"), "x");
            put(upper, "workspace/last", &number.to_string());
            if number > 0 {
                assert!(whiteout(&upper.join(format!("workspace/step-{}", number - 1))));
            }
        });
        assert!(bench.store.snapshots().get(&snapshot).unwrap().layers.len() <= MAX_LAYERS);
    }
    let shown = shown(&bench, &snapshot, &source);
    let files: Vec<_> = shown.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(files, ["workspace", "workspace/last", &format!("workspace/step-{}", steps - 1)]);
    assert!(matches!(&shown[Path::new("workspace/last")], Node::File(_, text) if *text == (steps - 1).to_string()));
}

#[test]
fn a_child_of_a_snapshot_over_older_source_sees_later_edits_and_deletions() {
    if !can_mark() {
        return;
    }
    let bench = Bench::new();
    for file in ["edited", "untouched", "deleted", "whole/a", "whole/deep/b", "shared/a", "was-dir/a", "was-file"] {
        bench.put(file, "old");
    }
    let old = bench.freeze();
    let parent = step(&bench, &old, None, |upper| {
        for file in ["edited", "untouched", "deleted", "whole/a", "whole/deep/b", "shared/a", "was-dir/a", "was-file"] {
            put(upper, &format!("workspace/{file}"), "parent's");
        }
        put(upper, "workspace/shared/made", "parent's");
        put(upper, "workspace/made", "parent's");
    });
    bench.put("edited", "new");
    fs::remove_file(bench.source("deleted")).unwrap();
    for dir in ["whole", "shared", "was-dir"] {
        fs::remove_dir_all(bench.source(dir)).unwrap();
    }
    bench.put("was-dir", "file now");
    fs::remove_file(bench.source("was-file")).unwrap();
    bench.put("was-file/inner", "dir now");
    bench.put("added/deep", "new");
    symlink("edited", bench.source("link")).unwrap();
    let new = bench.freeze();

    let shown = shown(&bench, &parent, &new);
    let text = |path: &str| match shown.get(Path::new(&format!("workspace/{path}"))) {
        Some(Node::File(_, text)) => Some(text.as_str()),
        Some(Node::Link(target)) => target.to_str(),
        Some(Node::Dir(_)) => Some("dir"),
        None => None,
    };
    for (path, expected) in [
        ("edited", Some("new")),
        ("untouched", Some("parent's")),
        ("deleted", None),
        ("whole", None),
        ("shared", Some("dir")),
        ("shared/a", None),
        ("shared/made", Some("parent's")),
        ("made", Some("parent's")),
        ("was-dir", Some("file now")),
        ("was-file", Some("dir")),
        ("was-file/inner", Some("dir now")),
        ("added/deep", Some("new")),
        ("link", Some("edited")),
    ] {
        assert_eq!(text(path), expected, "{path}");
    }
    let (snapshot, first) = (
        bench.store.snapshots().get(&parent).unwrap(),
        source::delta(&bench.store, &bench.store.snapshots().get(&parent).unwrap(), &new),
    );
    assert_eq!(source::delta(&bench.store, &snapshot, &new).unwrap(), first.unwrap(), "made once");
    // A grandchild over the same source needs no delta, and sees the same.
    let child = step(&bench, &new, Some(&parent), |_| {});
    let grandchild = bench.store.snapshots().get(&child).unwrap();
    assert_eq!(source::delta(&bench.store, &grandchild, &new).unwrap(), None);
    assert_eq!(self::shown(&bench, &child, &new), shown);
}

#[test]
fn another_checkout_of_the_same_files_needs_no_delta() {
    let bench = Bench::new();
    bench.put("lock", "as committed");
    let old = bench.freeze();
    let parent = step(&bench, &old, None, |upper| put(upper, "workspace/lock", "as the step resolved it"));
    fs::remove_file(bench.source("lock")).unwrap();
    bench.put("lock", "as committed");
    fs::File::open(bench.source("lock")).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(1)).unwrap();
    assert_eq!(bench.freeze().id, old.id);
    let new = bench.freeze_with(SourceTimes::Real).unwrap();
    assert_ne!(new.id, old.id, "the time is part of what steps see");
    assert_eq!(source::delta(&bench.store, &bench.store.snapshots().get(&parent).unwrap(), &new).unwrap(), None);
}

/// A small tree over a handful of names, so that all kinds of entries meet.
#[derive(Debug, Clone)]
enum Thing {
    File(u8),
    Dir { opaque: bool, inner: Vec<(u8, Thing)> },
    Link,
    Whiteout,
}

fn tree_of(marks: bool) -> impl Strategy<Value = Vec<(u8, Thing)>> {
    let leaf = (0..if marks { 4_u8 } else { 3 }).prop_flat_map(|kind| {
        any::<u8>().prop_map(move |text| match kind {
            0 | 1 => Thing::File(text),
            2 => Thing::Link,
            _ => Thing::Whiteout,
        })
    });
    let thing = leaf.prop_recursive(3, 24, 4, move |inner| {
        (prop::collection::vec((0..4_u8, inner), 0..4), any::<bool>())
            .prop_map(move |(inner, opaque)| Thing::Dir { opaque: opaque && marks, inner })
    });
    prop::collection::vec((0..4_u8, thing), 0..5)
}

fn write(dir: &Path, things: &[(u8, Thing)]) {
    for (name, thing) in things {
        let path = dir.join(format!("n{name}"));
        if path.symlink_metadata().is_ok() {
            continue;
        }
        match thing {
            Thing::File(text) => fs::write(&path, (text % 3).to_string()).unwrap(),
            Thing::Link => symlink("n0", &path).unwrap(),
            Thing::Whiteout => assert!(whiteout(&path)),
            Thing::Dir { opaque, inner } => {
                fs::create_dir(&path).unwrap();
                if *opaque {
                    assert!(make_opaque(&path));
                }
                write(&path, inner);
            }
        }
        // Files that are the same in two sources have the same time in both.
        let then = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: then, last_modification: then };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Returns what a child should see, computed from its parent's tree and the source's changes, without regard
/// to layers.
fn expected(mut shown: View, old: &View, new: &View) -> View {
    let removed: Vec<_> = old.iter().filter(|(path, _)| !new.contains_key(*path)).collect();
    for (path, node) in &removed {
        let is_leaf = |node: &Node| !matches!(node, Node::Dir(_));
        if is_leaf(node) && shown.get(*path).is_some_and(is_leaf) {
            shown.remove(*path);
        }
    }
    for (path, node) in new {
        let before = old.get(path);
        let is_same = match (before, node) {
            (Some(Node::Dir(a)), Node::Dir(b)) => a == b,
            (before, node) => before == Some(node),
        };
        if is_same {
            continue;
        }
        if matches!((before, node), (Some(Node::Dir(_)), Node::Dir(_)))
            && !matches!(shown.get(path), Some(Node::Dir(_)))
        {
            continue;
        }
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            if !matches!(shown.get(parent), Some(Node::Dir(_))) {
                shown.insert(parent.into(), new[parent].clone());
            }
        }
        if !matches!(node, Node::Dir(_)) {
            remove_below(&mut shown, path);
        }
        shown.insert(path.clone(), node.clone());
    }
    for (path, _) in removed.iter().rev().filter(|(_, node)| matches!(node, Node::Dir(_))) {
        let has_more = shown.keys().any(|other| other != *path && other.starts_with(path));
        if !has_more && matches!(shown.get(*path), Some(Node::Dir(_))) {
            shown.remove(*path);
        }
    }
    shown
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn flattened_layers_show_the_same_files(layers in prop::collection::vec(tree_of(true), 1..6), base in tree_of(false)) {
        if !can_mark() {
            return Ok(());
        }
        let top = tempfile::tempdir().unwrap();
        let make = |name: String, things: &[(u8, Thing)]| {
            let dir = top.path().join(name);
            fs::create_dir(&dir).unwrap();
            write(&dir, things);
            dir
        };
        let dirs: Vec<_> = layers.iter().enumerate().map(|(number, things)| make(number.to_string(), things)).collect();
        let (base, flat) = (make("base".into(), &base), make("flat".into(), &[]));
        tree::flatten(&dirs, &flat, IdMap::Single).unwrap();
        let with_base = |mut dirs: Vec<PathBuf>| { dirs.push(base.clone()); view(&dirs) };
        prop_assert_eq!(with_base(vec![flat.clone()]), with_base(dirs.clone()));
        // Also merged in two passes.
        let (half, rest) = (make("half".into(), &[]), make("rest".into(), &[]));
        let (upper, lower) = dirs.split_at(dirs.len() / 2 + 1);
        tree::flatten(upper, &half, IdMap::Single).unwrap();
        let lower: Vec<_> = std::iter::once(half).chain(lower.iter().cloned()).collect();
        tree::flatten(&lower, &rest, IdMap::Single).unwrap();
        prop_assert_eq!(with_base(vec![rest]), with_base(dirs));
    }

    #[test]
    fn deltas_show_the_newer_source_and_the_files_of_steps(
        old in tree_of(false),
        new in tree_of(false),
        layers in prop::collection::vec(tree_of(true), 1..4),
        real in any::<bool>(),
    ) {
        if !can_mark() {
            return Ok(());
        }
        let bench = Bench::new();
        write(&bench.source(""), &old);
        let freeze = || bench.freeze_with(if real { SourceTimes::Real } else { SourceTimes::Normal }).unwrap();
        let old = freeze();
        let mut snapshot = None;
        for things in layers.iter().rev() {
            snapshot = Some(step(&bench, &old, snapshot.as_ref(), |upper| {
                fs::create_dir(upper.join("workspace")).unwrap();
                write(&upper.join("workspace"), things);
            }));
        }
        let snapshot = snapshot.unwrap();
        fs::remove_dir_all(bench.source("")).unwrap();
        fs::create_dir(bench.source("")).unwrap();
        write(&bench.source(""), &new);
        let new = freeze();
        let sources = |source: &FrozenSource| view(&source.roots);
        let before = shown(&bench, &snapshot, &old);
        prop_assert_eq!(shown(&bench, &snapshot, &new), expected(before, &sources(&old), &sources(&new)));
    }
}
