//! Runs single steps on a sandbox over a store of its own.
//!
//! With `HM_TEST_SHADOW=1`, all of them run in shadow mode, and a difference or a failure of it fails the
//! test. With `HM_TEST_SHADOW=2`, a step that passed also runs a second time, in a run of its own, so that
//! its look-up has something to find.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use hm_exec::{
    BuildEvent, BuildStatus, EventStream, ExecutorInput, SnapshotRef, StepResult,
    event::{self, EventBus, EventWriter, RunDir, StateEvent, StdStream, step_id},
    ir::{CommandStep, Env},
    plan::StepIndex,
    runner::{
        ArchiveId, CacheDecision, RunnerError, Secrets, ShadowMode, StepContext, StepRunner,
        sandbox::{SandboxBuilder, SandboxRunner},
    },
    source::RunSource,
    store::Store,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{programs::hm, run_meta::run_meta};

/// A sandbox over a store and a source tree of its own.
#[derive(Debug)]
pub(crate) struct Bench {
    dir: tempfile::TempDir,
    pub(crate) runner: SandboxRunner,
    pub(crate) store: Arc<Store>,
}

/// One run: source frozen once, events recorded.
#[derive(Debug)]
pub(crate) struct Run {
    run_id: Uuid,
    pub(crate) ctx: StepContext,
    writer: EventWriter,
    events: EventStream,
    next: u32,
}

/// The request for one step.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) cmd: String,
    pub(crate) image: String,
    pub(crate) parent: Option<SnapshotRef>,
    pub(crate) env: Env,
    pub(crate) args: Option<Value>,
    pub(crate) commit: bool,
}

impl Ask {
    /// Returns a request for `cmd` on the host image.
    pub(crate) fn new(cmd: impl Into<String>) -> Self {
        Self { cmd: cmd.into(), image: "host".into(), parent: None, env: Env::new(), args: None, commit: true }
    }

    pub(crate) fn after(mut self, parent: &StepResult) -> Self {
        self.parent.clone_from(&parent.committed_snapshot);
        assert!(self.parent.is_some(), "the parent committed nothing");
        self
    }

    pub(crate) fn image(mut self, image: impl Into<String>) -> Self {
        self.image = image.into();
        self
    }

    pub(crate) fn args(mut self, args: Value) -> Self {
        self.args = Some(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }
}

impl Bench {
    /// Returns the number of layers in the store that are not the lowest one of an image, which is the only
    /// one with the mark of containers.
    pub(crate) fn layers_above_images(&self) -> usize {
        let layers = std::fs::read_dir(self.store.dir().join("layers")).unwrap();
        layers.filter(|layer| !layer.as_ref().unwrap().path().join("root/run/.containerenv").exists()).count()
    }

    pub(crate) fn new() -> Self {
        Self::with(|builder| builder)
    }

