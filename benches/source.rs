//! The cost of freezing a source tree of 100,000 files, compared with `git status` on the same tree.
//!
//! `cargo bench --bench source` (writes about 900 MB to the temporary directory)

#![allow(clippy::unwrap_used, reason = "a bench panics on errors")]

mod common;

use hm_exec::source::{self, SourceTimes};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use common::{Effort, Figure, Table, median, spread};
use hm_exec::store::Store;

const FILES_PER_DIR: usize = 1000;

/// A step that is cached by the content of a part of the tree, which no round edits.
const IR: &str = r#"{"version":"0","graph":{"nodes":[{"step":{"key":"step","cmd":"true","image":"host",
"cache":{"policy":"on_change","paths":["dir-0"],"env_keys":[],"key":"0000"}},"env":{}}],
"node_holes":[],"edge_property":"directed","edges":[]}}"#;

fn main() {
    let (dirs, rounds) = Effort::asked().pick((100, 15), (2, 2));
    let top = tempfile::tempdir().unwrap();
    let source = top.path().join("source");
    make_tree(&source, dirs);
    let has_git = git(&source, &["init", "--quiet"])
        && git(&source, &["add", "."])
        && git(&source, &["-c", "user.name=b", "-c", "user.email=b@b", "commit", "--quiet", "--message", "all"]);
    let freeze = || {
        // Each run opens the store anew, as the next run of `hm` would. Opening it takes about a millisecond.
        let started = Instant::now();
        let store = Store::open(&top.path().join("store")).unwrap();
        let frozen = source::freeze(&store, &source, SourceTimes::Normal, &AtomicBool::new(false)).unwrap();
        (started.elapsed(), frozen)
    };
    let ir = top.path().join("ir.json");
    fs::write(&ir, IR).unwrap();
    // A whole run needs the name of the tree, and no file of it.
    let run = || {
        let mut hm = Command::new(env!("CARGO_BIN_EXE_hm"));
        hm.env("HM_CACHE_DIR", top.path().join("store")).args(["run", "-d"]).arg(&source).arg("-f").arg(&ir);
        let started = Instant::now();
        let output = hm.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        started.elapsed()
    };
    let (first, mut last) = freeze();
    let edited = source.join("dir-1/sub-3/file-300");
    // Files that were written just before the first freeze are read once more by the second.
    freeze();
    run();

    let (mut cached, mut unchanged, mut one_changed, mut git_unchanged, mut git_changed) =
        (vec![], vec![], vec![], vec![], vec![]);
    // The contenders take turns, so that other activity of the machine affects all alike.
    for round in 0..rounds {
        let (took, frozen) = freeze();
        assert_eq!(frozen, last);
        unchanged.push(took);
        git_unchanged.extend(status(&source, has_git));
        cached.push(run());
        fs::write(&edited, format!("edited {round}")).unwrap();
        let (took, frozen) = freeze();
        assert!(frozen != last);
        last = frozen;
        one_changed.push(took);
        git_changed.extend(status(&source, has_git));
        freeze();
    }
    let table = Table::new("source");
    let files = dirs * FILES_PER_DIR;
    let row = |what: &str, times: &mut [Duration], git: &mut [Duration]| {
        let (ours, besides) = (Figure::ms(median(times)), spread(times));
        match has_git {
            true => table.against(what, &ours, &Figure::ms(median(git)).of("git status"), besides),
            false => table.alone(what, &ours, "git status: not installed", besides),
        }
    };
    row(&format!("run on {files} files, unchanged, all steps cached"), &mut cached, &mut git_unchanged);
    row(&format!("freezing {files} files, unchanged"), &mut unchanged, &mut git_unchanged);
    row(&format!("freezing {files} files, one changed"), &mut one_changed, &mut git_changed);
    table.alone(format!("freezing {files} files for the first time"), &Figure::ms(first), "", "once");
}

fn make_tree(source: &Path, dirs: usize) {
    for dir in 0..dirs {
        for file in 0..FILES_PER_DIR {
            let sub = source.join(format!("dir-{dir}/sub-{}", file / 100));
            if file % 100 == 0 {
                fs::create_dir_all(&sub).unwrap();
            }
            fs::write(sub.join(format!("file-{file}")), format!("{dir} {file}\n").repeat(20 + file % 50)).unwrap();
        }
    }
    fs::write(source.join(".gitignore"), "target/\n*.o\n*.log\n/build\n").unwrap();
    fs::write(source.join("dir-1/.gitignore"), "*.tmp\n!kept.tmp\n").unwrap();
}

fn git(source: &Path, args: &[&str]) -> bool {
    let mut git = Command::new("git");
    git.args(args).current_dir(source).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn status(source: &Path, has_git: bool) -> Option<Duration> {
    let started = Instant::now();
    (has_git && git(source, &["status", "--porcelain"])).then(|| started.elapsed())
}
