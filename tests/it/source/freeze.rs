//! Freezing a source tree.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, Permissions},
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hm_exec::{
    runner::ArchiveId,
    source::{self, FrozenSource, RunSource, SourceTimes},
    store::StoreError,
};

use crate::support::{
    store::Bench,
    users::{is_root, run_again},
};

/// Returns all paths in a frozen source.
fn paths(frozen: &FrozenSource) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let workspace = frozen.roots[0].join("workspace");
    let mut dirs = vec![workspace.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            found.insert(path.strip_prefix(&workspace).unwrap().to_string_lossy().into_owned());
            if path.symlink_metadata().unwrap().is_dir() {
                dirs.push(path);
            }
        }
    }
    found
}

#[test]
fn git_rules_apply_inside_a_repository() {
    let bench = Bench::new();
    bench.put("repo/.git/info/exclude", "excluded\n");
    bench.put("repo/.gitignore", "*.log\n!keep.log\n/target/\n");
    bench.put("repo/sub/.gitignore", "local\n");
    bench.put(".gitignore", "file\n");
    for file in
        ["file", "a.log", "keep.log", "target/x", "sub/target/x", "sub/local", "local", "excluded", ".hidden/.file"]
    {
        bench.put(&format!("repo/{file}"), "x");
    }
    bench.put("repo/sub/.git", "gitdir: elsewhere");
    let frozen =
        source::freeze(&bench.store, &bench.source("repo"), SourceTimes::Normal, &AtomicBool::new(false)).unwrap();
    let expected = [
        ".gitignore",
        ".hidden",
        ".hidden/.file",
        "file",
        "keep.log",
        "local",
        "sub",
        "sub/.gitignore",
        "sub/target",
        "sub/target/x",
    ];
    assert_eq!(paths(&frozen), expected.map(str::to_owned).into());
}

#[test]
fn a_directory_of_a_repository_obeys_the_rules_above_it() {
    let bench = Bench::new();
    fs::create_dir_all(bench.source(".git/info")).unwrap();
    bench.put(".gitignore", "*.log\n/part/out\n");
    for file in ["part/a.log", "part/out/x", "part/file"] {
        bench.put(file, "x");
    }
    let frozen =
        source::freeze(&bench.store, &bench.source("part"), SourceTimes::Normal, &AtomicBool::new(false)).unwrap();
    assert_eq!(paths(&frozen), ["file".to_owned()].into());
}

#[test]
fn without_a_repository_ignore_files_count_except_those_above_the_source() {
    let bench = Bench::new();
    bench.put(".gitignore", "*.txt\n");
    bench.put("part/.gitignore", "*.log\n");
    for file in ["part/a.log", "part/b.txt"] {
        bench.put(file, "x");
    }
    let frozen =
        source::freeze(&bench.store, &bench.source("part"), SourceTimes::Normal, &AtomicBool::new(false)).unwrap();
    assert_eq!(paths(&frozen), [".gitignore", "b.txt"].map(str::to_owned).into());
}

#[test]
fn modes_times_links_and_odd_names_are_kept_and_special_files_left_out() {
    let bench = Bench::new();
    bench.put("dir/file", "text");
    fs::create_dir(bench.source("empty")).unwrap();
    fs::set_permissions(bench.source("dir/file"), Permissions::from_mode(0o751)).unwrap();
    fs::hard_link(bench.source("dir/file"), bench.source("again")).unwrap();
    symlink("/nowhere/at all", bench.source("dangling")).unwrap();
    symlink("..", bench.source("dir/loop")).unwrap();
    let odd = OsStr::from_bytes(b"n\xff\n");
    fs::write(bench.source("").join(odd), "odd").unwrap();
    let _socket = UnixListener::bind(bench.source("socket")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, bench.source("pipe"), rustix::fs::Mode::RWXU).unwrap();
    let past = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };
    let times = rustix::fs::Timestamps { last_access: past, last_modification: past };
    for path in ["dir/file", "dangling", "dir", "empty", ""] {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, bench.source(path), &times, flags).unwrap();
    }
    fs::set_permissions(bench.source("dir"), Permissions::from_mode(0o555)).unwrap();

    let workspace = bench.freeze_with(SourceTimes::Real).unwrap().roots[0].join("workspace");
    for path in ["dir/file", "again", "dangling", "dir/loop", "dir", "empty", ""] {
        let (a, b) = (bench.source(path).symlink_metadata().unwrap(), workspace.join(path).symlink_metadata().unwrap());
        assert_eq!((a.mode(), a.mtime(), a.mtime_nsec()), (b.mode(), b.mtime(), b.mtime_nsec()), "{path}");
    }
    assert_eq!(fs::read_link(workspace.join("dangling")).unwrap(), Path::new("/nowhere/at all"));
    assert_eq!(fs::read(workspace.join(odd)).unwrap(), b"odd");
    assert!(!workspace.join("socket").exists() && !workspace.join("pipe").exists());
    let (one, two) = (workspace.join("again").metadata().unwrap(), workspace.join("dir/file").metadata().unwrap());
    assert!(one.ino() != two.ino() && two.nlink() == 1 && bench.source("again").metadata().unwrap().nlink() == 2);
    fs::set_permissions(bench.source("dir"), Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_tree_is_copied_again_only_after_a_relevant_change() {
    let bench = Bench::new();
    bench.put("dir/file", "one");
    bench.put(".gitignore", "ignored\n");
    let first = bench.freeze();
    let inode = |frozen: &FrozenSource| frozen.roots[0].join("workspace/dir/file").metadata().unwrap().ino();
    let before = inode(&first);
    bench.put("dir/ignored", "changes the time of its directory");
    assert_eq!(bench.freeze(), first);
    assert_eq!(inode(&first), before);

    let mut seen = BTreeSet::from([first.id]);
    bench.put("dir/file", "two");
    assert!(seen.insert(bench.freeze().id), "content");
    fs::set_permissions(bench.source("dir/file"), Permissions::from_mode(0o700)).unwrap();
    assert!(seen.insert(bench.freeze().id), "mode");
    let file = fs::File::options().write(true).open(bench.source("dir/file")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert!(!seen.insert(bench.freeze().id), "a time is none");
    assert!(seen.insert(bench.freeze_with(SourceTimes::Real).unwrap().id), "unless times are real");
    fs::create_dir(bench.source("empty")).unwrap();
    assert!(seen.insert(bench.freeze().id), "an empty directory");
}

#[test]
fn a_store_inside_the_source_is_left_out() {
    let bench = Bench::new();
    bench.put("file", "x");
    let store = hm_exec::store::Store::open(&bench.source(".cache/store")).unwrap();
    let frozen = source::freeze(&store, &bench.source(""), SourceTimes::Normal, &AtomicBool::new(false)).unwrap();
    assert_eq!(paths(&frozen), [".cache", "file"].map(str::to_owned).into());
}

#[test]
fn the_error_names_a_file_that_keeps_changing() {
    let bench = Bench::new();
    bench.put("busy", "");
    let busy = bench.source("busy");
    fs::File::options().write(true).open(&busy).unwrap().set_len(64 << 20).unwrap();
    let stop = AtomicBool::new(false);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::File::options().append(true).open(&busy).unwrap();
            while !stop.load(Ordering::Relaxed) {
                file.write_all(b"x").unwrap();
            }
        });
        let frozen = bench.try_freeze();
        stop.store(true, Ordering::Relaxed);
        frozen.unwrap_err()
    });
    assert!(matches!(&error, StoreError::SourceChanged { path } if path.ends_with("source/busy")), "{error}");
    assert!(bench.try_freeze().is_ok());
}

