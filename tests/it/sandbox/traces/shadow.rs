//! Shadow mode: a look-up by what a step read takes a result only if the step would do the same again.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::Arc,
};

use hm_exec::{
    SnapshotRef,
    event::ShadowVerdict,
    runner::{ArchiveId, InputFiles, OtherSteps, Secrets, ShadowMode, StepRunner},
    source::{RunSource, SourceTimes},
};
use serde_json::json;
use uuid::Uuid;

use crate::support::{
    backends::skip_optional,
    sandbox::{Ask, Bench, Run},
};

/// A step that ran in shadow mode.
#[derive(Debug)]
pub(super) struct Shadowed {
    pub(super) code: i32,
    pub(super) verdict: ShadowVerdict,
    pub(super) snapshot: Option<SnapshotRef>,
}

impl Shadowed {
    /// Runs a step of `run`. If it names no network, it gets none.
    pub(super) async fn of(bench: &Bench, run: &mut Run, mut ask: Ask) -> Self {
        ask.args.get_or_insert_with(|| json!({ "network": "none" }));
        let input = run.input(ask);
        Self::of_input(bench, run, input).await
    }

    async fn of_input(bench: &Bench, run: &mut Run, input: hm_exec::ExecutorInput) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run.ctx.traces.get_or_insert_with(|| dir.path().join("traces").into());
        let mode = Arc::clone(run.ctx.shadow.get_or_insert_with(|| Arc::new(ShadowMode::new("project"))));
        let before = mode.verdicts().len();
        let result = bench.runner.execute(&run.ctx, input).await.unwrap();
        let verdicts = mode.verdicts();
        assert_eq!(verdicts.len(), before + 1, "{verdicts:?}");
        let verdict = verdicts.last().unwrap().1.clone();
        Self { code: result.exit_code, verdict, snapshot: result.committed_snapshot }
    }

    /// Runs a step in a run of its own.
    async fn alone(bench: &Bench, ask: Ask) -> Self {
        Self::of(bench, &mut bench.run(), ask).await
    }

    fn reasons(&self) -> Vec<&str> {
        self.verdict.reasons.iter().map(String::as_str).collect()
    }
}

/// Runs a command twice, with an edit between, and returns what came of the second look-up.
async fn edited(cmd: &str, fill: impl FnOnce(&Path), edit: impl FnOnce(&Path)) -> ShadowVerdict {
    let bench = Bench::new();
    fill(&bench.source());
    let first = Shadowed::alone(&bench, Ask::new(cmd)).await;
    assert_eq!((first.code, first.verdict), (0, ShadowVerdict::default()), "{cmd}");
    edit(&bench.source());
    let second = Shadowed::alone(&bench, Ask::new(cmd)).await;
    assert_eq!(second.verdict.difference, None, "{cmd}: {second:?}");
    second.verdict
}

fn two_files(dir: &Path) {
    fs::write(dir.join("F"), "content").unwrap();
    fs::write(dir.join("README"), "read me").unwrap();
}

/// Asserts that the second look-up failed because of this.
fn assert_missed(verdict: &ShadowVerdict, because: &str) {
    assert_eq!((verdict.found, verdict.miss.as_deref()), (false, Some(because)), "{verdict:?}");
}

#[tokio::test]
async fn the_same_again_is_found() {
    let verdict = edited("cat F > made", two_files, |_| {}).await;
    assert!(verdict.found, "{verdict:?}");
}

#[tokio::test]
async fn an_edit_of_what_was_not_read_is_found() {
    let verdict = edited("cat F > made", two_files, |dir| {
        fs::write(dir.join("README"), "other").unwrap();
        fs::write(dir.join("new"), "").unwrap();
    })
    .await;
    assert!(verdict.found, "{verdict:?}");
}

