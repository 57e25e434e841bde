//! The process runner, through the trait that the executor uses.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use hm_exec::{
    BuildEvent, BuildStatus, EventStream, ExecutorInput, SnapshotRef, StepResult, StepStatus,
    event::{self, EventWriter, RunDir, StateEvent, StdStream, step_id},
    plan::StepIndex,
    runner::{ArchiveId, CacheDecision, RunnerError, Secrets, StepContext, StepRunner, process::ProcessRunner},
    source::RunSource,
    store::{Store, StoreHandle},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{
    backends::usable,
    programs::hm,
    project::{Ended, Project, ir},
    run_meta::run_meta,
};

const RUN: Uuid = Uuid::from_u128(7);

/// A source tree, a store, and a run of one step after another.
struct Bench {
    top: tempfile::TempDir,
    runner: ProcessRunner,
}

impl Bench {
    /// Returns a bench whose steps have a supervisor.
    fn supervised() -> Self {
        let Self { top, runner } = Self::new();
        Self { top, runner: runner.helper(hm()) }
    }

    /// Returns a bench of each kind.
    fn both() -> [Self; 2] {
        [Self::new(), Self::supervised()]
    }

    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("source")).unwrap();
        let runner = ProcessRunner::new(StoreHandle::new(top.path().join("store")));
        Self { top, runner }
    }

    fn source(&self) -> PathBuf {
        self.top.path().join("source")
    }

    fn context(&self) -> (StepContext, EventWriter, EventStream) {
        let meta = run_meta(RUN, 1);
        let (mut writer, bus, events) = event::create(RunDir::Temporary, meta, &Secrets::new()).unwrap();
        writer.emit(0, StateEvent::StepStart { step: StepIndex(0), attempt: 1 });
        let archives = Arc::new(RunSource::new(ArchiveId(RUN), self.source()));
        (StepContext::new(bus, archives, Arc::default(), CancellationToken::new()), writer, events)
    }

    async fn run(&self, cmd: &str, parent: Option<&SnapshotRef>) -> (Result<StepResult, RunnerError>, Vec<BuildEvent>) {
        let (ctx, writer, events) = self.context();
        let result = self.runner.execute(&ctx, input(cmd, parent)).await;
        drop(ctx);
        (result, read(writer, events).await)
    }

    /// Runs a command, cancels it when it has written `count` process ids to the file `pids`, and returns how
    /// it ended. All of these processes have ended then, too.
    async fn interrupted(&self, cmd: &str, count: usize, grace: Option<Duration>) -> RunnerError {
        let (mut ctx, _writer, _events) = self.context();
        ctx.grace = grace.unwrap_or(ctx.grace);
        let (cancel, file) = (ctx.cancel.clone(), self.top.path().join("pids"));
        let stop = std::thread::spawn(move || {
            let pids = pids(&file, count);
            cancel.cancel();
            pids
        });
        let error = self.runner.execute(&ctx, input(cmd, None)).await.unwrap_err();
        let pids = stop.join().unwrap();
        assert!(pids.iter().all(|pid| !is_alive(pid)), "{pids:?}");
        error
    }

    async fn passes(&self, cmd: &str, parent: Option<&SnapshotRef>) -> SnapshotRef {
        let (result, events) = self.run(cmd, parent).await;
        let result = result.unwrap();
        assert_eq!(result.exit_code, 0, "{:?}", lines(&events, StdStream::Stderr));
        result.committed_snapshot.unwrap()
    }
}

async fn read(mut writer: EventWriter, mut events: EventStream) -> Vec<BuildEvent> {
    let (status, step) = (StepStatus::Passed, StepIndex(0));
    writer.emit(
        1,
        StateEvent::StepEnd {
            step,
            attempt: 1,
            status,
            exit_code: 0,
            duration_ms: 1,
            snapshot: None,
            message: None,
            artifacts: vec![],
            details: Default::default(),
        },
    );
    writer.emit(1, StateEvent::BuildEnd { status: BuildStatus::Passed, duration_ms: 1 });
    writer.flush().unwrap();
    drop(writer);
    let mut all = Vec::new();
    while let Some(event) = events.next().await {
        all.push(event);
    }
    all
}

