//! The environment of a case: a source tree, runs of steps on the runner, and their results.

use std::{
    collections::HashMap,
    fs, io, mem,
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::DateTime;
use futures_util::{StreamExt, stream};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    event::{self, BuildEvent, EventStream, EventWriter, PlanSummary, RunDir, RunMeta, StateEvent, StepMeta, step_id},
    ir::{CommandStep, Env},
    model::{ArchiveId, BuildRef, Secrets, SnapshotRef, StdStream, StepIndex, StepStatus},
    runner::{CacheDecision, DynStepRunner, ExecutorInput, RunnerError, RunnerErrorKind, StepContext, StepResult},
    store::Archives,
};

/// An upper bound on the number of steps in one run of any case.
const STEPS: u32 = 300;

/// Why a case did not pass.
#[derive(Debug)]
pub(super) enum Broken {
    /// The runner broke its promise.
    Promise(String),
    /// The image lacks a program that the check needs.
    Image(String),
}

impl Broken {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self::Promise(why.into())
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::new(format!("the suite could not look: {error}"))
    }
}

/// Fails with both values, truncated if they are long.
#[expect(clippy::needless_pass_by_value, reason = "cases read better without ampersands")]
pub(super) fn expect<T: std::fmt::Debug + PartialEq<U>, U: std::fmt::Debug>(
    what: &str,
    found: T,
    expected: U,
) -> Result<(), Broken> {
    if found == expected {
        return Ok(());
    }
    Err(Broken::new(format!("{what}: expected {}, found {}", clipped(&expected), clipped(&found))))
}