#[tokio::test]
async fn an_edit_of_what_was_read_is_missed_and_named() {
    let verdict = edited("cat F > made", two_files, |dir| fs::write(dir.join("F"), "edited!").unwrap()).await;
    assert_missed(&verdict, "/workspace/F changed");
    let verdict = edited("cat F > made", two_files, |dir| fs::remove_file(dir.join("F")).unwrap_or_default()).await;
    assert_eq!(verdict.miss.as_deref(), Some("/workspace/F is gone"));
}

#[tokio::test]
async fn a_file_that_was_only_asked_for_counts_with_its_content() {
    // Its time follows its content, and the step may have compared times.
    let cmd = "test -e README; test F -nt README; true";
    let verdict = edited(cmd, two_files, |dir| fs::write(dir.join("README"), "READ ME").unwrap()).await;
    assert_missed(&verdict, "/workspace/README changed");
}

#[tokio::test]
async fn a_file_that_appears_where_one_was_looked_for_is_missed() {
    let fill = |dir: &Path| {
        fs::create_dir_all(dir.join("first")).unwrap();
        fs::create_dir_all(dir.join("second")).unwrap();
        fs::write(dir.join("second/x.h"), "2").unwrap();
    };
    let cmd = "cat first/x.h 2> /dev/null || cat second/x.h > made";
    let verdict = edited(cmd, fill, |dir| fs::write(dir.join("first/x.h"), "1").unwrap()).await;
    assert_missed(&verdict, "/workspace/first/x.h appeared");
}

#[tokio::test]
async fn other_names_in_a_listed_directory_are_missed() {
    let fill = |dir: &Path| fs::create_dir(dir.join("d")).unwrap();
    let verdict = edited("ls d > made", fill, |dir| fs::write(dir.join("d/new"), "").unwrap()).await;
    assert_missed(&verdict, "/workspace/d lists other names");
}

#[tokio::test]
async fn another_mode_is_missed() {
    let verdict = edited("cat F > made", two_files, |dir| {
        fs::set_permissions(dir.join("F"), fs::Permissions::from_mode(0o755)).unwrap();
    })
    .await;
    assert_missed(&verdict, "the mode, owner or attributes of /workspace/F changed");
}

#[tokio::test]
async fn a_link_to_elsewhere_is_missed() {
    let fill = |dir: &Path| {
        for name in ["a", "b"] {
            fs::write(dir.join(name), "the same").unwrap();
        }
        symlink("a", dir.join("link")).unwrap();
    };
    let verdict = edited("cat link > made", fill, |dir| {
        fs::remove_file(dir.join("link")).unwrap();
        symlink("b", dir.join("link")).unwrap();
    })
    .await;
    assert_missed(&verdict, "/workspace/link changed");
}

#[tokio::test]
async fn a_directory_that_becomes_a_link_is_missed() {
    let fill = |dir: &Path| {
        for name in ["a", "b"] {
            fs::create_dir(dir.join(name)).unwrap();
            fs::write(dir.join(name).join("F"), "the same").unwrap();
        }
    };
    let verdict = edited("cat a/F > made", fill, |dir| {
        fs::remove_dir_all(dir.join("a")).unwrap();
        symlink("b", dir.join("a")).unwrap();
    })
    .await;
    assert_missed(&verdict, "/workspace/a changed");
}

#[tokio::test]
async fn a_source_file_that_was_overwritten_counts_with_its_content() {
    // On top of the earlier result, the edit would replace what the step wrote.
    let verdict = edited("echo made > F", two_files, |dir| fs::write(dir.join("F"), "edited!").unwrap()).await;
    assert_missed(&verdict, "/workspace/F changed");
    let verdict = edited("rm F", two_files, |dir| fs::write(dir.join("F"), "edited!").unwrap()).await;
    assert_missed(&verdict, "/workspace/F changed");
}

