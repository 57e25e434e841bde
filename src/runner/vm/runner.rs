//! A runner on a backend: one machine for each attempt.

use crate::source;
use std::{
    fs::File,
    future::Future,
    io::{BufWriter, Seek, Write},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{
    BootContext, Command, EndedStep, Injection, MachineBase, Output, Vm, VmBackend,
    services::{self, Served},
};
use crate::{
    awake,
    model::SnapshotRef,
    runner::{
        ArgsSchema, CacheIdentity, ExecutorInput, InputFiles, Limits, Probe, RunnerCapabilities, RunnerError,
        StepContext, StepResult, StepRunner, check_bridged_network, check_listed_network, check_shared_network,
        kept_steps,
    },
    source::{FrozenSource, RunSource},
    store::{SnapshotConfig, SourceId, Store, StoreError, StoreHandle},
};

/// Runs each step in a machine of its own, which a [`VmBackend`] creates.
///
/// Its snapshots are the backend's, named `<runner>:<source>:<snapshot>`. A child with a newer source gets
/// the changes since the source in the name. A backend with [layers](VmBackend::LAYERS) commits a snapshot to
/// the store if it is needed outside of the backend: see [`StepContext::snapshot_travels`].
#[derive(Debug)]
pub struct VmRunner<B> {
    backend: B,
    store: StoreHandle,
    keep_failed: bool,
}

impl<B: VmBackend> VmRunner<B> {
    /// Creates a runner on `backend`, with sources in `store`. Nothing is opened or started before the first
    /// step.
    #[must_use]
    pub fn new(backend: B, store: impl Into<StoreHandle>) -> Self {
        Self { backend, store: store.into(), keep_failed: false }
    }

    /// Sets whether the filesystems of steps that fail, or are interrupted, are kept in the store for a
    /// while, as [`KeepAs::ForInspection`](crate::store::KeepAs::ForInspection). By default they are kept
    /// if [the build requests it](StepContext::keep). Without [layers](VmBackend::LAYERS) there is nothing
    /// to keep.
    #[must_use]
    pub fn keep_failed(mut self, keep_failed: bool) -> Self {
        self.keep_failed = keep_failed;
        self
    }

    /// Returns the backend.
    #[must_use]
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Returns the source that a snapshot's steps saw, and the snapshot's name at the backend.
    fn parse(snapshot: &SnapshotRef) -> Option<(SourceId, &str)> {
        let (source, name) = snapshot.0.strip_prefix(B::NAME)?.strip_prefix(':')?.split_once(':')?;
        Some((SourceId::parse(source)?, name))
    }

    async fn store(&self) -> Result<Arc<Store>, RunnerError> {
        let handle = self.store.clone();
        RunnerError::blocking("open the store", move || Ok(handle.get()?)).await
    }

    /// Starts the step's machine.
    async fn prepare(
        &self,
        ctx: &StepContext,
        input: &ExecutorInput,
        limits: &Limits,
    ) -> Result<(B::Vm, Arc<Store>, Arc<FrozenSource>), RunnerError> {
        let store = self.store().await?;
        let source = ctx.frozen_source(&store).await;
        let source = source.map_err(|error| RunnerError::infrastructure("freeze the source", error))?;
        let attempt = Attempt { ctx, input, limits, store: &store, source: &source };
        let image = input.step.image.as_deref().unwrap_or("host");
        let mut vm = self.machine(attempt, input.parent_snapshot.as_ref(), image).await?;
        if !input.inputs().is_empty() {
            self.backend.bring_inputs(ctx, &store, &mut vm, input).await?;
        }
        Ok((vm, store, source))
    }

    /// Starts a machine from a snapshot, or else from an image, with this run's source in it.
    pub(super) async fn machine(
        &self,
        attempt: Attempt<'_>,
        snapshot: Option<&SnapshotRef>,
        image: &str,
    ) -> Result<B::Vm, RunnerError> {
        let Attempt { ctx, input, limits, store, source } = attempt;
        let (mut vm, saw) = match snapshot {
            Some(snapshot) if let Some((saw, name)) = Self::parse(snapshot) => {
                let vm = booting(attempt, self.backend.restore(name, limits)).await?;
                let vm = vm.ok_or_else(|| unknown(snapshot))?;
                (vm, Some(saw))
            }
            parent if B::LAYERS => {
                let base = match parent {
                    Some(snapshot) => layers(store, snapshot, source).await?,
                    None => MachineBase::Image(image.into()),
                };
                let (run, output) = (input.run_id, attempt.output());
                let context = BootContext { run, store: Arc::clone(store), source: Arc::clone(source), base };
                return self.backend.boot(ctx, &context, limits, &output).await;
            }
            Some(snapshot) => return Err(unknown(snapshot)),
            None => (booting(attempt, self.backend.create(image, limits)).await?, None),
        };
        if saw.as_ref() != Some(&source.id) {
            let workdir = input.workdir.as_ref().into();
            let (packer, packed) = (Arc::clone(store), Arc::clone(source));
            let (removed, archive) =
                RunnerError::blocking("pack the source", move || Ok(pack(&packer, &packed, saw.as_ref())?)).await?;
            vm.inject(Injection { dir: workdir, removed, archive }).await?;
        }
        Ok(vm)
    }
}

/// An attempt of a step, and what its machines have in common.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) ctx: &'a StepContext,
    pub(super) input: &'a ExecutorInput,
    pub(super) limits: &'a Limits,
    pub(super) store: &'a Arc<Store>,
    pub(super) source: &'a Arc<FrozenSource>,
}

