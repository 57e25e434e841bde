//! What freezing a source tree of 100,000 files costs, beside `git status` on the same tree. Prints one table.
//!
//! `cargo bench --bench source` (writes some 900 MB to the temporary directory)

#![expect(clippy::print_stdout, reason = "a bench prints its table")]
#![allow(clippy::unwrap_used, reason = "a bench has nobody to report to")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use hm_exec::store::Store;

const DIRS: usize = 100;
const FILES_PER_DIR: usize = 1000;
const ROUNDS: usize = 15;

fn main() {
    let top = tempfile::tempdir().unwrap();
    let source = top.path().join("source");
    make_tree(&source);
    let has_git = git(&source, &["init", "--quiet"])
        && git(&source, &["add", "."])
        && git(&source, &["-c", "user.name=b", "-c", "user.email=b@b", "commit", "--quiet", "--message", "all"]);
    let freeze = || {
        // A store that knows nothing yet, as that of the next run; opening it is a matter of a millisecond.
        let started = Instant::now();
        let store = Store::open(&top.path().join("store")).unwrap();
        let frozen = store.freeze(&source, &AtomicBool::new(false)).unwrap();
        (started.elapsed(), frozen)
    };
    let (first, mut last) = freeze();
    let edited = source.join("dir-42/sub-3/file-300");
    // What was written just before the first freeze is read once more by the second.
    freeze();

    let (mut unchanged, mut one_changed, mut git_unchanged, mut git_changed) = (vec![], vec![], vec![], vec![]);
    // Turn by turn, so that whatever else the machine does hits all alike.
    for round in 0..ROUNDS {
        let (took, frozen) = freeze();
        assert_eq!(frozen, last);
        unchanged.push(took);
        git_unchanged.extend(status(&source, has_git));
        fs::write(&edited, format!("edited {round}")).unwrap();
        let (took, frozen) = freeze();
        assert!(frozen != last);
        last = frozen;
        one_changed.push(took);
        git_changed.extend(status(&source, has_git));
        freeze();
    }
    println!("{:<44} {:>9} {:>9} {:>9}", "100,000 files, in ms", "min", "median", "p90");
    println!("{:<44} {:>9} {:>9.1}", "frozen for the first time", "", first.as_secs_f64() * 1e3);
    let unchanged = row("unchanged", &mut unchanged);
    let one_changed = row("one file changed", &mut one_changed);
    if has_git {
        let git_unchanged = row("git status, unchanged", &mut git_unchanged);
        let git_changed = row("git status, one file changed", &mut git_changed);
        println!("\nunchanged / git status: {:.2}", unchanged / git_unchanged);
        println!("one file changed / git status: {:.2}", one_changed / git_changed);
    } else {
        println!("\ngit status: skipped, git is not installed");
    }
}

fn make_tree(source: &Path) {
    for dir in 0..DIRS {
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

/// Prints a row, and tells its median in ms.
fn row(name: &str, times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    let ms = |at: usize| times[at].as_secs_f64() * 1e3;
    println!("{name:<44} {:>9.1} {:>9.1} {:>9.1}", ms(0), ms(times.len() / 2), ms(times.len() * 9 / 10));
    ms(times.len() / 2)
}
