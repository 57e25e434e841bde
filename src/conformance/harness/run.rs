//! Runs of steps on a runner, with a journal as an engine has it.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use chrono::DateTime;
use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Broken, Done, Harness, Step};
use crate::{
    event::{self, BuildEvent, EventStream, EventWriter, PlanSummary, RunDir, RunMeta, StateEvent, StepMeta, step_id},
    ir::CommandStep,
    model::{ArchiveId, BuildRef, Secrets, StepIndex, StepStatus},
    runner::{
        CacheDecision, CacheOwner, DynStepRunner, ExecutorInput, InputFiles, OtherSteps, RunnerError, StepContext,
        StepResult,
    },
    source::RunSource,
};

/// An upper bound on the number of steps in one run of any case.
const STEPS: u32 = 300;

/// One run. Its source is frozen once.
#[derive(Debug)]
pub(in crate::conformance) struct Run {
    id: Uuid,
    pub(in crate::conformance) ctx: StepContext,
    image: Arc<str>,
    writer: EventWriter,
    events: EventStream,
    next: u32,
}

impl Run {
    pub(super) fn new(harness: &Harness<'_>, secrets: Secrets) -> Result<Self, Broken> {
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
                default_runner: harness.runner.name().to_owned(),
            },
            started_at: DateTime::UNIX_EPOCH,
            steps: (0..STEPS).map(meta).collect(),
            runners: vec![harness.runner.name().into()],
            server: None,
            details: Default::default(),
        };
        let (writer, bus, events) = event::create(RunDir::Temporary, meta, &secrets)?;
        let archives = Arc::new(RunSource::new(ArchiveId(id), harness.source()));
        let mut ctx = StepContext::new(bus, archives, Arc::new(secrets), CancellationToken::new());
        ctx.grace = Duration::from_millis(300);
        let owner = CacheOwner::new(harness.source().to_string_lossy(), "conformance");
        ctx.cache_owner = Some(Arc::new(owner));
        harness.contexts.lock().push(ctx.clone());
        Ok(Self { id, ctx, image: Arc::clone(&harness.image), writer, events, next: 0 })
    }

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
            other_steps: OtherSteps::of(BTreeMap::new(), step.inputs),
        }
    }

    /// Runs one step.
    pub(in crate::conformance) async fn step(
        &mut self,
        runner: &dyn DynStepRunner,
        step: Step,
    ) -> Result<Done, Broken> {
        let done = self.steps(runner, vec![step], 1).await?.pop();
        done.ok_or_else(|| Broken::new("a step without an end"))
    }

    /// Returns the digests of files of other steps.
    pub(in crate::conformance) async fn digests<const N: usize>(
        &self,
        runner: &dyn DynStepRunner,
        files: [InputFiles; N],
    ) -> Result<Vec<[u8; 32]>, Broken> {
        let mut digests = Vec::new();
        for files in &files {
            let digest = runner.input_digest(&self.ctx.archives, files).await;
            digests.push(digest.map_err(|error| Broken::new(format!("no digest: {}", error.to_line())))?);
        }
        Ok(digests)
    }

    /// Runs steps, at most `at_once` concurrently.
    pub(in crate::conformance) async fn steps(
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
    pub(in crate::conformance) async fn step_until_ready(
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

    /// Runs a step, and drops the attempt when it prints the line `ready`, or when `is_seen` completes: the
    /// output of a runner may be known only when the step has ended.
    pub(in crate::conformance) async fn drop_when_ready(
        &mut self,
        runner: &dyn DynStepRunner,
        step: Step,
        is_seen: impl Future<Output = ()>,
    ) -> Result<(), Broken> {
        let input = self.input(step);
        let ctx = self.ctx.clone();
        tokio::select! {
            result = runner.execute(&ctx, input) => Err(Broken::new(format!("the step ended by itself: {result:?}"))),
            ready = self.ready() => ready,
            () = is_seen => Ok(()),
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
                details: Default::default(),
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