fn input(cmd: &str, parent: Option<&SnapshotRef>) -> ExecutorInput {
    let step = serde_json::from_value(json!({ "key": "step", "cmd": cmd })).unwrap();
    let mut input = ExecutorInput::new(Arc::new(step), ArchiveId(RUN), RUN, step_id(RUN, StepIndex(0)));
    input.cache_lookup = CacheDecision::MissBuildAs { tag: "tag".into() };
    input.parent_snapshot = parent.cloned();
    input
}

fn lines(events: &[BuildEvent], from: StdStream) -> Vec<&str> {
    let line = |event| match event {
        &BuildEvent::StepLog { stream, ref line, .. } if stream == from => Some(line.as_str()),
        _ => None,
    };
    events.iter().filter_map(line).collect()
}

/// Returns whether a process exists and is not a zombie.
fn is_alive(pid: &str) -> bool {
    let state = Command::new("ps").args(["-o", "stat=", "-p", pid]).output().unwrap().stdout;
    !state.is_empty() && !state.starts_with(b"Z")
}

fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "no {what} in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the process ids that a step wrote, one a line, once there are `count`.
fn pids(path: &Path, count: usize) -> Vec<String> {
    wait_for("process ids", || {
        let text = fs::read_to_string(path).unwrap_or_default();
        (text.lines().count() == count && text.ends_with('\n')).then(|| text.lines().map(str::to_owned).collect())
    })
}

#[tokio::test]
async fn a_command_runs_in_a_copy_of_the_source_with_its_own_environment() {
    for bench in Bench::both() {
        fs::write(bench.source().join("file"), "original").unwrap();
        let (ctx, writer, events) = bench.context();
        let mut input =
            input("cat; cat file; echo changed > file; env | cut -d= -f1 | sort | tr '\\n' ' '; echo err >&2", None);
        input.env = Arc::new([("MINE".to_owned(), "x y".to_owned())].into());
        let result = bench.runner.execute(&ctx, input).await.unwrap();
        assert_eq!(result.exit_code, 0);
        let events = read(writer, events).await;
        let names = lines(&events, StdStream::Stdout)[0].strip_prefix("original").unwrap();
        let names: Vec<_> = names.split_whitespace().filter(|name| !["LANG", "_", "SHLVL"].contains(name)).collect();
        assert_eq!(names, ["CI", "HM_STEP_MARK", "HOME", "MINE", "PATH", "PWD", "TMPDIR"]);
        assert_eq!(lines(&events, StdStream::Stderr), ["err"]);
        assert_eq!(fs::read(bench.source().join("file")).unwrap(), b"original");
    }
}

#[tokio::test]
async fn a_child_under_newer_source_gets_its_edits_and_deletions() {
    let bench = Bench::new();
    fs::create_dir(bench.source().join("gone")).unwrap();
    for name in ["edited", "deleted", "same", "gone/file"] {
        fs::write(bench.source().join(name), "old").unwrap();
    }
    let parent = bench
        .passes("for f in edited deleted same; do echo parent > $f; done; ln -s /etc dir; echo own > made", None)
        .await;
    fs::write(bench.source().join("edited"), "new").unwrap();
    fs::remove_file(bench.source().join("deleted")).unwrap();
    fs::remove_dir_all(bench.source().join("gone")).unwrap();
    fs::create_dir(bench.source().join("dir")).unwrap();
    fs::write(bench.source().join("dir/hm-exec-test"), "new").unwrap();
    let check = "test $(cat edited) = new && test ! -e deleted && test $(cat same) = parent && test ! -e gone && \
                 test $(cat made) = own && test ! -L dir && test $(cat dir/hm-exec-test) = new";
    bench.passes(check, Some(&parent)).await;
    assert!(!Path::new("/etc/hm-exec-test").exists());
}