#[tokio::test]
async fn only_the_steps_that_read_a_file_miss_it() {
    let bench = Bench::new();
    let names: Vec<String> = (0..5).map(|number| format!("{number}.c")).collect();
    names.iter().for_each(|name| fs::write(bench.source().join(name), name).unwrap());
    let found = async |bench: &Bench| {
        let mut run = bench.run();
        let mut found = Vec::new();
        for name in &names {
            let step = Shadowed::of(bench, &mut run, Ask::new(format!("cat {name} > {name}.o"))).await;
            assert_eq!((step.verdict.difference, step.verdict.reasons), (None, Vec::<String>::new()));
            found.push(step.verdict.found);
        }
        found
    };
    assert_eq!(found(&bench).await, [false; 5]);
    fs::write(bench.source().join("2.c"), "edited").unwrap();
    assert_eq!(found(&bench).await, [true, true, false, true, true]);
    // The first result is kept, too.
    fs::write(bench.source().join("2.c"), "2.c").unwrap();
    assert_eq!(found(&bench).await, [true; 5]);
}

#[tokio::test]
async fn a_clone_in_another_directory_is_found() {
    let bench = Bench::new();
    two_files(&bench.source());
    let first = Shadowed::alone(&bench, Ask::new("cat F > made")).await;
    assert_eq!(first.verdict, ShadowVerdict::default());
    let clone = tempfile::tempdir().unwrap();
    two_files(clone.path());
    fs::write(clone.path().join("README"), "other").unwrap();
    let mut run = bench.run();
    run.ctx.archives = Arc::new(RunSource::new(ArchiveId(Uuid::new_v4()), clone.path()));
    let second = Shadowed::of(&bench, &mut run, Ask::new("cat F > made")).await;
    assert!(second.verdict.found && second.verdict.difference.is_none(), "{second:?}");
}

#[tokio::test]
async fn a_child_of_a_parent_that_ran_again_is_found_if_what_it_reads_is_the_same() {
    let bench = Bench::new();
    let child = async |parent: &str| {
        let mut run = bench.run();
        let parent = bench.step(&mut run, Ask::new(parent)).await.unwrap();
        assert_eq!(parent.exit_code, 0);
        Shadowed::of(&bench, &mut run, Ask::new("cat out/a > made").after(&parent)).await.verdict
    };
    assert_eq!(child("mkdir out; echo 1 > out/a; echo 1 > out/log").await, ShadowVerdict::default());
    let again = child("mkdir out; echo 1 > out/a; echo 1 > out/log").await;
    assert!(again.found && again.difference.is_none(), "the same bytes: {again:?}");
    let log = child("mkdir out; echo 1 > out/a; date +%N > out/log; echo > out/more").await;
    assert!(log.found && log.difference.is_none(), "other bytes in what it does not read: {log:?}");
    assert_missed(&child("mkdir out; echo 2 > out/a").await, "/workspace/out/a changed");
    assert_missed(&child("mkdir out").await, "/workspace/out/a is gone");
}

#[tokio::test]
async fn other_default_access_rights_of_a_directory_that_was_passed_through_are_missed() {
    let bench = Bench::new();
    // All rights for all, on new files in it, whatever the umask.
    let list = "0200000001000700ffffffff04000700ffffffff20000700ffffffff";
    let open = format!(
        "mkdir d; python3 -c 'import os; os.setxattr(\"d\", \"system.posix_acl_default\", bytes.fromhex(\"{list}\"))'"
    );
    let (code, output) = bench.sh(&open).await;
    if code != 0 {
        return skip_optional("access control lists in steps, set by python3,", &output);
    }
    let child = async |parent: &str| {
        let mut run = bench.run();
        let parent = bench.step(&mut run, Ask::new(parent)).await.unwrap();
        assert_eq!(parent.exit_code, 0);
        let cmd = "umask 022; echo 1 > d/made";
        Shadowed::of(&bench, &mut run, Ask::new(cmd).after(&parent)).await.verdict
    };
    assert_eq!(child("mkdir d").await, ShadowVerdict::default());
    let again = child("mkdir d").await;
    assert!(again.found && again.difference.is_none(), "{again:?}");
    assert_missed(&child(&open).await, "the mode, owner or attributes of /workspace/d changed");
}

