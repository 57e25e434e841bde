//! Sources as stacks of layers: how many layers a changed tree needs, and that the stack shows the whole
//! tree.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    thread,
    time::Duration,
};

use hm_exec::source::{self, FrozenSource, SourceTimes};
use hm_exec::store::{Store, tree};
use proptest::prelude::*;
use rustix::fs::inotify;

use crate::support::store::{Bench, can_mark};

/// Every entry in a tree: mode with kind, time, content. The root has the empty path.
type Tree = BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)>;

/// Returns what the layers of a source show, by the rules of overlayfs.
fn shown(source: &FrozenSource) -> Tree {
    let mut tree = Tree::new();
    for root in source.roots.iter().rev() {
        lay(&mut tree, &root.join("workspace"), Path::new(""));
    }
    tree
}

/// Returns the entries of the source directory, with the times that a frozen source has.
fn fresh(bench: &Bench) -> Tree {
    let mut tree = direct(&bench.source(""));
    tree.values_mut().for_each(|entry| (entry.1, entry.2) = (946_684_800, 0));
    tree
}

/// Returns the entries of a directory.
fn direct(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    lay(&mut tree, dir, Path::new(""));
    tree
}

fn lay(tree: &mut Tree, dir: &Path, path: &Path) {
    let metadata = dir.join(path).symlink_metadata().unwrap();
    if !metadata.is_dir() || tree.get(path).is_some_and(|(mode, ..)| mode & 0o170_000 != 0o040_000) {
        tree.retain(|other, _| !other.starts_with(path));
    }
    if metadata.file_type().is_char_device() {
        return;
    }
    let content = if metadata.is_symlink() {
        fs::read_link(dir.join(path)).unwrap().into_os_string().into_encoded_bytes()
    } else if metadata.is_file() {
        fs::read(dir.join(path)).unwrap()
    } else {
        Vec::new()
    };
    tree.insert(path.into(), (metadata.mode(), metadata.mtime(), metadata.mtime_nsec(), content));
    if metadata.is_dir() {
        for entry in fs::read_dir(dir.join(path)).unwrap() {
            lay(tree, dir, &path.join(entry.unwrap().file_name()));
        }
    }
}

/// Returns all files, links and marks in a source's topmost layer.
fn topmost(source: &FrozenSource) -> Vec<String> {
    let layer = direct(&source.roots[0].join("workspace"));
    let mut names: Vec<_> = layer.iter().filter(|(_, (mode, ..))| mode & 0o170_000 != 0o040_000).collect();
    names.sort_unstable();
    let name = |(path, _): (&PathBuf, _)| path.to_str().unwrap().to_owned();
    let mut names: Vec<String> = names.into_iter().map(name).collect();
    names.extend(marks(&source.roots[0].join("workspace")));
    names
}

/// Returns the paths that a layer removes, each with a minus before it.
fn marks(workspace: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![workspace.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            if metadata.is_dir() {
                dirs.push(path);
            } else if metadata.file_type().is_char_device() {
                found.push(format!("-{}", path.strip_prefix(workspace).unwrap().display()));
            }
        }
    }
    found.sort_unstable();
    found
}

/// Lets the clock advance, so that files written before differ in time from files written later.
fn let_time_pass() {
    thread::sleep(Duration::from_millis(100));
}

/// Reports which files and directories are opened.
struct Opens(OwnedFd);

impl Opens {
    fn of(dirs: &[PathBuf]) -> Self {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        for dir in dirs {
            inotify::add_watch(&watch, dir.as_path(), inotify::WatchFlags::OPEN).unwrap();
        }
        Self(watch)
    }

    /// Returns the names since the last call. Directories end in a slash; a watched directory itself has an
    /// empty name.
    fn take(&self) -> Vec<String> {
        let mut buffer = [MaybeUninit::uninit(); 65536];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        let mut names = Vec::new();
        while let Ok(event) = events.next() {
            let name = event.file_name().map(|name| name.to_str().unwrap()).unwrap_or_default();
            let is_dir = event.events().contains(inotify::ReadFlags::ISDIR);
            names.push(if is_dir { format!("{name}/") } else { name.to_owned() });
        }
        names
    }
}

