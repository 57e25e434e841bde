//! Any program of file operations, and any edit of what it starts from: if the edit touches nothing that its
//! trace has, it does the same over the edited files. A look-up by its trace finds it then, and only then.
//!
//! The program prints what it gets to know. So the test needs no model of what a program reads.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use hm_exec::{
    SnapshotRef, StepResult,
    cache::{Kinds, Trace},
    event::ShadowVerdict,
    runner::{ShadowMode, StepRunner},
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use serde_json::json;

use super::{Traced, built};
use crate::support::sandbox::{Ask, Bench};

/// The variable with the number of pairs of a program and an edit to try, however long that takes.
const CASES: &str = "HM_TRACE_CASES";
/// Without it, at least so many of each kind are tried, however long that takes.
const FEWEST: u32 = 40;
/// Without it: so many, or as many as the time allows.
const DEFAULT_CASES: u32 = 2000;
const DEFAULT_TIME: Duration = Duration::from_secs(40);
/// How many edits that touch something there are for one of them that is looked up: it costs a run.
const LOOKED_UP: u32 = 8;
/// How many edits that touch nothing there are for one of them after which a child's files are compared: that
/// costs two runs.
const WITH_CHILD: u32 = 4;
/// The most edits of a program.
const EDITS: usize = 20;

/// Names, some below others, some that exist at first.
const NAMES: [&str; 10] = ["a", "b", "c", "d", "d/a", "d/b", "e", "e/f", "e/f/a", "n"];

/// A change of the source.
#[derive(Debug, Clone, Copy)]
enum Edit {
    Write(&'static str),
    Remove(&'static str),
    Chmod(&'static str),
    MakeDir(&'static str),
    Relink(&'static str),
}

fn operation() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(&NAMES[..]);
    let one = ("[rslpkwaxduectgfvo]", name()).prop_map(|(op, name)| format!("{op}:{name}"));
    let up = "[rslp]".prop_map(|op| format!("{op}:.."));
    let two = ("[mhy]", name(), name()).prop_map(|(op, from, to)| format!("{op}:{from}:{to}"));
    prop_oneof![6 => one, 3 => two, 1 => up]
}

fn edit() -> impl Strategy<Value = Edit> {
    let name = || prop::sample::select(&NAMES[..]);
    prop_oneof![
        3 => name().prop_map(Edit::Write),
        2 => name().prop_map(Edit::Remove),
        1 => name().prop_map(Edit::Chmod),
        1 => name().prop_map(Edit::MakeDir),
        1 => name().prop_map(Edit::Relink),
    ]
}

/// The files of the source below `w`, where the program works.
fn fill(dir: &Path) {
    for made in ["d", "e/f"] {
        fs::create_dir_all(dir.join(made)).unwrap();
    }
    for (index, file) in ["a", "d/a", "e/f/a"].iter().enumerate() {
        fs::write(dir.join(file), format!("file {index}")).unwrap();
    }
    symlink("d/a", dir.join("b")).unwrap();
    symlink("e", dir.join("c")).unwrap();
}

impl Edit {
    /// Makes the edit. Returns false if it is not possible.
    fn make(self, dir: &Path) -> bool {
        match self {
            Self::Write(name) => !dir.join(name).is_symlink() && fs::write(dir.join(name), "edited").is_ok(),
            Self::Remove(name) => {
                let path = dir.join(name);
                let is_file = path.is_symlink() || path.is_file();
                let removed = if is_file { fs::remove_file(path) } else { fs::remove_dir_all(path) };
                removed.is_ok()
            }
            Self::Chmod(name) => {
                !dir.join(name).is_symlink()
                    && fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o711)).is_ok()
            }
            Self::MakeDir(name) => fs::create_dir(dir.join(name)).is_ok(),
            Self::Relink(name) => {
                let path = dir.join(name);
                path.is_symlink() && fs::remove_file(&path).is_ok() && symlink("d", &path).is_ok()
            }
        }
    }
}

/// What each path has: the type, the mode, and the content, the target or nothing.
type Tree = BTreeMap<String, (char, u32, Vec<u8>)>;

fn tree(dir: &Path) -> Tree {
    fn walk(dir: &Path, below: &str, tree: &mut Tree) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{below}/{}", entry.file_name().to_str().unwrap());
            let metadata = entry.path().symlink_metadata().unwrap();
            let mode = metadata.permissions().mode();
            let value = if metadata.is_symlink() {
                ('l', 0, fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes())
            } else if metadata.is_dir() {
                walk(&entry.path(), &path, tree);
                ('d', mode, Vec::new())
            } else if metadata.is_file() {
                ('f', mode, fs::read(entry.path()).unwrap())
            } else {
                // The mark of something that was removed.
                ('w', 0, Vec::new())
            };
            tree.insert(path, value);
        }
    }
    let mut all = Tree::new();
    walk(dir, "/workspace/w", &mut all);
    all
}