impl<'a> Attempt<'a> {
    /// Returns the destination of the step's own output.
    pub(super) fn output(&self) -> Output<'a> {
        Output { bus: &self.ctx.event_bus, step_id: self.input.step_id, service: None }
    }

    pub(super) fn command(&self) -> Command<'a> {
        Command { script: &self.input.step.cmd, env: &self.input.env, workdir: &self.input.workdir }
    }
}

/// Reads a snapshot of the store, with the layer that adapts it to `source`.
async fn layers(
    store: &Arc<Store>,
    name: &SnapshotRef,
    source: &Arc<FrozenSource>,
) -> Result<MachineBase, RunnerError> {
    let (store, name, source) = (Arc::clone(store), name.clone(), Arc::clone(source));
    RunnerError::blocking("read the parent's snapshot", move || {
        let snapshot = store.snapshots().get(&name)?;
        let delta = if snapshot.source == source.id { None } else { source::delta(&store, &snapshot, &source)? };
        Ok(MachineBase::Snapshot { name, snapshot, delta })
    })
    .await
}

/// Waits for a machine, and reports that.
async fn booting<T>(attempt: Attempt<'_>, machine: impl Future<Output = T>) -> T {
    attempt.output().booting(machine).await
}

fn unknown(snapshot: &SnapshotRef) -> RunnerError {
    RunnerError::unsupported(format!("no snapshot `{snapshot}`"))
}

impl<B: VmBackend> StepRunner for VmRunner<B> {
    const NAME: &'static str = B::NAME;
    const CACHE_VERSION: u32 = B::CACHE_VERSION;