#[tokio::test]
async fn an_edit_with_an_old_time_is_newer_than_what_the_parent_built() {
    let bench = Bench::new();
    let put = |name: &str, text: &str| {
        fs::create_dir_all(bench.source().join(name).parent().unwrap()).unwrap();
        fs::write(bench.source().join(name), text).unwrap();
        fs::File::open(bench.source().join(name)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    };
    for name in ["edited", "same", "in/x", "added-to/x", "target/x"] {
        put(name, "old");
    }
    std::os::unix::fs::symlink("same", bench.source().join("link")).unwrap();
    let one_time = "test $(find . -printf '%T@\\n' | sort -u) = 946684800.0000000000 && echo > built";
    let parent = bench.passes(one_time, None).await;
    for name in ["edited", "in/x", "added-to/y"] {
        put(name, "new");
    }
    fs::remove_file(bench.source().join("link")).unwrap();
    std::os::unix::fs::symlink("target", bench.source().join("link")).unwrap();
    let look = "find . -newer built | LC_ALL=C sort";
    let (result, events) = bench.run(look, Some(&parent)).await;
    assert_eq!(result.unwrap().exit_code, 0);
    let expected = ["./added-to", "./added-to/y", "./edited", "./in/x", "./link", "./target", "./target/x"];
    assert_eq!(lines(&events, StdStream::Stdout), expected);
}

#[tokio::test]
async fn commands_longer_than_an_argument_can_be_run() {
    for bench in Bench::both() {
        let cmd = format!("# {}\necho ran", "x".repeat(300_000));
        let (result, events) = bench.run(&cmd, None).await;
        assert_eq!((result.unwrap().exit_code, lines(&events, StdStream::Stdout)), (0, vec!["ran"]));
    }
}

#[tokio::test]
async fn unsupported_requests_are_refused_and_not_retried() {
    for bench in Bench::both() {
        let (ctx, _writer, _events) = bench.context();
        let mut with_image = input("true", None);
        with_image.step =
            Arc::new(serde_json::from_value(json!({ "key": "a", "cmd": "true", "image": "debian:12" })).unwrap());
        for (input, says) in [
            (with_image, "--image debian:12=host"),
            (input("true", Some(&"hm1:00000000000000000000000000000000".into())), "cannot start from snapshot"),
            (input("nul \0 byte", None), "NUL byte"),
        ] {
            let error = bench.runner.execute(&ctx, input).await.unwrap_err();
            assert!(error.to_line().contains(says) && !error.is_retryable(), "{}", error.to_line());
        }
    }
}

#[tokio::test]
async fn an_unused_runner_creates_no_store() {
    let bench = Bench::new();
    let _ = bench.runner.probe().await;
    let _ = bench.runner.capabilities();
    assert!(!bench.top.path().join("store").exists());
}

#[test]
fn steps_end_with_a_killed_engine_and_the_next_engine_cleans_up() {
    for (kind, count) in [("watched", 3), ("supervised", 4)] {
        let bench = Bench::new();
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::victim", "--ignored", "--nocapture"])
            .env("HM_TEST_VICTIM", bench.top.path())
            .env("HM_TEST_VICTIM_KIND", kind)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pids = pids(&bench.top.path().join("pids"), count);
        assert!(pids.iter().all(|pid| is_alive(pid)));
        victim.kill().unwrap();
        assert_eq!(victim.wait().unwrap().signal(), Some(9));
        for pid in &pids {
            wait_for("end", || (!is_alive(pid)).then_some(()));
        }
        let store = Store::open(&bench.top.path().join("store")).unwrap();
        for dir in ["workspaces", "tmp", "locks"] {
            let left = || fs::read_dir(store.dir().join(dir)).unwrap().count();
            wait_for("clean store", || (left() == usize::from(dir != "workspaces")).then_some(()));
        }
    }
}

/// Not a test by itself: the process that the test above kills.
#[test]
#[ignore = "started, and killed, by another test"]
fn victim() {
    let Some(top) = std::env::var_os("HM_TEST_VICTIM").map(PathBuf::from) else { return };
    let supervised = std::env::var("HM_TEST_VICTIM_KIND").unwrap() == "supervised";
    let runner = ProcessRunner::new(StoreHandle::new(top.join("store")));
    let runner = if supervised { runner.helper(hm()) } else { runner };
    let bench = Bench { top: tempfile::tempdir().unwrap(), runner };
    fs::create_dir(bench.source()).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let parent = bench.passes("touch here", None).await;
        let pids = top.join("pids").display().to_string();
        let escape = if supervised { escape(&pids) } else { String::new() };
        let cmd = format!(
            "{escape} echo $$ >> {pids}; (trap '' TERM HUP; echo $(sh -c 'echo $PPID') >> {pids}; while :; do sleep 1; done) & \
             setsid nohup sh -c 'echo $$ >> {pids}; exec sleep 1000'",
        );
        bench.passes(&cmd, Some(&parent)).await;
    });
}