#[test]
fn a_missing_directory_and_a_cancelled_freeze_are_errors() {
    let bench = Bench::new();
    bench.put("file", "x");
    let never = AtomicBool::new(false);
    for path in ["nowhere", "file"] {
        assert!(matches!(
            source::freeze(&bench.store, &bench.source(path), SourceTimes::Normal, &never),
            Err(StoreError::NoSource { .. })
        ));
    }
    let error =
        source::freeze(&bench.store, &bench.source(""), SourceTimes::Normal, &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(error, StoreError::Abandoned));
    assert_eq!(fs::read_dir(bench.store.dir().join("sources")).unwrap().count(), 0);
}

#[test]
fn the_error_for_an_unreadable_file_names_it_and_a_remedy() {
    if is_root() {
        // Root can read every file, so the same test runs again as another user.
        let name = "source::freeze::the_error_for_an_unreadable_file_names_it_and_a_remedy";
        if let Some(passed) = run_again(&["--exact", name], &[]) {
            assert_eq!(passed, 1);
        }
        return;
    }
    let bench = Bench::new();
    bench.put("dir/secret", "x");
    fs::set_permissions(bench.source("dir/secret"), Permissions::from_mode(0o000)).unwrap();
    let error = bench.try_freeze().unwrap_err();
    assert!(matches!(&error, StoreError::Unreadable { path, .. } if path.ends_with("dir/secret")), "{error}");
    assert!(error.to_string().contains(".gitignore") && !error.is_transient());
    bench.put(".gitignore", "secret\n");
    bench.freeze();
    fs::set_permissions(bench.source("dir"), Permissions::from_mode(0o000)).unwrap();
    assert!(matches!(bench.try_freeze(), Err(StoreError::Unreadable { path, .. }) if path.ends_with("dir")));
    fs::set_permissions(bench.source("dir"), Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn a_run_freezes_its_source_once() {
    let bench = Bench::new();
    bench.put("file", "x");
    let archives = RunSource::new(ArchiveId(uuid::Uuid::nil()), bench.source(""));
    let (one, two) = tokio::join!(archives.freeze(&bench.store), archives.freeze(&bench.store));
    assert!(Arc::ptr_eq(&one.unwrap(), &two.unwrap()));
    bench.put("file", "edited while the run goes on");
    let text =
        fs::read_to_string(archives.freeze(&bench.store).await.unwrap().roots[0].join("workspace/file")).unwrap();
    assert_eq!(text, "x");
}

#[test]
fn a_large_tree_is_frozen_completely() {
    let bench = Bench::new();
    for dir in 0..20 {
        for file in 0..50 {
            bench.put(&format!("{dir}/{file}"), &format!("{dir} {file} {}", "x".repeat(dir * 1000)));
        }
    }
    bench.put("big", &"0123456789abcdef".repeat(100_000));
    let workspace = bench.freeze().roots[0].join("workspace");
    for path in ["big", "19/49", "0/0"] {
        assert_eq!(fs::read(workspace.join(path)).unwrap(), fs::read(bench.source(path)).unwrap());
    }
    assert_eq!(fs::read_dir(workspace.join("7")).unwrap().count(), 50);
}
