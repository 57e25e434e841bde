//! Runners that break one promise each: the suite must detect the fault, so that a pass means something.

use std::{
    fs,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hm_exec::{
    ExecutorInput, SnapshotRef, StepResult,
    conformance::{CaseVerdict, Suite},
    ir::{CommandStep, Env},
    runner::{
        ArgsSchema, Limits, RunnerCapabilities, RunnerError, RunnerErrorKind, StepContext, StepRunner,
        process::ProcessRunner,
    },
    source::RunSource,
    store::StoreHandle,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// The fault of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The runner runs this command, in which `@` stands for the step's own.
    Shell(&'static str),
    CutsExitCodes,
    ForgetsSignals,
    ForgetsEmptyVariables,
    HandsOnItsEnvironment,
    LeavesAProcess,
    IgnoresCancel,
    KillsAtOnce,
    MistakesTimeouts,
    FailsInsteadOfCancelling,
    RunsOneAtATime,
    WritesToTheSource,
    SharesWorkspaces,
    KeepsOldSource,
    CommitsFailures,
    CommitsNothing,
    StartsFromAnything,
    NeverReaps,
    TellsSecrets,
    /// The runner claims every capability and does nothing for it.
    Boasts,
    /// The runner claims limits, and has another schema.
    ChecksNoArguments,
}

/// The process runner with a fault.
#[derive(Debug)]
struct Broken {
    inner: ProcessRunner,
    fault: Fault,
    dir: TempDir,
    left: Mutex<Vec<Child>>,
    archives: Mutex<Option<Arc<RunSource>>>,
    busy: AtomicBool,
}

impl Broken {
    fn new(fault: Fault) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("shared")).unwrap();
        let inner = ProcessRunner::new(StoreHandle::new(dir.path().join("store")));
        Self { inner, fault, dir, left: Mutex::default(), archives: Mutex::default(), busy: AtomicBool::new(false) }
    }

    fn command(&self, cmd: &str, ctx: &StepContext) -> String {
        let shared = self.dir.path().join("shared").display().to_string();
        match self.fault {
            Fault::Shell(wrong) => wrong.replace('@', cmd),
            Fault::SharesWorkspaces => {
                format!("cp -a {shared}/. .\n({cmd}\n)\ncode=$?; cp -a . {shared}/; exit $code")
            }
            Fault::TellsSecrets => {
                for (name, value) in ctx.secrets.iter() {
                    fs::write(self.dir.path().join("shared").join(name), value).unwrap();
                }
                cmd.replace("/run/secrets", &shared)
            }
            _ => cmd.to_owned(),
        }
    }

    /// Starts the sleep that a step asks for in a process that is never ended.
    fn leave(&self, cmd: &str) {
        let marker = cmd.split(|it: char| !it.is_ascii_digit()).find(|word| word.len() == 9);
        if let Some(marker) = marker {
            let child = Command::new("sleep").arg(marker).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            self.left.lock().unwrap().push(child.unwrap());
        }
    }

    fn result(&self, ctx: &StepContext, result: Result<StepResult, RunnerError>) -> Result<StepResult, RunnerError> {
        let kind = result.as_ref().err().map(RunnerError::kind);
        match (self.fault, kind) {
            (Fault::MistakesTimeouts, Some(RunnerErrorKind::TimedOut)) => return Err(RunnerError::cancelled()),
            (Fault::FailsInsteadOfCancelling, Some(RunnerErrorKind::Cancelled)) => {
                return Err(RunnerError::unsupported("it died"));
            }
            (Fault::StartsFromAnything, Some(RunnerErrorKind::Infrastructure)) => {
                return Ok(StepResult::exited(0));
            }
            (Fault::TellsSecrets, Some(RunnerErrorKind::Infrastructure)) => {
                let values = ctx.secrets.iter().map(|(_, value)| String::from_utf8_lossy(value).into_owned());
                return Err(RunnerError::unsupported(values.collect::<String>()));
            }
            _ => {}
        }
        let mut result = result?;
        match self.fault {
            Fault::CutsExitCodes => result.exit_code &= 127,
            Fault::ForgetsSignals if result.exit_code > 128 => result.exit_code = -1,
            Fault::CommitsFailures if result.exit_code != 0 => result.committed_snapshot = Some("process:x".into()),
            Fault::CommitsNothing => result.committed_snapshot = None,
            Fault::WritesToTheSource => fs::write(ctx.archives.source_dir().join("script"), "ours").unwrap(),
            _ => {}
        }
        Ok(result)
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        for child in self.left.get_mut().unwrap() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl StepRunner for Broken {
    const NAME: &'static str = "process";

    async fn execute(&self, ctx: &StepContext, mut input: ExecutorInput) -> Result<StepResult, RunnerError> {
        let mut wrong = ctx.clone();
        let mut env = Env::clone(&input.env);
        match self.fault {
            Fault::IgnoresCancel => wrong.cancel = CancellationToken::new(),
            Fault::ForgetsEmptyVariables => env.retain(|_, value| !value.is_empty()),
            Fault::HandsOnItsEnvironment => env.extend(std::env::vars()),
            Fault::LeavesAProcess => self.leave(&input.step.cmd),
            Fault::KeepsOldSource => {
                wrong.archives =
                    Arc::clone(self.archives.lock().unwrap().get_or_insert_with(|| Arc::clone(&ctx.archives)));
            }
            _ => {}
        }
        input.env = Arc::new(env);
        let cmd = self.command(&input.step.cmd, ctx).into();
        // The image's place in a store does not matter here: the image is the machine, whatever the step asks
        // for.
        input.step = Arc::new(CommandStep { cmd, ..CommandStep::clone(&input.step) });
        let result = match self.fault {
            Fault::KillsAtOnce => tokio::select! {
                result = self.inner.execute(&wrong, input) => result,
                () = ctx.cancel.cancelled() => Err(ctx.interrupted()),
            },
            Fault::RunsOneAtATime if self.busy.swap(true, Ordering::Relaxed) => Err(RunnerError::unsupported("busy")),
            _ => self.inner.execute(&wrong, input).await,
        };
        self.result(ctx, result)
    }

    async fn reap_snapshots(&self, snapshots: Vec<SnapshotRef>) {
        if self.fault != Fault::NeverReaps {
            self.inner.reap_snapshots(snapshots).await;
        }
    }

    fn capabilities(&self) -> RunnerCapabilities {
        let mut claimed = self.inner.capabilities();
        let boasts = self.fault == Fault::Boasts;
        claimed.layers = boasts;
        claimed.ownership = boasts || matches!(self.fault, Fault::Shell(_));
        claimed.isolation = boasts;
        claimed.cache_dirs = boasts;
        claimed.services = boasts;
        claimed.inputs = boasts;
        claimed.network = boasts || matches!(self.fault, Fault::Shell(_));
        claimed.private_network = boasts || matches!(self.fault, Fault::Shell(_));
        claimed.limits = boasts || self.fault == Fault::ChecksNoArguments;
        claimed.secrets = boasts || self.fault == Fault::TellsSecrets;
        claimed
    }

    fn args_schema(&self) -> ArgsSchema {
        match self.fault {
            Fault::ChecksNoArguments => ArgsSchema::of::<serde_json::Value>(),
            _ => ArgsSchema::of::<Limits>(),
        }
    }
}

async fn finds(fault: Fault, case: &str, says: &str) {
    let runner = Broken::new(fault);
    let suite = Suite::new(&runner, "host").patience(Duration::from_secs(20));
    match suite.run_case(case).await.unwrap() {
        CaseVerdict::Failed { why } => assert!(why.contains(says), "{fault:?}, {case}: {why}"),
        verdict => panic!("{fault:?}, {case}: {verdict:?}"),
    }
}

#[tokio::test]
async fn wrong_ends_are_found() {
    finds(Fault::CutsExitCodes, "exit-codes", "expected 128, found 0").await;
    finds(Fault::ForgetsSignals, "death-by-signal", "expected 137, found -1").await;
    finds(Fault::RunsOneAtATime, "many-at-once", "busy").await;
}

#[tokio::test]
async fn lost_and_mixed_output_is_found() {
    finds(Fault::Shell("(@) | sed 500d"), "many-lines", "line 500 of stdout").await;
    finds(Fault::Shell("exec 2>&1; @"), "order-within-a-stream", "line 2 of out").await;
    finds(Fault::Shell("(@) | tr -d '\\237'"), "split-characters", "the line").await;
    let whole_lines = "(@) | while IFS= read -r line; do printf '%s\\n' \"$line\"; done";
    finds(Fault::Shell(whole_lines), "no-trailing-newline", "the lines of stdout").await;
    finds(Fault::Shell("(@) | cut -c1-1000000"), "long-line", "the length of the long line").await;
    finds(Fault::Shell("(@) | cat"), "closed-output", "the exit code").await;
}

#[tokio::test]
async fn wrong_inputs_are_found() {
    finds(Fault::ForgetsEmptyVariables, "environment", "[unset]").await;
    finds(Fault::HandsOnItsEnvironment, "environment-of-the-engine", "the engine's variable").await;
    finds(Fault::Shell("A=cut; @"), "large-input", "the lengths of the variables").await;
    finds(Fault::Shell("echo more | (@)"), "standard-input", "more").await;
}

#[tokio::test]
async fn leftover_processes_are_found() {
    finds(Fault::LeavesAProcess, "background-children", "still running").await;
    finds(Fault::LeavesAProcess, "cancel-during", "still running").await;
    finds(Fault::LeavesAProcess, "timeout-with-term-ignored", "still running").await;
}

#[tokio::test]
async fn a_dropped_attempt_that_continues_is_found() {
    let runner = Broken::new(Fault::LeavesAProcess);
    let suite = Suite::new(&runner, "host").patience(Duration::from_secs(5));
    let verdict = suite.run_case("dropped-attempt").await.unwrap();
    assert_eq!(verdict, CaseVerdict::Failed { why: "no end after 5 s".into() });
}

#[tokio::test]
async fn a_runner_that_ignores_cancel_is_found() {
    let runner = Broken::new(Fault::IgnoresCancel);
    let suite = Suite::new(&runner, "host").patience(Duration::from_secs(3));
    for case in ["cancel-before", "timeout-with-term-ignored"] {
        let verdict = suite.run_case(case).await.unwrap();
        assert_eq!(verdict, CaseVerdict::Failed { why: "no end after 3 s".into() }, "{case}");
    }
}

#[tokio::test]
async fn a_runner_that_cancels_wrongly_is_found() {
    finds(Fault::KillsAtOnce, "cancel-during", "what the command printed").await;
    finds(Fault::MistakesTimeouts, "timeout-with-term-ignored", "of kind TimedOut").await;
    finds(Fault::FailsInsteadOfCancelling, "cancel-during", "it died").await;
    finds(Fault::CommitsNothing, "reaping", "did not commit the requested snapshot").await;
}

#[tokio::test]
async fn wrong_sources_and_workspaces_are_found() {
    // A directory in which nothing can be written or removed.
    finds(Fault::Shell("cd /proc; @"), "source", "").await;
    finds(Fault::WritesToTheSource, "source", "ours").await;
    finds(Fault::SharesWorkspaces, "root-steps-are-apart", "the number of files").await;
    finds(Fault::SharesWorkspaces, "siblings", "saw: expected").await;
    finds(Fault::KeepsOldSource, "edited-source", "what a child under newer source saw").await;
    finds(Fault::KeepsOldSource, "edited-source-with-an-old-time", "what a child built").await;
}

#[tokio::test]
async fn lost_lineage_is_found() {
    let after = |then: &str| -> &'static str { format!("(@\n)\ncode=$?; {then}; exit $code").leak() };
    finds(Fault::Shell(after("chmod -R go+rx .")), "lineage-files", "the files of the last child").await;
    let undelete = "cp -a . \"$TMPDIR/before\"; (@\n)\ncode=$?; cp -an \"$TMPDIR/before/.\" .; exit $code";
    finds(Fault::Shell(undelete), "lineage-files", "the files of the last child").await;
    finds(Fault::Shell(undelete), "lineage-directories", "the files of the last child").await;
    // Without root, the runner cannot keep this promise even by accident.
    finds(Fault::Shell(after("chown -R 0:0 .")), "lineage-ownership", "").await;
    finds(Fault::Shell(after("touch d d/f 2>/dev/null")), "lineage-times", "times of modification").await;
}

#[tokio::test]
async fn wrong_snapshots_are_found() {
    finds(Fault::CommitsFailures, "commits-when-asked", "the snapshot of a step that failed").await;
    finds(Fault::CommitsNothing, "commits-when-asked", "did not commit the requested snapshot").await;
    finds(Fault::StartsFromAnything, "unknown-snapshot", "but the command exited 0").await;
    finds(Fault::NeverReaps, "reaping", "but the command exited 0").await;
}

#[tokio::test]
async fn missing_outputs_are_found() {
    let loses_them = "(@\n)\ncode=$?; rm o/p/a.txt; exit $code";
    finds(Fault::Shell(loses_them), "outputs", "the names and sizes of outputs").await;
}

#[tokio::test]
async fn empty_claims_are_found() {
    for (case, says) in [
        ("commits-when-asked", "expected \"hm1\", found \"process\""),
        ("workdir", "the work directory"),
        ("host-files", "files of this machine"),
        ("host-processes", "the engine's process"),
        ("secrets", "the length of the secret's file"),
        ("memory", "OutOfMemory"),
        ("processes", "had 40"),
        ("cache-directories", ""),
        ("services", "the output"),
        ("files-of-other-steps", "what the step sees"),
    ] {
        finds(Fault::Boasts, case, says).await;
    }
    finds(Fault::ChecksNoArguments, "arguments", "was taken").await;
    finds(Fault::Shell("echo eth0; @"), "network-none", "lead out").await;
    finds(Fault::Shell("@"), "network-private", "loopback is shared").await;
}

#[tokio::test]
async fn a_secret_in_an_error_is_found() {
    finds(Fault::TellsSecrets, "secrets", "whether an error has the secret").await;
}