/// Returns a command that leaves a process that nothing connects to the step any more: its parent has ended,
/// it is in a session of its own, and its environment is empty. It writes its id to the file `pids`.
fn escape(pids: &str) -> String {
    format!(
        "(env -i PATH=\"$PATH\" setsid sh -c 'trap \"\" TERM HUP; (echo $(sh -c \"echo \\$PPID\") >> {pids}; while :; do sleep 1; done) &' </dev/null >/dev/null 2>&1 &);"
    )
}

#[tokio::test]
async fn no_process_leaves_its_supervisor() {
    let bench = Bench::supervised();
    let file = bench.top.path().join("pids");
    let path = file.display().to_string();
    let cmd =
        format!("{} {} while [ $(cat {path} 2>/dev/null | wc -l) -lt 2 ]; do :; done", escape(&path), escape(&path));
    bench.passes(&cmd, None).await;
    let pids = pids(&file, 2);
    assert!(pids.iter().all(|pid| !is_alive(pid)), "{pids:?}");
}

#[tokio::test]
async fn every_process_gets_term_once_and_has_the_grace() {
    let bench = Bench::supervised();
    let file = bench.top.path().join("ready");
    let (ready, ended) = (file.display(), bench.top.path().join("ended"));
    // The first is in the shell's group, the second in another session, the third has no parent either.
    let member = |name: &str| {
        let waits = "while :; do sleep 0.05; done";
        format!(
            "sh -c 'trap \"echo {name} >> {}; sleep 0.3; echo {name}-late >> {0}; exit\" TERM; echo {name} >> {ready}; {waits}'",
            ended.display()
        )
    };
    let cmd =
        format!("{} & setsid {} & (env -i PATH=\"$PATH\" setsid {} &); wait", member("a"), member("b"), member("c"));
    let (mut ctx, _writer, _events) = bench.context();
    ctx.grace = Duration::from_secs(20);
    let cancel = ctx.cancel.clone();
    let stop = std::thread::spawn(move || {
        pids(&file, 3);
        cancel.cancel();
    });
    let error = bench.runner.execute(&ctx, input(&cmd, None)).await.unwrap_err();
    stop.join().unwrap();
    assert!(!error.is_retryable());
    let mut ended: Vec<_> = fs::read_to_string(&ended).unwrap().lines().map(str::to_owned).collect();
    ended.sort();
    assert_eq!(ended, ["a", "a-late", "b", "b-late", "c", "c-late"]);
}

