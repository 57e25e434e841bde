//! One attempt: preparing a workspace, running a shell in it, and keeping the workspace.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{FutureExt, future::BoxFuture};

use crate::{
    model::SnapshotRef,
    outputs::{self, Received, StepOutputs},
    runner::{
        ExecutorInput, ImageSupport, Probe, RunnerCapabilities, RunnerError, RunnerErrorKind, StepContext, StepResult,
        StepRunner,
        command::{Helper, StepCommand},
        kept_steps,
    },
    source::{self, FrozenSource},
    store::{LayerId, Staging, Store, StoreError, StoreHandle},
    tree,
};

/// Runs steps as plain processes in private copies of the workspace. Provides no isolation: see the
/// [module](crate::runner::process).
///
/// Its snapshots (`process:<id>`) are workspaces, copied for each child.
#[derive(Debug, Clone)]
pub struct ProcessRunner {
    store: StoreHandle,
    helper: Arc<Helper>,
}

impl ProcessRunner {
    /// Creates a runner over a store, which is opened when the first step needs it.
    #[must_use]
    pub fn new(store: StoreHandle) -> Self {
        Self { store, helper: Arc::default() }
    }

    /// Starts this `hm` as the helper, instead of the one found by default.
    #[must_use]
    pub fn helper(self, program: impl Into<PathBuf>) -> Self {
        Self { helper: Arc::new(Helper::new(program.into())), ..self }
    }

    /// Creates the workspace that a step starts with.
    async fn prepare(&self, ctx: &StepContext, input: &ExecutorInput) -> Result<Prepared, RunnerError> {
        let parent = match &input.parent_snapshot {
            Some(snapshot) => {
                let id = workspace_id(snapshot).ok_or_else(|| {
                    RunnerError::unsupported(format!("the process runner cannot start from snapshot `{snapshot}`"))
                })?;
                Some((snapshot.clone(), id))
            }
            None => None,
        };
        let handle = self.store.clone();
        let store = RunnerError::blocking("open the store", move || Ok(handle.get()?)).await?;
        let freeze = ctx.frozen_source(&store).await;
        let source = freeze.map_err(|error| RunnerError::infrastructure("freeze the source", error))?;
        RunnerError::blocking("make the workspace", move || {
            let staging = store.stage()?;
            let workspace = staging.upper().join("workspace");
            match parent {
                None => source.copy_to(&workspace)?,
                Some((snapshot, id)) => source::workspace::copy(&store, &id, &workspace, &source)?
                    .ok_or_else(|| StoreError::UnknownSnapshot { snapshot, store: store.dir().into() })?,
            }
            Ok(Prepared { workspace, store, source, staging })
        })
        .await
    }
}

/// The futures of a step, boxed: see `docs/design/runners.md`, section Compile time.
impl ProcessRunner {
    fn boxed_execute<'a>(
        &'a self,
        ctx: &'a StepContext,
        input: ExecutorInput,
    ) -> BoxFuture<'a, Result<StepResult, RunnerError>> {
        async move {
            if let Some(image) = input.step.image.as_deref().filter(|image| *image != "host") {
                return Err(RunnerError::unsupported(format!(
                    "the process runner supports only image `host`, but the step uses `{image}`: pass `--image {image}=host`"
                )));
            }
            let prepared = tokio::select! {
                prepared = self.prepare(ctx, &input) => prepared?,
                () = ctx.cancel.cancelled() => return Err(ctx.interrupted()),
            };
            let command = StepCommand::shell(&*input.step.cmd)
                .envs(&*input.env)
                .current_dir(&prepared.workspace)
                .scratch_dir(prepared.staging.work())
                .with_helper(Arc::clone(&self.helper));
            let ended = command.run_measured(ctx, input.step_id).await;
            if let Some(outputs) = ctx.outputs.as_ref().filter(|_| has_files(&ended)) {
                let copying = copy_outputs(outputs, prepared.workspace.clone());
                Box::pin(kept_steps::copied(&ctx.cancel, outputs, copying)).await;
            }
            let ended = ended?;
            let committed_snapshot = if ended.exit_code == 0 && input.cache_lookup.commits() {
                let Prepared { store, source, staging, .. } = prepared;
                let kept = source::workspace::keep(&store, staging, &source.id);
                let id = kept.map_err(|error| RunnerError::infrastructure("keep the workspace", error))?;
                Some(SnapshotRef::from(format!("{}:{id}", Self::NAME)))
            } else {
                None
            };
            Ok(ended.with_snapshot(committed_snapshot))
        }
        .boxed()
    }
}