fn clipped(value: &impl std::fmt::Debug) -> String {
    const MOST: usize = 600;
    let mut text = format!("{value:?}");
    if text.len() > MOST {
        let end = (0..=MOST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// The environment of one case.
#[derive(Debug)]
pub(super) struct Lab<'r> {
    pub(super) runner: &'r dyn DynStepRunner,
    pub(super) peer: Option<&'r dyn DynStepRunner>,
    /// Whether cases with many steps run only a few of them.
    pub(super) sampled: bool,
    image: Arc<str>,
    dir: TempDir,
    /// The contexts of all runs so far.
    contexts: Mutex<Vec<StepContext>>,
}

/// One run. Its source is frozen once.
#[derive(Debug)]
pub(super) struct Run {
    id: Uuid,
    pub(super) ctx: StepContext,
    image: Arc<str>,
    writer: EventWriter,
    events: EventStream,
    next: u32,
}

/// A step to run.
#[derive(Debug, Clone)]
pub(super) struct Step {
    cmd: String,
    parent: Option<SnapshotRef>,
    env: Env,
    args: Option<Value>,
    commit: bool,
}

/// The result of a step.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) result: Result<StepResult, RunnerError>,
    pub(super) events: Vec<BuildEvent>,
}

impl Step {
    pub(super) fn new(cmd: impl Into<String>) -> Self {
        Self { cmd: cmd.into(), parent: None, env: Env::new(), args: None, commit: false }
    }

    pub(super) fn cmd(mut self, cmd: impl Into<String>) -> Self {
        self.cmd = cmd.into();
        self
    }

    /// Boots from a snapshot.
    pub(super) fn after(mut self, parent: &SnapshotRef) -> Self {
        self.parent = Some(parent.clone());
        self
    }

    /// Requests a snapshot.
    pub(super) fn commit(mut self) -> Self {
        self.commit = true;
        self
    }

    pub(super) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    pub(super) fn args(mut self, args: Value) -> Self {
        self.args = Some(args);
        self
    }
}

impl<'r> Lab<'r> {
    pub(super) fn new(
        runner: &'r dyn DynStepRunner,
        peer: Option<&'r dyn DynStepRunner>,
        image: Arc<str>,
        sampled: bool,
    ) -> io::Result<Self> {
        let lab = Self { runner, peer, sampled, image, dir: tempfile::tempdir()?, contexts: Mutex::default() };
        fs::create_dir(lab.source())?;
        Ok(lab)
    }

    /// Ends all runs.
    pub(super) async fn end(&self) {
        let contexts = mem::take(&mut *self.contexts.lock().unwrap_or_else(PoisonError::into_inner));
        for context in contexts {
            context.end_build().await;
        }
    }

    /// Returns the user's source tree.
    pub(super) fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    /// Returns a path on this machine that no step may see.
    pub(super) fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    pub(super) fn run(&self) -> Result<Run, Broken> {
        self.run_with(Secrets::new())
    }

    pub(super) fn run_with(&self, secrets: Secrets) -> Result<Run, Broken> {
        let id = Uuid::new_v4();
        let meta = |index: u32| StepMeta {
            key: format!("step-{index}").into(),
            display_name: "step".into(),
            chain_idx: 0,
            parent: None,
            image: None,
            runner: 0,
        };
        let meta = RunMeta {
            build: BuildRef { run_id: id, number: None, org: None, pipeline: "conformance".into() },
            plan: PlanSummary {
                step_count: STEPS as usize,
                chain_count: 1,
                default_runner: self.runner.name().to_owned(),
            },
            started_at: DateTime::UNIX_EPOCH,
            steps: (0..STEPS).map(meta).collect(),
            runners: vec![self.runner.name().into()],
        };
        let (writer, bus, events) = event::create(RunDir::Temporary, meta, &secrets)?;
        let archives = Arc::new(Archives::new(ArchiveId(id), self.source()));
        let mut ctx = StepContext::new(bus, archives, Arc::new(secrets), CancellationToken::new());
        ctx.grace = Duration::from_millis(300);
        self.contexts.lock().unwrap_or_else(PoisonError::into_inner).push(ctx.clone());
        Ok(Run { id, ctx, image: Arc::clone(&self.image), writer, events, next: 0 })
    }

    /// Runs one step in a run of its own.
    pub(super) async fn step(&self, step: Step) -> Result<Done, Broken> {
        self.run()?.step(self.runner, step).await
    }

    /// Runs a step that must pass, in a run of its own. Returns its standard output.
    pub(super) async fn sh(&self, step: Step) -> Result<Vec<String>, Broken> {
        let done = self.step(step).await?;
        done.passed()?;
        Ok(done.lines(StdStream::Stdout))
    }

    /// Runs a step that must pass, in a run of its own. Returns its snapshot.
    pub(super) async fn snapshot(&self, step: Step) -> Result<SnapshotRef, Broken> {
        self.step(step.commit()).await?.snapshot()
    }
}

impl Run {
    fn input(&mut self, step: Step) -> ExecutorInput {
        let step_id = step_id(self.id, StepIndex(self.next));
        self.next += 1;
        let cache_lookup = match step.commit {
            true => CacheDecision::MissBuildAs { tag: format!("conformance:{step_id}").as_str().into() },
            false => CacheDecision::MissNoCommit,
        };
        let image = step.parent.is_none().then(|| Arc::clone(&self.image));
        let command = CommandStep {
            key: "step".into(),
            label: None,
            cmd: step.cmd.into(),
            image,
            env: None,
            timeout_seconds: None,
            cache: None,
            runner: None,
            runner_args: step.args,
        };
        ExecutorInput {
            step: Arc::new(command),
            workspace_archive_id: self.ctx.archives.id(),
            env: Arc::new(step.env),
            workdir: "/workspace".into(),
            run_id: self.id,
            step_id,
            cache_lookup,
            parent_snapshot: step.parent,
        }
    }

    /// Runs one step.
    pub(super) async fn step(&mut self, runner: &dyn DynStepRunner, step: Step) -> Result<Done, Broken> {
        let done = self.steps(runner, vec![step], 1).await?.pop();
        done.ok_or_else(|| Broken::new("a step without an end"))
    }

    /// Runs steps, at most `at_once` concurrently.
    pub(super) async fn steps(
        &mut self,
        runner: &dyn DynStepRunner,
        steps: Vec<Step>,
        at_once: usize,
    ) -> Result<Vec<Done>, Broken> {
        let inputs: Vec<_> = steps.into_iter().map(|step| self.input(step)).collect();
        let ids: Vec<_> = inputs.iter().map(|input| input.step_id).collect();
        let ctx = &self.ctx;
        let attempts = stream::iter(inputs.into_iter().map(|input| runner.execute(ctx, input)));
        let results: Vec<_> = attempts.buffered(at_once).collect().await;
        self.finish(&ids, results).await
    }

    /// Runs a step, and calls `act` when it prints the line `ready`.
    pub(super) async fn step_until_ready(
        &mut self,
        runner: &dyn DynStepRunner,
        step: Step,
        act: impl FnOnce(&StepContext),
    ) -> Result<Done, Broken> {
        let input = self.input(step);
        let id = input.step_id;
        let ctx = self.ctx.clone();
        let mut attempt = pin!(runner.execute(&ctx, input));
        let result = tokio::select! {
            result = &mut attempt => result,
            ready = self.ready() => {
                ready?;
                act(&ctx);
                attempt.await
            }
        };
        let mut done = self.finish(&[id], vec![result]).await?;
        done.pop().ok_or_else(|| Broken::new("a step without an end"))
    }

    /// Runs a step, and drops the attempt when it prints the line `ready`.
    pub(super) async fn drop_when_ready(&mut self, runner: &dyn DynStepRunner, step: Step) -> Result<(), Broken> {
        let input = self.input(step);
        let ctx = self.ctx.clone();
        tokio::select! {
            result = runner.execute(&ctx, input) => Err(Broken::new(format!("the step ended by itself: {result:?}"))),
            ready = self.ready() => ready,
        }
    }

    /// Completes when a step prints the line `ready`.
    async fn ready(&mut self) -> Result<(), Broken> {
        // Uses a separate reader, because the other one must still return the events from the start.
        let mut events = self.writer.subscribe();
        loop {
            tokio::select! {
                () = self.writer.dirty() => self.writer.flush()?,
                event = events.next() => match event {
                    Some(BuildEvent::StepLog { line, .. }) if line == "ready" => return Ok(()),
                    Some(_) => {}
                    None => return Err(Broken::new("the events ended")),
                },
            }
        }
    }

    /// Ends steps, and returns their events.
    async fn finish(
        &mut self,
        ids: &[Uuid],
        results: Vec<Result<StepResult, RunnerError>>,
    ) -> Result<Vec<Done>, Broken> {
        for (id, result) in ids.iter().zip(&results) {
            let step = event::step_index(self.id, *id).ok_or_else(|| Broken::new("a step of no run"))?;
            let (status, exit_code, snapshot, message) = match result {
                Ok(result) => (StepStatus::Passed, result.exit_code, result.committed_snapshot.clone(), None),
                Err(error) => (StepStatus::Infrastructure, 3, None, Some(error.to_line().into())),
            };
            let ended = StateEvent::StepEnd {
                step,
                attempt: 1,
                status,
                exit_code,
                duration_ms: 0,
                snapshot,
                message,
                artifacts: vec![],
            };
            self.writer.emit(0, ended);
        }
        self.writer.flush()?;
        let mut of: HashMap<Uuid, Vec<BuildEvent>> = HashMap::new();
        let mut open = ids.len();
        while open > 0 {
            let event = self.events.next().await.ok_or_else(|| Broken::new("the events ended"))?;
            let step_id = match &event {
                BuildEvent::StepLog { step_id, .. } => *step_id,
                BuildEvent::StepEnd { step_id, .. } => {
                    open -= 1;
                    *step_id
                }
                _ => continue,
            };
            of.entry(step_id).or_default().push(event);
        }
        let done = ids.iter().zip(results);
        Ok(done.map(|(id, result)| Done { result, events: of.remove(id).unwrap_or_default() }).collect())
    }
}

impl Done {
    /// Returns the lines of a stream, joined if events have them in parts.
    pub(super) fn lines(&self, from: StdStream) -> Vec<String> {
        let (mut lines, mut open) = (Vec::<String>::new(), false);
        for event in &self.events {
            let BuildEvent::StepLog { stream, line, partial, .. } = event else { continue };
            if *stream != from {
                continue;
            }
            match lines.last_mut() {
                Some(last) if open => last.push_str(line),
                _ => lines.push(line.clone()),
            }
            open = *partial;
        }
        lines
    }

    /// Returns the exit code of a command that ended by itself.
    pub(super) fn exit_code(&self) -> Result<i32, Broken> {
        match &self.result {
            Ok(result) => Ok(result.exit_code),
            Err(error) => Err(Broken::new(format!("the step failed: {}", error.to_line()))),
        }
    }

    /// Checks that the command exited with 0.
    pub(super) fn passed(&self) -> Result<(), Broken> {
        match self.exit_code()? {
            0 => Ok(()),
            code => {
                let said = clipped(&(self.lines(StdStream::Stdout), self.lines(StdStream::Stderr)));
                Err(Broken::new(format!("the command exited {code}; it printed {said}")))
            }
        }
    }

    /// Returns the snapshot of a step that passed.
    pub(super) fn snapshot(&self) -> Result<SnapshotRef, Broken> {
        self.passed()?;
        let snapshot = self.result.as_ref().ok().and_then(|result| result.committed_snapshot.clone());
        snapshot.ok_or_else(|| Broken::new("a step that passed committed no snapshot, which was asked for"))
    }

    /// Checks that the step ended with an error of this kind.
    pub(super) fn failed_as(&self, kind: RunnerErrorKind) -> Result<&RunnerError, Broken> {
        match &self.result {
            Err(error) if error.kind() == kind => Ok(error),
            Err(error) => {
                let (found, line) = (error.kind(), error.to_line());
                Err(Broken::new(format!("expected an error of kind {kind:?}, found {found:?}: {line}")))
            }
            Ok(result) => {
                let code = result.exit_code;
                Err(Broken::new(format!("expected an error of kind {kind:?}, but the command exited {code}")))
            }
        }
    }
}