    async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        let limits = Limits::of_args(input.step.runner_args.as_ref())?;
        let (mut vm, store, source) = tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => return Err(ctx.interrupted()),
            // Boxed, because it is large, and other runners' futures do not need the space.
            prepared = Box::pin(self.prepare(ctx, &input, &limits)) => prepared?,
        };
        let attempt = Attempt { ctx, input: &input, limits: &limits, store: &store, source: &source };
        // The machine that holds the network is kept until the step's machine is saved or destroyed.
        let Served { ended, has_run, hint, holder: _holder } = match limits.services.is_empty() {
            true => {
                let ended = run(&vm, &attempt.command(), &attempt.output(), (&ctx.cancel, ctx.grace)).await;
                Served::alone(ended.unwrap_or_else(|| Err(ctx.interrupted())))
            }
            // Boxed, because most steps have none.
            false => Box::pin(services::run(self, attempt, &mut vm)).await,
        };
        if let Some(outputs) = ctx.outputs.as_ref().filter(|_| has_run && kept_steps::has_files(&ended)) {
            let step = EndedStep { store: &store, outputs, workdir: &input.workdir };
            let copying = self.backend.copy_outputs(&mut vm, step);
            Box::pin(kept_steps::copied(&ctx.cancel, outputs, copying)).await;
        }
        let config =
            || SnapshotConfig { host_dirs: self.backend.host_dirs().to_vec(), ..input.snapshot_config(&ctx.event_bus) };
        let committed_snapshot = match &ended {
            Ok(0) if input.cache_lookup.commits() => {
                if B::LAYERS && (ctx.snapshot_travels || vm.wants_commit()) {
                    let snapshot = Box::pin(vm.commit(&store)).await?;
                    store.snapshots().describe(&snapshot, Arc::new(config()));
                    if ctx.keep {
                        kept_steps::keep_passed(snapshot.clone(), &store, &input).await;
                    }
                    Some(snapshot)
                } else {
                    Some(format!("{}:{}:{}", B::NAME, source.id.as_str(), vm.snapshot().await?).into())
                }
            }
            ended => {
                if B::LAYERS && has_run && (self.keep_failed || ctx.keep) && kept_steps::is_worth_keeping(ended) {
                    let committed = Box::pin(vm.commit(&store)).await;
                    kept_steps::keep_failed(committed, &store, &input, config()).await;
                } else {
                    vm.destroy().await;
                }
                None
            }
        };
        Ok(StepResult::exited(ended?).with_snapshot(committed_snapshot).with_hint(hint))
    }

    async fn reap_snapshots(&self, snapshots: Vec<SnapshotRef>) {
        for (_, name) in snapshots.iter().filter_map(Self::parse) {
            if let Err(error) = self.backend.remove(name).await {
                tracing::warn!(error = error.to_line(), runner = B::NAME, "failed to remove a snapshot");
            }
        }
        let Some(store) = self.store.get_opened().filter(|_| B::LAYERS) else { return };
        if let Err(error) =
            RunnerError::blocking("remove snapshots", move || Ok(store.snapshots().remove(&snapshots)?)).await
        {
            tracing::warn!(error = error.to_line(), runner = B::NAME, "failed to remove snapshots");
        }
    }

    async fn copy_outputs(&self, ctx: &StepContext, snapshot: SnapshotRef) {
        match (self.store().await, &ctx.outputs) {
            (Ok(store), _) => self.backend.copy_snapshot_outputs(ctx, &store, snapshot).await,
            (Err(error), Some(outputs)) => outputs.failed(error.to_line()),
            (Err(_), None) => {}
        }
    }

    async fn cache_identity(&self, image: Option<&str>) -> Result<Option<CacheIdentity>, RunnerError> {
        if !B::LAYERS {
            return Ok(None);
        }
        self.backend.cache_identity(self.store().await?, image).await
    }

    async fn input_digest(&self, source: &RunSource, input: &InputFiles) -> Result<[u8; 32], RunnerError> {
        self.backend.input_digest(&self.store().await?, source, input).await
    }

    async fn probe(&self) -> Probe {
        self.backend.probe().await
    }

    async fn probe_network(&self) -> Probe {
        self.backend.probe_network().await
    }

    fn capabilities(&self) -> RunnerCapabilities {
        // This runner does not support secrets, whatever the backend claims.
        let (layers, secrets) = (B::LAYERS, false);
        let grace = true;
        RunnerCapabilities { grace, workspace: true, snapshots: true, layers, secrets, ..self.backend.capabilities() }
    }

    fn args_schema(&self) -> ArgsSchema {
        let claimed = self.backend.capabilities();
        if claimed.limits || claimed.network {
            let check = match (claimed.private_network, B::EGRESS) {
                (true, true) => check_listed_network,
                (true, false) => check_bridged_network,
                (false, _) => check_shared_network,
            };
            ArgsSchema::of::<Limits>().with_check(check)
        } else {
            ArgsSchema::none()
        }
    }
}

/// Runs the command, and asks it to end when `cancel` fires. Returns `None` then. A command that does not end
/// within the grace is left for the caller to destroy.
pub(super) async fn run(
    vm: &impl Vm,
    command: &Command<'_>,
    output: &Output<'_>,
    (cancel, grace): (&CancellationToken, Duration),
) -> Option<Result<i32, RunnerError>> {
    let mut exec = pin!(vm.exec(command, output));
    tokio::select! {
        biased;
        ended = &mut exec => return Some(ended),
        () = cancel.cancelled() => {}
    }
    let asked = async {
        vm.terminate().await;
        std::future::pending::<()>().await
    };
    let ended = async {
        tokio::select! {
            _ = &mut exec => {}
            () = asked => {}
        }
    };
    if awake::timeout(grace, pin!(ended)).await.is_none() {
        tracing::debug!("a command did not stop within its grace period");
    }
    None
}

/// Packs the source, or its changes since another source, into an anonymous file.
fn pack(
    store: &Store,
    source: &FrozenSource,
    since: Option<&SourceId>,
) -> Result<(Vec<std::path::PathBuf>, File), StoreError> {
    let failed = |error| StoreError::io("write", std::env::temp_dir(), error);
    let mut file = tempfile::tempfile().map_err(failed)?;
    let mut out = BufWriter::new(&file);
    let removed = source::source_tar(store, source, since, &mut out)?;
    out.flush().map_err(failed)?;
    drop(out);
    file.rewind().map_err(failed)?;
    Ok((removed, file))
}