    pub(crate) fn with(configure: impl FnOnce(SandboxBuilder) -> SandboxBuilder) -> Self {
        // Not /tmp itself if it is a tmpfs: an upper directory needs user attributes, which old tmpfs
        // versions lack.
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        std::fs::create_dir(dir.path().join("source")).unwrap();
        let builder = SandboxRunner::builder().store(Arc::clone(&store)).helper(hm());
        Self { runner: configure(builder).build(), store, dir }
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn run(&self) -> Run {
        self.run_with(Secrets::new())
    }

    pub(crate) fn run_with(&self, secrets: Secrets) -> Run {
        let run_id = Uuid::new_v4();
        let meta = run_meta(run_id, 64);
        let (writer, bus, events) = event::create(RunDir::Temporary, meta, &secrets).unwrap();
        let bus: EventBus = bus.for_attempt(1);
        let archives = Arc::new(RunSource::new(ArchiveId(Uuid::new_v4()), self.source()));
        let mut ctx = StepContext::new(bus, archives, Arc::new(secrets), CancellationToken::new());
        ctx.grace = std::time::Duration::from_millis(300);
        if runs_in_shadow_mode() > 0 {
            ctx.traces = Some(self.dir.path().join("traces").join(run_id.to_string()).into());
            ctx.shadow = Some(Arc::new(ShadowMode::new("suite")));
        }
        Run { run_id, ctx, writer, events, next: 0 }
    }

    /// Runs a step of `run`.
    pub(crate) async fn step(&self, run: &mut Run, ask: Ask) -> Result<StepResult, RunnerError> {
        let again = (runs_in_shadow_mode() > 1).then(|| ask.clone());
        let input = run.input(ask);
        let result = self.runner.execute(&run.ctx, input).await;
        if runs_in_shadow_mode() > 0 && result.is_ok() {
            run.assert_no_difference();
        }
        if let (Some(again), Ok(StepResult { exit_code: 0, .. })) = (again, &result) {
            let mut second = self.run_with(Secrets::clone(&run.ctx.secrets));
            second.ctx.archives = Arc::clone(&run.ctx.archives);
            let input = second.input(again);
            self.runner.execute(&second.ctx, input).await.unwrap();
            second.assert_no_difference();
        }
        result
    }

    /// Runs one command in a separate run. Returns its exit code and its output.
    pub(crate) async fn sh(&self, cmd: &str) -> (i32, String) {
        let mut run = self.run();
        let result = self.step(&mut run, Ask::new(cmd)).await.unwrap();
        (result.exit_code, run.output().await)
    }
}

/// Returns how often each step runs in shadow mode: 0 if the suite does not run in that mode.
fn runs_in_shadow_mode() -> u8 {
    match std::env::var("HM_TEST_SHADOW").as_deref() {
        Err(_) | Ok("") => 0,
        Ok("1") => 1,
        Ok("2") => 2,
        Ok(other) => panic!("HM_TEST_SHADOW={other}: expected 1 or 2"),
    }
}

impl Run {
    /// Asserts that shadow mode, if the run is in it, has compared everything and found no difference.
    #[track_caller]
    fn assert_no_difference(&self) {
        let Some(mode) = &self.ctx.shadow else { return };
        assert_eq!((mode.differences(), mode.failures()), (0, 0), "{:?}", mode.verdicts());
    }

    pub(crate) fn id(&self) -> Uuid {
        self.run_id
    }

    pub(crate) fn input(&mut self, ask: Ask) -> ExecutorInput {
        let step_id = step_id(self.run_id, StepIndex(self.next));
        self.next += 1;
        let step = CommandStep {
            key: "s".into(),
            label: None,
            cmd: ask.cmd.into(),
            image: Some(ask.image.into()),
            env: None,
            timeout_seconds: None,
            cache: None,
            runner: None,
            runner_args: ask.args,
        };
        let mut input = ExecutorInput::new(Arc::new(step), self.ctx.archives.id(), self.run_id, step_id);
        input.env = Arc::new(ask.env);
        input.parent_snapshot = ask.parent;
        if ask.commit {
            input.cache_lookup = CacheDecision::MissBuildAs { tag: SnapshotRef::from("hm1:t") };
        }
        input
    }

    /// Waits until a step prints a line with `text`, and returns it.
    pub(crate) async fn says(&mut self, text: &str) -> String {
        let mut events = self.writer.subscribe();
        loop {
            tokio::select! {
                () = self.writer.dirty() => self.writer.flush().unwrap(),
                event = events.next() => match event {
                    Some(BuildEvent::StepLog { line, .. }) if line.contains(text) => return line.to_string(),
                    Some(_) => {}
                    None => panic!("the events ended without {text:?}"),
                },
            }
        }
    }

    /// Ends the run. Returns all lines that its steps printed, those of standard error last.
    pub(crate) async fn output(mut self) -> String {
        self.writer.emit(0, StateEvent::BuildEnd { status: BuildStatus::Passed, duration_ms: 0 });
        self.writer.flush().unwrap();
        let (mut stdout, mut stderr) = (String::new(), String::new());
        while let Some(event) = self.events.next().await {
            match event {
                BuildEvent::StepLog { stream: StdStream::Stdout, line, .. } => stdout.extend([line.as_str(), "\n"]),
                BuildEvent::StepLog { line, .. } => stderr.extend(["err: ", line.as_str(), "\n"]),
                _ => {}
            }
        }
        stdout + &stderr
    }
}