#[tokio::test]
async fn a_file_that_is_newer_than_another_one_now_is_missed() {
    let bench = Bench::new();
    let child = async |parent: &str| {
        let mut run = bench.run();
        let parent = bench.step(&mut run, Ask::new(parent)).await.unwrap();
        let cmd = "if test b -nt a; then echo up to date; else cat a > b; fi";
        Shadowed::of(&bench, &mut run, Ask::new(cmd).after(&parent)).await.verdict
    };
    // All of them are newer than the programs of the machine, which count, too.
    let times = |a: u32, b: u32| format!("echo 1 > a; echo 2 > b; touch -d {a}-01-01 a; touch -d {b}-01-01 b");
    assert_eq!(child(&times(2060, 2062)).await, ShadowVerdict::default());
    assert!(child(&times(2061, 2070)).await.found, "the order is the same");
    let verdict = child(&times(2062, 2060)).await;
    assert_missed(&verdict, "/workspace/a is now newer than /workspace/b");
}

#[tokio::test]
async fn what_else_is_known_before_a_step_runs_must_be_the_same() {
    let bench = Bench::new();
    two_files(&bench.source());
    let ask = || Ask::new("cat F > made");
    assert_eq!(Shadowed::alone(&bench, ask()).await.verdict, ShadowVerdict::default());
    let others =
        [Ask::new("cat F > made "), ask().env("X", "1"), ask().args(json!({ "network": "none", "pids": 100 }))];
    for other in others {
        let it = Shadowed::alone(&bench, other).await;
        assert_eq!(it.verdict, ShadowVerdict::default(), "there is no earlier result: {it:?}");
    }
    let mut run = bench.run();
    run.ctx.shadow = Some(Arc::new(ShadowMode::new("another project")));
    assert_eq!(Shadowed::of(&bench, &mut run, ask()).await.verdict, ShadowVerdict::default());
    let mut secrets = Secrets::new();
    secrets.insert("TOKEN", "s3cr3t-value");
    let mut run = bench.run_with(secrets);
    assert_eq!(Shadowed::of(&bench, &mut run, ask()).await.verdict, ShadowVerdict::default());
    assert!(Shadowed::alone(&bench, ask()).await.verdict.found);
}

/// Asserts that a step is not kept for this reason, whatever else is the same.
async fn assert_not_kept(bench: &Bench, ask: Ask, reason: &str) {
    for _ in 0..2 {
        let it = Shadowed::alone(bench, ask.clone()).await;
        assert_eq!(it.code, 0, "{it:?}");
        assert!(!it.verdict.found && it.verdict.miss.is_none(), "{it:?}");
        assert_eq!(it.reasons(), [reason]);
    }
}

#[tokio::test]
async fn a_step_that_read_a_file_of_the_kernel_is_not_kept() {
    assert_not_kept(&Bench::new(), Ask::new("cat /proc/uptime"), "it read /proc/uptime").await;
    assert_not_kept(&Bench::new(), Ask::new("ls /sys/class"), "it read /sys/class").await;
}

#[tokio::test]
async fn a_step_on_the_machines_network_is_not_kept() {
    let ask = Ask::new("true").args(json!({ "network": "host" }));
    assert_not_kept(&Bench::new(), ask, "it could use the machine's network").await;
}

#[tokio::test]
async fn a_step_that_read_a_secret_is_not_kept() {
    let bench = Bench::new();
    let mut secrets = Secrets::new();
    secrets.insert("TOKEN", "s3cr3t-value");
    let mut run = bench.run_with(secrets);
    let it = Shadowed::of(&bench, &mut run, Ask::new("cat /run/secrets/TOKEN > /dev/null")).await;
    assert_eq!(it.reasons(), ["it read the secret TOKEN"]);
}

