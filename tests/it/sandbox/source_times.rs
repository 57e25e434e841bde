//! The times of source files that steps see: what build tools take for new.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use hm_exec::{
    StepResult,
    runner::ArchiveId,
    source::{RunSource, SourceTimes},
};

use crate::support::{
    backends::usable_program,
    sandbox::{Ask, Bench},
};

/// Sets a time long ago, as `rsync -t` and `unzip` leave it.
fn age(path: &Path) {
    fs::File::open(path).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
}

/// Writes a file of the source.
fn put(bench: &Bench, name: &str, text: &str) {
    let path = bench.source().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Makes the source what a new clone of it would be: every file is another one, with a new time.
fn clone_again(bench: &Bench) {
    let status = Command::new("sh")
        .args(["-c", r#"cp -R "$0" "$0.new" && rm -r "$0" && mv "$0.new" "$0""#])
        .arg(bench.source())
        .status()
        .unwrap();
    assert!(status.success());
}

/// Runs a step in a run of its own. Returns its result and its output.
async fn run(bench: &Bench, cmd: &str, parent: Option<&StepResult>) -> (StepResult, String) {
    run_with(bench, cmd, parent, SourceTimes::Normal).await
}

async fn run_with(bench: &Bench, cmd: &str, parent: Option<&StepResult>, times: SourceTimes) -> (StepResult, String) {
    let mut run = bench.run();
    let source = RunSource::new(ArchiveId(run.id()), bench.source());
    run.ctx.archives = Arc::new(source.times(times));
    let ask = Ask::new(cmd);
    let ask = match parent {
        Some(parent) => ask.after(parent),
        None => ask,
    };
    let result = bench.step(&mut run, ask).await.unwrap();
    let output = run.output().await;
    assert_eq!(result.exit_code, 0, "{cmd}: {output}");
    (result, output)
}

#[tokio::test]
async fn make_notices_an_edit_with_an_old_time() {
    if !usable_program("make") {
        return;
    }
    let bench = Bench::new();
    put(&bench, "Makefile", "out: in\n\tcp in out\n");
    put(&bench, "in", "old\n");
    let (parent, _) = run(&bench, "make -s", None).await;
    put(&bench, "in", "new\n");
    age(&bench.source().join("in"));
    let build = "make -s 2> /dev/null; cat out";
    let (child, output) = run(&bench, build, Some(&parent)).await;
    assert_eq!(output, "new\n");
    // Over a child that saw the first edit, the next one is newer again.
    put(&bench, "in", "newer\n");
    age(&bench.source().join("in"));
    let (_, output) = run(&bench, build, Some(&child)).await;
    assert_eq!(output, "newer\n");
    // A step's clock may be ahead, and whatever it unpacks may come from the future.
    let (ahead, _) = run(&bench, "make -s 2> /dev/null; touch -d 2040-01-01 out", Some(&parent)).await;
    put(&bench, "in", "newest\n");
    let (_, output) = run(&bench, build, Some(&ahead)).await;
    assert_eq!(output, "newest\n");
}

#[tokio::test]
async fn another_clone_builds_nothing() {
    if !usable_program("make") {
        return;
    }
    let bench = Bench::new();
    put(&bench, "Makefile", "all: one two\n%: sub/%.in\n\tcp $< $@\n");
    put(&bench, "sub/one.in", "1");
    put(&bench, "sub/two.in", "2");
    let (parent, _) = run(&bench, "make -s", None).await;
    for _ in 0..2 {
        clone_again(&bench);
        run(&bench, "make -q", Some(&parent)).await;
    }
    // A new time alone is no edit.
    fs::File::open(bench.source().join("sub/one.in")).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    run(&bench, "make -q", Some(&parent)).await;
    clone_again(&bench);
    put(&bench, "sub/two.in", "3");
    let (_, output) = run(&bench, "make 2> /dev/null", Some(&parent)).await;
    assert_eq!(output, "cp sub/two.in two\n", "only what the edit requires");
}

#[tokio::test]
async fn python_runs_an_edit_that_keeps_size_and_time() {
    if !usable_program("python3") {
        return;
    }
    let bench = Bench::new();
    let module = bench.source().join("module.py");
    let edit = |value: u8| {
        fs::write(&module, format!("value = {value}\n")).unwrap();
        age(&module);
    };
    // The compiled file records the time and the size of its source.
    let import = "python3 -c 'import module; print(module.value)' && ls __pycache__ | wc -l";
    edit(1);
    let (mut parent, output) = run(&bench, import, None).await;
    assert_eq!(output, "1\n1\n");
    for value in 2..5 {
        edit(value);
        let (child, output) = run(&bench, import, Some(&parent)).await;
        assert_eq!(output, format!("{value}\n1\n"));
        parent = child;
    }
}

#[tokio::test]
async fn every_kind_of_edit_is_newer_than_the_lineage_and_nothing_else_is() {
    let bench = Bench::new();
    for name in [
        "same",
        "edited",
        "removed",
        "script",
        "added-to/x",
        "edited-in/x",
        "removed-from/x",
        "removed-from/y",
        "link-1/x",
        "link-2/x",
        "link-2/deep/y",
        "written",
        "written-and-edited",
    ] {
        put(&bench, name, name);
    }
    symlink("same", bench.source().join("to-file")).unwrap();
    symlink("link-1", bench.source().join("to-dir")).unwrap();
    symlink("edited", bench.source().join("unchanged-link")).unwrap();
    let (fresh, output) = run(
        &bench,
        "find . -printf '%T@\\n' | sort -u; echo mine | tee written > written-and-edited; echo built > built",
        None,
    )
    .await;
    assert_eq!(output, "946684800.0000000000\n", "one time for all");
    clone_again(&bench);
    let newer = "find . -newer built | LC_ALL=C sort";
    assert_eq!(run(&bench, newer, Some(&fresh)).await.1, "", "another clone");

    put(&bench, "edited", "anew");
    put(&bench, "edited-in/x", "anew");
    put(&bench, "added-to/y", "added");
    put(&bench, "written-and-edited", "anew");
    for name in ["removed", "removed-from/x"] {
        fs::remove_file(bench.source().join(name)).unwrap();
    }
    fs::set_permissions(bench.source().join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    for (link, target) in [("to-file", "link-1/x"), ("to-dir", "link-2")] {
        fs::remove_file(bench.source().join(link)).unwrap();
        symlink(target, bench.source().join(link)).unwrap();
    }
    let look = format!("{newer}; cat written written-and-edited; echo; test -x script; find . -newer edited");
    let (child, output) = run(&bench, &look, Some(&fresh)).await;
    let expected = [
        ".",
        "./added-to",
        "./added-to/y",
        "./edited",
        "./edited-in/x",
        "./link-1/x",
        "./link-2",
        "./link-2/deep",
        "./link-2/deep/y",
        "./link-2/x",
        "./removed-from",
        "./script",
        "./to-dir",
        "./to-file",
        "./written-and-edited",
        "mine",
        "anew",
    ];
    assert_eq!(output.lines().collect::<Vec<_>>(), expected);

    // What that child saw stays as it is for its own children.
    clone_again(&bench);
    put(&bench, "same", "edited at last");
    let (_, output) = run(&bench, "find . -newer edited | LC_ALL=C sort", Some(&child)).await;
    assert_eq!(output, "./same\n");
}

#[tokio::test]
async fn real_times_are_those_of_the_source() {
    let bench = Bench::new();
    put(&bench, "old", "1");
    put(&bench, "new", "1");
    age(&bench.source().join("old"));
    let look = "stat -c %Y old; find . -newer old -name new; echo built > built";
    let (parent, output) = run_with(&bench, look, None, SourceTimes::Real).await;
    assert_eq!(output, "1000000000\n./new\n");
    put(&bench, "new", "2");
    age(&bench.source().join("new"));
    let look = "cat new; stat -c %Y new; find . -newer built";
    let (_, output) = run_with(&bench, look, Some(&parent), SourceTimes::Real).await;
    assert_eq!(output.replace('2', "2\n"), "2\n1000000000\n");
}