/// Returns whether a trace has an entry that is different in the two trees.
fn touches(trace: &Trace, before: &Tree, after: &Tree) -> bool {
    let listing = |tree: &Tree, dir: &str| -> Vec<String> {
        let below = format!("{dir}/");
        let inside = tree.keys().filter_map(|path| path.strip_prefix(&below));
        inside.filter(|name| !name.contains('/')).map(str::to_owned).collect()
    };
    trace.entries.iter().any(|(path, kinds)| {
        let path = std::str::from_utf8(path).unwrap();
        let (was, is) = (before.get(path), after.get(path));
        let types = |it: Option<&(char, u32, Vec<u8>)>| it.map(|it| it.0);
        let modes = |it: Option<&(char, u32, Vec<u8>)>| it.map(|it| it.1);
        let is_read = |kind: Kinds| kinds.contains(kind);
        // What an entry says is only ever asked of what was there.
        // What was asked for counts with its content, which decides on its time.
        let whole = [Kinds::CONTENT, Kinds::LINK, Kinds::METADATA, Kinds::WRITTEN];
        whole.into_iter().any(is_read) && was != is
            || is_read(Kinds::DIRECTORY) && (types(was), modes(was)) != (types(is), modes(is))
            || is_read(Kinds::ABSENT) && types(was) != types(is)
            || is_read(Kinds::LISTING) && listing(before, path) != listing(after, path)
    })
}

/// Returns what a child of a step sees, over the source of today.
async fn seen_over(bench: &Bench, snapshot: &SnapshotRef) -> String {
    let cmd = "find w -printf '%p %y %m %l\\n' | sort; find w -type f | sort | xargs -r head -v";
    let mut run = bench.run();
    let parent = StepResult::exited(0).with_snapshot(Some(snapshot.clone()));
    let child = bench.step(&mut run, Ask::new(cmd).args(json!({ "network": "none" })).after(&parent)).await.unwrap();
    assert_eq!(child.exit_code, 0);
    bench.runner.reap_snapshots(child.committed_snapshot.into_iter().collect()).await;
    run.output().await
}

/// Runs a program in shadow mode, as a step of a project. Returns its trace, the files that it left in its
/// layer, and what came of the look-up. The caller removes its snapshot.
async fn effects(bench: &Bench, project: usize, cmd: &str) -> (Traced, Tree, ShadowVerdict) {
    let mode = Arc::new(ShadowMode::new(project.to_string()));
    let it = Traced::run_in(bench, Ask::new(cmd), Some(Arc::clone(&mode))).await;
    let verdict = mode.verdicts().pop().unwrap().1;
    let reference = it.snapshot.clone().unwrap();
    let snapshot = bench.store.snapshots().get(&reference).unwrap();
    // A step that changed nothing has no layer.
    let work = snapshot.layers.first().map(|layer| bench.store.layers().dir(layer).join("workspace/w"));
    let left = work.filter(|work| work.is_dir()).map_or_else(Tree::new, |work| tree(&work));
    (it, left, verdict)
}

