//! Which files are part of a source, compared with the `ignore` crate's own walker, which is independent of
//! our code.

use hm_exec::source::{self, SourceTimes};
use std::{collections::BTreeSet, fs, path::Path, sync::atomic::AtomicBool};

use ignore::WalkBuilder;
use proptest::prelude::*;

use crate::support::store::Bench;

/// Returns the paths that the crate's walker finds inside a repository.
fn by_crate(source: &Path) -> BTreeSet<String> {
    let mut walk = WalkBuilder::new(source);
    walk.hidden(false).current_dir(source).filter_entry(|entry| entry.file_name() != ".git");
    let found = walk.build().map(|entry| entry.unwrap().into_path());
    found.map(|path| path.strip_prefix(source).unwrap().to_str().unwrap().to_owned()).collect()
}

/// Returns the paths in a frozen source of one layer.
fn frozen(bench: &Bench, source: &Path) -> BTreeSet<String> {
    let frozen = source::freeze(&bench.store, source, SourceTimes::Normal, &AtomicBool::new(false)).unwrap();
    assert_eq!(frozen.roots.len(), 1);
    let workspace = frozen.roots[0].join("workspace");
    let mut found = BTreeSet::from([String::new()]);
    let mut dirs = vec![workspace.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            found.insert(path.strip_prefix(&workspace).unwrap().to_str().unwrap().to_owned());
            if path.symlink_metadata().unwrap().is_dir() {
                dirs.push(path);
            }
        }
    }
    found
}

/// Generates few names, so that rules match files.
fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]|[ab][.]c|[.]d", 1..4).prop_map(|names| names.join("/"))
}

fn rule() -> impl Strategy<Value = String> {
    let pattern = prop_oneof![
        Just("*.c".to_owned()),
        Just("a*".to_owned()),
        Just("**/b".to_owned()),
        Just("a/**".to_owned()),
        Just("[ab]".to_owned()),
        Just("*".to_owned()),
        Just(".d".to_owned()),
        path(),
    ];
    ("!?", "/?", pattern, "/?").prop_map(|(not, root, pattern, dir)| format!("{not}{root}{pattern}{dir}"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn the_same_files_are_ignored_as_by_the_ignore_crates_walker(
        files in prop::collection::vec(path(), 1..20),
        rules in prop::collection::vec(
            (prop_oneof![Just(String::new()), path()], prop::collection::vec(rule(), 1..4), any::<bool>()), 0..5),
        excluded in prop::collection::vec(rule(), 0..2),
        repositories in prop::collection::vec(path(), 0..2),
        part in prop::option::of(path()),
    ) {
        let bench = Bench::new();
        let top = bench.source("");
        fs::create_dir_all(top.join(".git/info")).unwrap();
        fs::write(top.join(".git/info/exclude"), excluded.join("\n")).unwrap();
        // A path that is a file already cannot be a directory too.
        for file in &files {
            if fs::create_dir_all(top.join(file).parent().unwrap()).is_ok() {
                let _ = fs::write(top.join(file), "x");
            }
        }
        for repository in &repositories {
            let _ = fs::create_dir_all(top.join(repository).join(".git"));
        }
        for (dir, rules, of_git) in &rules {
            let name = if *of_git { ".gitignore" } else { ".ignore" };
            let _ = fs::write(top.join(dir).join(name), rules.join("\n"));
        }
        prop_assert_eq!(frozen(&bench, &top), by_crate(&top));
        if let Some(part) = part.map(|part| top.join(part)).filter(|part| part.is_dir()) {
            prop_assert_eq!(frozen(&bench, &part), by_crate(&part));
        }
    }
}

#[test]
fn the_projects_own_pipelines_are_left_out_and_those_of_other_directories_are_not() {
    let bench = Bench::new();
    let source = bench.source("");
    for file in [".hm/ci.py", ".hm/deep/x", "sub/.hm/ci.py", "kept"] {
        fs::create_dir_all(source.join(file).parent().unwrap()).unwrap();
        fs::write(source.join(file), "x").unwrap();
    }
    let expected = ["", "kept", "sub", "sub/.hm", "sub/.hm/ci.py"].map(str::to_owned);
    assert_eq!(frozen(&bench, &source), BTreeSet::from(expected));
    let before = source::freeze(&bench.store, &source, SourceTimes::Normal, &AtomicBool::new(false)).unwrap().id;
    fs::write(source.join(".hm/ci.py"), "edited").unwrap();
    assert_eq!(source::freeze(&bench.store, &source, SourceTimes::Normal, &AtomicBool::new(false)).unwrap().id, before);
}

#[test]
fn ignore_files_that_are_pipes_devices_or_symlinks_are_skipped_without_blocking() {
    let bench = Bench::new();
    let source = bench.source("");
    fs::write(source.join("kept"), "x").unwrap();
    fs::create_dir_all(source.join("a")).unwrap();
    fs::create_dir_all(source.join("b/.git/info")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", source.join(".gitignore")).unwrap();
    for pipe in [".ignore", "a/.git", "b/.git/info/exclude"] {
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, source.join(pipe), kind, mode, 0).unwrap();
    }
    let expected = ["", ".gitignore", "a", "b", "kept"].map(str::to_owned);
    assert_eq!(frozen(&bench, &source), BTreeSet::from(expected));
}

#[test]
fn a_worktree_obeys_the_exclude_file_of_its_repository() {
    let bench = Bench::new();
    for (path, text) in [
        ("main/.git/info/exclude", "skipped\n"),
        ("main/.git/worktrees/w/commondir", "../..\n"),
        ("tree/.git", "gitdir: ../main/.git/worktrees/w\n"),
        ("tree/kept", "x"),
        ("tree/skipped", "x"),
    ] {
        bench.put(path, text);
    }
    assert_eq!(frozen(&bench, &bench.source("tree")), BTreeSet::from(["", "kept"].map(str::to_owned)));
}