#[tokio::test]
async fn a_step_that_kills_its_supervisor_fails_and_leaves_no_process() {
    let bench = Bench::supervised();
    let file = bench.top.path().join("pids");
    let cmd = format!(
        "setsid sh -c 'echo $$ >> {0}; exec sleep 1000' & echo $$ >> {0}; \
         while [ $(cat {0} | wc -l) -lt 2 ]; do :; done; kill -9 $PPID; sleep 1000",
        file.display()
    );
    let (result, _) = bench.run(&cmd, None).await;
    let error = result.unwrap_err();
    assert!(error.is_retryable() && error.to_line().contains("supervisor was killed"), "{}", error.to_line());
    assert!(pids(&file, 2).iter().all(|pid| !is_alive(pid)));
    bench.passes("true", None).await;
}

#[tokio::test]
async fn a_step_that_kills_its_supervisor_cannot_print_for_ever() {
    let (result, _) = Bench::supervised().run("kill -9 $PPID; exec yes", None).await;
    assert!(result.unwrap_err().to_line().contains("supervisor was killed"));
}

#[tokio::test]
async fn a_step_that_kills_its_supervisor_when_it_must_end_leaves_no_process() {
    let bench = Bench::supervised();
    let cmd = format!(
        "trap 'kill -9 $PPID' TERM; setsid sh -c 'trap \"\" TERM; echo $$ >> {0}; exec sleep 1000' & \
         echo $$ >> {0}; while :; do sleep 0.05; done",
        bench.top.path().join("pids").display()
    );
    assert!(!bench.interrupted(&cmd, 2, None).await.is_retryable());
}

#[tokio::test]
async fn a_step_that_disturbs_its_supervisor_is_ended_after_its_grace() {
    for disturb in [
        "trap '' TERM; echo $$ >> PIDS; while :; do setsid sleep 0.2 & done",
        "kill -STOP $PPID; echo $$ >> PIDS; sleep 1000",
    ] {
        let bench = Bench::supervised();
        let cmd = disturb.replace("PIDS", &bench.top.path().join("pids").display().to_string());
        bench.interrupted(&cmd, 1, Some(Duration::from_millis(50))).await;
    }
}

#[tokio::test]
async fn a_helper_that_was_killed_is_started_again() {
    let bench = Bench::supervised();
    let file = bench.top.path().join("pids");
    // The parent of a supervisor is the helper.
    bench.passes(&format!("ps -o ppid= -p $PPID >> {}", file.display()), None).await;
    let helper = pids(&file, 1).remove(0);
    assert!(Command::new("kill").args(["-9", helper.trim()]).status().unwrap().success());
    wait_for("end", || (!is_alive(helper.trim())).then_some(()));
    bench.passes("true", None).await;
}

#[tokio::test]
async fn a_helper_that_stops_answering_fails_one_attempt_and_another_is_started() {
    let bench = Bench::supervised();
    let file = bench.top.path().join("pids");
    bench.passes(&format!("ps -o ppid= -p $PPID >> {}", file.display()), None).await;
    let helper = pids(&file, 1).remove(0);
    assert!(Command::new("kill").args(["-STOP", helper.trim()]).status().unwrap().success());
    let error = bench.run("true", None).await.0.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_line().contains("did not answer within 10 s"), "{}", error.to_line());
    bench.passes("true", None).await;
    // Nothing uses it any more.
    wait_for("end", || (!is_alive(helper.trim())).then_some(()));
}

/// As the filters of containers do.
#[test]
fn steps_run_in_a_sandbox_that_denies_clone3() {
    let project = Project::new();
    project.file("inner.json", &ir(&[("inner", "echo from the inner step", None)]));
    let program = hm();
    let inner = "HM_CACHE_DIR=/tmp/store \"$HM\" run -f inner.json --runner process --format human".to_owned();
    let outer = format!("HM={}; {inner}", program.display());
    project.file(".hm/ci.json", &ir(&[("outer", &outer, None)]));
    let dir = program.parent().unwrap().display().to_string();
    let ended = Ended::of(&mut project.hm(&["run", "--format", "human", "--host-dir", &dir]));
    if usable("the sandbox", ended.code != Some(3), &ended.stderr) {
        assert!(ended.expect(0).stdout.contains("from the inner step"));
    }
}