#[test]
fn an_edit_that_touches_nothing_of_the_trace_changes_nothing() {
    let Some(program) = built("edits") else { return };
    let wanted: Option<u32> = std::env::var(CASES).ok().map(|cases| cases.parse().unwrap());
    let (cases, until) = match wanted {
        Some(cases) => (cases, None),
        None => (DEFAULT_CASES, Some(Instant::now() + DEFAULT_TIME)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 60, ..Config::default() };
    let mut runner = match wanted {
        Some(_) => TestRunner::new(config),
        // The same programs each time: a search for others is asked for.
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let strategy = (prop::collection::vec(operation(), 1..10), prop::collection::vec(edit(), EDITS));
    let (untouched, touched, looked_up) = (Cell::new(0_u32), Cell::new(0_u32), Cell::new(0_u32));
    let projects = Cell::new(0_usize);
    let tried = || untouched.get() + touched.get();
    let bench = Bench::new();
    fs::copy(program, bench.source().join("edits")).unwrap();
    let work = bench.source().join("w");
    let renew = || {
        if work.exists() {
            fs::remove_dir_all(&work).unwrap();
        }
        fs::create_dir(&work).unwrap();
        fill(&work);
    };
    let result = runner.run(&strategy, |(operations, edits)| {
        let has_enough = || untouched.get() > FEWEST && touched.get() > FEWEST;
        if tried() >= cases || until.is_some_and(|until| Instant::now() > until) && has_enough() {
            return Ok(());
        }
        let cmd = format!("cd w && /workspace/edits {}", operations.join(" "));
        renew();
        // No program finds what another one left.
        projects.set(projects.get() + 1);
        let project = projects.get();
        let (first, left, verdict) = runtime.block_on(effects(&bench, project, &cmd));
        prop_assert_eq!(first.reasons(), Vec::<String>::new(), "{}", cmd);
        prop_assert_eq!(verdict, ShadowVerdict::default(), "{}: {:?}", cmd, first.source());
        let before = tree(&work);
        let reused = first.snapshot.clone().unwrap();
        let mut remove = vec![reused.clone()];
        for edit in edits {
            renew();
            if !edit.make(&work) {
                continue;
            }
            let after = tree(&work);
            if touches(&first.trace, &before, &after) {
                touched.set(touched.get() + 1);
                if touched.get() % LOOKED_UP != 0 {
                    continue;
                }
                looked_up.set(looked_up.get() + 1);
                let (other, _, verdict) = runtime.block_on(effects(&bench, project, &cmd));
                remove.extend(other.snapshot);
                prop_assert!(!verdict.found, "{} after {:?}: {:?}", cmd, edit, first.source());
                // What this run read must not be found by the next edit.
                break;
            }
            untouched.set(untouched.get() + 1);
            let (again, left_again, verdict) = runtime.block_on(effects(&bench, project, &cmd));
            let is_right = verdict.found && verdict.difference.is_none();
            prop_assert!(is_right, "{} after {:?}: {:?} {:?}", cmd, edit, verdict, first.source());
            prop_assert_eq!(first.code, again.code, "{} after {:?}: {:?}", cmd, edit, first.source());
            prop_assert_eq!(&first.output, &again.output, "{} after {:?}: {:?}", cmd, edit, first.source());
            prop_assert_eq!(&left, &left_again, "{} after {:?}: {:?}", cmd, edit, first.source());
            let fresh = again.snapshot.clone().unwrap();
            if untouched.get() % WITH_CHILD == 0 {
                // A child of the first result sees what it would see over that of the second run.
                let [reused, fresh] = [&reused, &fresh].map(|it| runtime.block_on(seen_over(&bench, it)));
                prop_assert_eq!(reused, fresh, "{} after {:?}: {:?}", cmd, edit, first.source());
            }
            remove.push(fresh);
        }
        runtime.block_on(bench.runner.reap_snapshots(remove));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    let (untouched, touched) = (untouched.get(), touched.get());
    println!("{untouched} edits touched nothing, {touched} did, of which {} were looked up", looked_up.get());
    assert!(looked_up.get() > 0);
    // Otherwise everything would be recorded as read, or nothing would be edited.
    let enough = if wanted.is_some() { cases / 10 } else { FEWEST };
    assert!(untouched > enough && touched > enough, "{untouched} edits touched nothing, {touched} did");
}