impl StepRunner for ProcessRunner {
    const NAME: &'static str = "process";

    async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        self.boxed_execute(ctx, input).await
    }

    async fn reap_snapshots(&self, snapshots: Vec<SnapshotRef>) {
        let handle = self.store.clone();
        let reaped = RunnerError::blocking("remove workspaces", move || {
            let store = handle.get()?;
            Ok(snapshots.iter().filter_map(workspace_id).try_for_each(|id| source::workspace::remove(&store, &id))?)
        });
        if let Err(error) = reaped.await {
            tracing::warn!(error = error.to_line(), "failed to remove snapshots from the store");
        }
    }

    async fn probe(&self) -> Probe {
        if fs::metadata("/bin/sh").is_ok() {
            Probe::Usable { note: Some("no isolation: steps see the whole machine".into()) }
        } else {
            Probe::Unusable { reason: "/bin/sh does not exist".into(), hint: "install a POSIX shell at /bin/sh".into() }
        }
    }

    fn capabilities(&self) -> RunnerCapabilities {
        RunnerCapabilities {
            grace: true,
            workspace: true,
            snapshots: true,
            outputs: true,
            images: ImageSupport::HostOnly,
            ..RunnerCapabilities::default()
        }
    }
}

/// Returns whether the command of an attempt has run.
fn has_files(ended: &Result<StepResult, RunnerError>) -> bool {
    match ended {
        Ok(_) => true,
        Err(error) => error.kind() != RunnerErrorKind::Infrastructure,
    }
}

/// Copies the outputs of a step that has left its files in `workspace`. Absolute paths are those of the
/// machine, which are not the step's.
async fn copy_outputs(outputs: &Arc<StepOutputs>, workspace: PathBuf) {
    let patterns = outputs.below_workdir();
    let copied = async {
        let patterns = outputs::parse(&patterns)?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let is_complete = Arc::new(AtomicBool::new(false));
        let (receiver, is_sent) = (Arc::clone(outputs), Arc::clone(&is_complete));
        let receiving = RunnerError::blocking("copy the outputs", move || {
            Ok(receiver.receive(fs::File::from(read), "", || is_sent.load(Ordering::Acquire)))
        });
        let sending = RunnerError::blocking("read the step's files", move || {
            let mut out = io::BufWriter::with_capacity(1 << 17, fs::File::from(write));
            tree::pack_matching(&workspace, &patterns, outputs::LIMITS, &mut out)?;
            out.flush()?;
            is_complete.store(true, Ordering::Release);
            Ok(())
        });
        let (received, sent) = tokio::join!(receiving, sending);
        if received? == Received::Failed { Ok(()) } else { sent }
    };
    if let Err(error) = copied.await {
        outputs.failed(error.to_line());
    }
}

/// A workspace to run in. Dropping it removes the workspace.
struct Prepared {
    workspace: PathBuf,
    store: Arc<Store>,
    source: Arc<FrozenSource>,
    staging: Staging,
}

/// Returns the id in a snapshot of this runner.
fn workspace_id(snapshot: &SnapshotRef) -> Option<LayerId> {
    LayerId::parse(snapshot.0.strip_prefix(ProcessRunner::NAME)?.strip_prefix(':')?)
}