#[test]
fn an_unchanged_tree_is_recognized_without_opening_files_or_ignored_directories() {
    let bench = Bench::new();
    for file in ["a", "dir/b", "dir/deep/c", "ignored/x", "ignored/sub/y"] {
        bench.put(file, file);
    }
    bench.put(".gitignore", "/ignored/\n");
    symlink("a", bench.source("link")).unwrap();
    let opens = Opens::of(&["", "dir", "dir/deep", "ignored", "ignored/sub"].map(|dir| bench.source(dir)));
    let first = bench.freeze();
    let opened = opens.take();
    for file in ["a", "b", "c"] {
        assert!(opened.iter().any(|name| name == file), "{file} was read at first: {opened:?}");
    }
    let never = |opened: &[String]| !opened.iter().any(|name| ["ignored/", "x", "sub/", "y"].contains(&&**name));
    assert!(never(&opened), "{opened:?}");
    let_time_pass();
    assert_eq!(bench.freeze(), first);
    opens.take();
    let again = source::freeze(
        &Store::open(bench.store.dir()).unwrap(),
        &bench.source(""),
        SourceTimes::Normal,
        &AtomicBool::new(false),
    )
    .unwrap();
    assert_eq!(again, first);
    let opened = opens.take();
    let files: Vec<_> = opened.iter().filter(|name| !name.ends_with('/') && *name != ".gitignore").collect();
    assert!(files.is_empty() && never(&opened), "{opened:?}");
    assert!(opened.iter().any(|name| name == "dir/"), "the watch sees the walk: {opened:?}");
}