#[tokio::test]
async fn a_step_that_saw_real_times_is_not_kept() {
    let bench = Bench::new();
    let mut run = bench.run();
    run.ctx.archives = Arc::new(RunSource::new(ArchiveId(Uuid::new_v4()), bench.source()).times(SourceTimes::Real));
    let it = Shadowed::of(&bench, &mut run, Ask::new("true")).await;
    assert_eq!(it.reasons(), ["it saw the real times of source files"]);
}

#[tokio::test]
async fn a_step_with_files_of_other_steps_is_not_kept() {
    let bench = Bench::new();
    let mut run = bench.run();
    let other = bench.step(&mut run, Ask::new("echo 1 > made")).await.unwrap().committed_snapshot.unwrap();
    let mut input = run.input(Ask::new("cat got").args(json!({ "network": "none" })));
    let mut others = OtherSteps::default();
    others.inputs = vec![InputFiles::new(("other", other), "/workspace/made", "/workspace/got")];
    input.other_steps = Some(Arc::new(others));
    let it = Shadowed::of_input(&bench, &mut run, input).await;
    assert_eq!((it.code, it.reasons()), (0, vec!["it got files of other steps"]));
}

#[tokio::test]
async fn a_step_with_cache_directories_is_not_kept() {
    let args = json!({ "network": "none", "caches": { "c": "/workspace/c" } });
    assert_not_kept(&Bench::new(), Ask::new("true").args(args), "it has cache directories").await;
}

#[tokio::test]
async fn a_step_that_traces_others_is_compared_and_not_kept() {
    let Some(program) = super::built("holes") else { return };
    let bench = Bench::new();
    fs::copy(program, bench.source().join("holes")).unwrap();
    fs::write(bench.source().join("F"), "content").unwrap();
    let ask = Ask::new("./holes own_listener");
    assert_not_kept(&bench, ask, "a program of the step traced others by seccomp").await;
}

#[tokio::test]
async fn a_file_that_is_as_old_as_another_one_now_is_missed() {
    let bench = Bench::new();
    let child = async |a: u32, b: u32| {
        let mut run = bench.run();
        let times = format!("echo 1 > a; echo 2 > b; touch -d {a}-01-01 a; touch -d {b}-01-01 b");
        let parent = bench.step(&mut run, Ask::new(times)).await.unwrap();
        let cmd = "if test b -nt a; then echo up to date; else cat a > b; fi";
        Shadowed::of(&bench, &mut run, Ask::new(cmd).after(&parent)).await.verdict
    };
    assert_eq!(child(2060, 2061).await, ShadowVerdict::default());
    assert_missed(&child(2060, 2060).await, "the times of /workspace/a and /workspace/b are in another order");
}

#[tokio::test]
async fn a_step_that_failed_is_not_kept() {
    let bench = Bench::new();
    for _ in 0..2 {
        let it = Shadowed::alone(&bench, Ask::new("exit 7")).await;
        assert_eq!((it.code, it.verdict), (7, ShadowVerdict::default()));
    }
}

#[tokio::test]
async fn what_no_trace_can_see_is_a_difference() {
    let bench = Bench::new();
    let cmd = "date +%s%N > made";
    assert_eq!(Shadowed::alone(&bench, Ask::new(cmd)).await.verdict, ShadowVerdict::default());
    let mut run = bench.run();
    let again = Shadowed::of(&bench, &mut run, Ask::new(cmd)).await;
    assert!(again.verdict.found, "{again:?}");
    assert_eq!(again.verdict.difference.as_deref(), Some("it wrote other files"));
    assert_eq!(run.ctx.shadow.unwrap().differences(), 1);
}

#[tokio::test]
async fn a_step_that_nothing_needs_leaves_no_snapshot_and_is_kept() {
    let bench = Bench::new();
    let ask = || Ask { commit: false, ..Ask::new("echo 1 > made") };
    let it = Shadowed::alone(&bench, ask()).await;
    assert_eq!((it.code, it.snapshot, it.verdict), (0, None, ShadowVerdict::default()));
    assert!(Shadowed::alone(&bench, ask()).await.verdict.found);
}