#[test]
fn the_layer_of_one_edit_has_only_the_edited_file() {
    let bench = Bench::new();
    for file in ["a", "dir/b", "dir/c", "other/d"] {
        bench.put(file, file);
    }
    symlink("a", bench.source("link")).unwrap();
    let first = bench.freeze();
    assert_eq!(first.layers.len(), 1);
    bench.put("dir/b", "edited");
    let second = bench.freeze();
    assert_eq!((second.layers.len(), &second.layers[1..]), (2, &first.layers[..]));
    assert_eq!(topmost(&second), ["dir/b"]);
    assert!(!second.roots[0].join("workspace/other").exists());
    assert_eq!(shown(&second), fresh(&bench));
    // Change it, and change it back: the store has the earlier tree already, so the result is the earlier
    // source.
    fs::set_permissions(bench.source("other"), Permissions::from_mode(0o700)).unwrap();
    let third = bench.freeze();
    assert_eq!((topmost(&third).len(), third.layers.len()), (0, 3));
    fs::set_permissions(bench.source("other"), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(bench.freeze(), second);
}

#[test]
fn removed_paths_get_one_whiteout_and_replaced_paths_are_hidden() {
    if !can_mark() {
        return;
    }
    let bench = Bench::new();
    for file in ["gone/a", "gone/deep/b", "renamed", "file", "dir/x", "dir/y"] {
        bench.put(file, file);
    }
    let first = bench.freeze();
    fs::remove_dir_all(bench.source("gone")).unwrap();
    fs::rename(bench.source("renamed"), bench.source("new-name")).unwrap();
    fs::remove_file(bench.source("file")).unwrap();
    bench.put("file/inner", "a directory now");
    fs::remove_dir_all(bench.source("dir")).unwrap();
    bench.put("dir", "a file now");
    let second = bench.freeze();
    assert_eq!(topmost(&second), ["dir", "file/inner", "new-name", "-gone", "-renamed"]);
    assert_eq!(shown(&second), fresh(&bench));
    // A path that comes back shows nothing of its earlier content.
    bench.put("gone/c", "again");
    fs::remove_file(bench.source("dir")).unwrap();
    bench.put("dir/z", "again");
    let third = bench.freeze();
    assert_eq!((third.layers.len(), topmost(&third)), (3, vec!["dir/z".to_owned(), "gone/c".to_owned()]));
    assert_eq!(shown(&third), fresh(&bench));
    assert_eq!(shown(&first).len(), 10, "older sources stay as they are");
}

#[test]
fn a_write_that_keeps_size_and_time_is_noticed() {
    let bench = Bench::new();
    bench.put("file", "one");
    let before = bench.source("file").metadata().unwrap().modified().unwrap();
    let first = bench.freeze();
    let_time_pass();
    bench.freeze();
    bench.put("file", "two");
    fs::File::options().write(true).open(bench.source("file")).unwrap().set_modified(before).unwrap();
    let second = bench.freeze();
    assert!(second != first);
    assert_eq!(shown(&second)[Path::new("file")].3, b"two");
}

#[test]
fn writes_in_the_same_instant_as_a_freeze_are_noticed() {
    let bench = Bench::new();
    bench.put("file", "0000");
    let before = bench.source("file").metadata().unwrap().modified().unwrap();
    for number in 0..300 {
        bench.put("file", &format!("{number:04}"));
        fs::File::options().write(true).open(bench.source("file")).unwrap().set_modified(before).unwrap();
        let frozen = bench.freeze();
        assert_eq!(shown(&frozen)[Path::new("file")].3, format!("{number:04}").as_bytes());
    }
}

#[test]
fn many_small_edits_are_compacted_without_losing_files() {
    let bench = Bench::new();
    for file in ["kept", "dir/kept", "edited", "dir/removed"] {
        bench.put(file, file);
    }
    let mut earlier = Vec::new();
    let base = bench.freeze().layers;
    let mut compacted = 0;
    for round in 0..30 {
        bench.put("edited", &format!("round {round}"));
        bench.put(&format!("dir/added-{}", round % 7), "x");
        if round == 3 {
            fs::remove_file(bench.source("dir/removed")).unwrap();
        }
        let frozen = bench.freeze();
        assert!(frozen.layers.len() <= 10, "{}", frozen.layers.len());
        assert_eq!(shown(&frozen), fresh(&bench), "round {round}");
        if can_mark() {
            assert_eq!(frozen.layers.last(), base.last(), "so small a change makes no new base");
        }
        compacted += usize::from(round > 0 && frozen.layers.len() == 2);
        earlier.push((frozen, fresh(&bench)));
    }
    assert!(compacted >= 2);
    for (frozen, tree) in earlier {
        assert_eq!(shown(&frozen), tree, "older sources stay as they are");
    }
}

#[test]
fn a_much_changed_tree_becomes_a_base_that_shares_unchanged_files() {
    let bench = Bench::new();
    for number in 0..2000 {
        bench.put(&format!("dir-{}/{number}", number % 20), "old");
    }
    let first = bench.freeze();
    for number in 0..1200 {
        bench.put(&format!("dir-{}/{number}", number % 20), "newer");
    }
    let second = bench.freeze();
    assert!(second.layers.len() == 1 && second.layers != first.layers);
    assert_eq!(shown(&second), fresh(&bench));
    let inode = |source: &FrozenSource| source.roots[0].join("workspace/dir-19/1999").metadata().unwrap().ino();
    assert_eq!(inode(&second), inode(&first));
    assert_eq!(bench.source("dir-19/1999").metadata().unwrap().nlink(), 1, "the user's files are never linked");
}

#[test]
fn a_damaged_stat_cache_costs_only_time() {
    let bench = Bench::new();
    bench.put("dir/file", "x");
    let first = bench.freeze();
    let stat = bench.store.dir().join("stat");
    let cache = fs::read_dir(&stat).unwrap().next().unwrap().unwrap().path();
    for bytes in [&b""[..], b"hm-exec stat cache 1\n", b"hm-exec stat cache 99\nxxxxxxxx", &[0xff; 300]] {
        fs::write(&cache, bytes).unwrap();
        assert_eq!(bench.freeze(), first);
    }
    bench.put("dir/file", "y");
    fs::write(&cache, "").unwrap();
    assert_eq!(shown(&bench.freeze()), fresh(&bench));
}

#[test]
fn a_source_with_lost_layers_is_frozen_again() {
    let bench = Bench::new();
    bench.put("dir/file", "x");
    let first = bench.freeze();
    tree::remove_tree(&bench.store.dir().join("layers").join(first.layers[0].as_str())).unwrap();
    let open = || Store::open(bench.store.dir()).unwrap();
    let freeze =
        |store: &Store| source::freeze(store, &bench.source(""), SourceTimes::Normal, &AtomicBool::new(false)).unwrap();
    let second = freeze(&open());
    assert!(second.id == first.id && second.layers != first.layers);
    assert_eq!(shown(&second), fresh(&bench));
    // A file of the layer is truncated while the tree changes.
    fs::File::options().write(true).open(second.roots[0].join("workspace/dir/file")).unwrap().set_len(0).unwrap();
    bench.put("another", "y");
    let third = freeze(&open());
    assert_eq!(shown(&third), fresh(&bench));
}

#[test]
fn concurrent_freezes_of_one_tree_give_the_same_source() {
    let bench = Bench::new();
    for number in 0..200 {
        bench.put(&format!("dir-{}/{number}", number % 5), "x");
    }
    for round in 0..3 {
        bench.put("dir-0/0", &format!("round {round}"));
        let frozen: Vec<FrozenSource> = thread::scope(|scope| {
            let freeze = || {
                let store = Store::open(bench.store.dir()).unwrap();
                let frozen =
                    source::freeze(&store, &bench.source(""), SourceTimes::Normal, &AtomicBool::new(false)).unwrap();
                assert_eq!(shown(&frozen), fresh(&bench));
                frozen
            };
            let all: Vec<_> = (0..4).map(|_| scope.spawn(freeze)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(frozen.iter().all(|one| one.id == frozen[0].id));
    }
    assert_eq!(shown(&bench.freeze()), fresh(&bench));
}

/// A change to a source tree.
#[derive(Debug, Clone)]
enum Edit {
    Write(String, u8),
    /// Keeps size and time.
    Overwrite(String, u8),
    Remove(String),
    Rename(String, String),
    MakeDir(String),
    Link(String),
    Chmod(String, u8),
    Touch(String, u32),
}

fn edit() -> impl Strategy<Value = Edit> {
    let path = || {
        prop::collection::vec(0..4_u8, 1..4)
            .prop_map(|names| names.iter().map(|name| format!("n{name}")).collect::<Vec<_>>().join("/"))
    };
    prop_oneof![
        4 => (path(), any::<u8>()).prop_map(|(path, text)| Edit::Write(path, text)),
        2 => (path(), any::<u8>()).prop_map(|(path, text)| Edit::Overwrite(path, text)),
        3 => path().prop_map(Edit::Remove),
        2 => (path(), path()).prop_map(|(from, to)| Edit::Rename(from, to)),
        2 => path().prop_map(Edit::MakeDir),
        1 => path().prop_map(Edit::Link),
        1 => (path(), 0..4_u8).prop_map(|(path, mode)| Edit::Chmod(path, mode)),
        1 => (path(), any::<u32>()).prop_map(|(path, time)| Edit::Touch(path, time)),
    ]
}

/// Applies as much of an edit as is possible.
fn apply(edit: &Edit, source: &Path) {
    let touch = |path: &Path, seconds, nanoseconds| {
        let then = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = rustix::fs::Timestamps { last_access: then, last_modification: then };
        let _ = rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    };
    let parent = |path: &str| drop(fs::create_dir_all(source.join(path).parent().unwrap()));
    match edit {
        Edit::Write(path, text) => {
            parent(path);
            let _ = fs::write(source.join(path), text.to_string());
        }
        Edit::Overwrite(path, text) => {
            let path = source.join(path);
            let Ok(metadata) = path.symlink_metadata() else { return };
            if metadata.is_file() {
                fs::write(&path, vec![b'a' + text % 20; usize::try_from(metadata.len()).unwrap()]).unwrap();
                touch(&path, metadata.mtime(), metadata.mtime_nsec());
            }
        }
        Edit::Remove(path) => tree::remove_tree(&source.join(path)).unwrap_or_default(),
        Edit::Rename(from, to) => {
            parent(to);
            let _ = fs::rename(source.join(from), source.join(to));
        }
        Edit::MakeDir(path) => drop(fs::create_dir_all(source.join(path))),
        Edit::Link(path) => {
            parent(path);
            let _ = symlink("n0/n1", source.join(path));
        }
        Edit::Chmod(path, mode) => {
            let path = source.join(path);
            let modes = [0o755, 0o700, 0o775, 0o711];
            if path.symlink_metadata().is_ok_and(|it| !it.is_symlink()) {
                fs::set_permissions(path, Permissions::from_mode(modes[usize::from(*mode)])).unwrap();
            }
        }
        Edit::Touch(path, seconds) => touch(&source.join(path), i64::from(*seconds), 7),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn after_any_edits_the_layers_show_the_tree(
        rounds in prop::collection::vec(prop::collection::vec(edit(), 1..5), 1..16),
        real in any::<bool>(),
    ) {
        let times = if real { SourceTimes::Real } else { SourceTimes::Normal };
        let bench = Bench::new();
        let mut seen: Vec<(FrozenSource, Tree)> = Vec::new();
        for edits in &rounds {
            edits.iter().for_each(|edit| apply(edit, &bench.source("")));
            let frozen = bench.freeze_with(times).unwrap();
            let mut now = if real { direct(&bench.source("")) } else { fresh(&bench) };
            let mut shows = shown(&frozen);
            if seen.iter().any(|(earlier, _)| earlier.id == frozen.id) {
                // The tree was frozen before, with the times that its directories had then.
                for tree in [&mut now, &mut shows] {
                    tree.values_mut().filter(|it| it.0 & 0o170_000 == 0o040_000).for_each(|it| (it.1, it.2) = (0, 0));
                }
                prop_assert_eq!(shows, now);
            } else {
                prop_assert_eq!(&shows, &now);
                seen.push((frozen, now));
            }
        }
        for (frozen, tree) in &seen {
            prop_assert_eq!(&shown(frozen), tree, "older sources stay as they are");
        }
        let elsewhere = Store::open(&bench.top().join("elsewhere")).unwrap();
        let whole = source::freeze(&elsewhere, &bench.source(""), times, &AtomicBool::new(false)).unwrap();
        prop_assert_eq!(&whole.id, &bench.freeze_with(times).unwrap().id, "a tree has one name, however it came to be");
    }
}
