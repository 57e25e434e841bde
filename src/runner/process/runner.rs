//! One attempt: preparing a workspace, running a shell in it, and ending all its processes.

use crate::source;
use std::{
    ffi::OsString, fs, io, os::unix::process::ExitStatusExt, path::PathBuf, pin::pin, process::ExitStatus, sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Signal};
use tokio::process::Child;

use super::{
    group::Group,
    output::pump,
    supervisor::{Launch, start},
};
use crate::{
    awake,
    model::SnapshotRef,
    runner::{
        ExecutorInput, ImageSupport, Probe, RunnerCapabilities, RunnerError, StepContext, StepResult, StepRunner,
    },
    source::FrozenSource,
    store::{LayerId, Staging, Store, StoreError, StoreHandle},
};

/// How long to wait for the end of the output when all processes are dead: only a process that escaped can
/// still hold the pipes.
const DRAIN: Duration = Duration::from_millis(500);

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs steps as plain processes in private copies of the workspace. Provides no isolation: see the
/// [module](crate::runner::process).
///
/// Its snapshots (`process:<id>`) are workspaces, copied for each child. If this process ignores a signal,
/// its steps ignore the signal, too. For example, a process that a script starts in the background ignores
/// the interrupt signal. `hm` handles the interrupt signal, so that its steps do not ignore it.
#[derive(Debug, Clone)]
pub struct ProcessRunner {
    store: StoreHandle,
}

impl ProcessRunner {
    /// Creates a runner over a store, which is opened when the first step needs it.
    #[must_use]
    pub fn new(store: StoreHandle) -> Self {
        Self { store }
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
        let freeze = ctx.archives.freeze(&store).await;
        let source = freeze.map_err(|error| RunnerError::infrastructure("freeze the source", error))?;
        RunnerError::blocking("make the workspace", move || {
            let staging = store.stage()?;
            let workspace = staging.upper().join("workspace");
            match parent {
                None => source::workspace::copy_source(&store, &source, &workspace)?,
                Some((snapshot, id)) => source::workspace::copy(&store, &id, &workspace, &source)?
                    .ok_or_else(|| StoreError::UnknownSnapshot { snapshot, store: store.dir().into() })?,
            }
            for private in ["home", "tmp"] {
                fs::create_dir(staging.work().join(private))?;
            }
            Ok(Prepared { workspace, store, source, staging })
        })
        .await
    }
}

impl StepRunner for ProcessRunner {
    const NAME: &'static str = "process";

    async fn execute(&self, ctx: &StepContext, input: ExecutorInput) -> Result<StepResult, RunnerError> {
        if let Some(image) = input.step.image.as_deref().filter(|image| *image != "host") {
            return Err(RunnerError::unsupported(format!(
                "the process runner supports only image `host`, but the step uses `{image}`: pass `--image {image}=host`"
            )));
        }
        let prepared = tokio::select! {
            prepared = self.prepare(ctx, &input) => prepared?,
            () = ctx.cancel.cancelled() => return Err(ctx.interrupted()),
        };
        let status = run(ctx, &input, &prepared).await?;
        let exit_code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
        let committed_snapshot = if exit_code == 0 && input.cache_lookup.commits() {
            let Prepared { store, source, staging, .. } = prepared;
            let kept = source::workspace::keep(&store, staging, &source.id);
            let id = kept.map_err(|error| RunnerError::infrastructure("keep the workspace", error))?;
            Some(SnapshotRef::from(format!("{}:{id}", Self::NAME)))
        } else {
            None
        };
        Ok(StepResult::exited(exit_code).with_snapshot(committed_snapshot))
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
            images: ImageSupport::HostOnly,
            ..RunnerCapabilities::default()
        }
    }
}

/// A workspace to run in. Dropping it removes the workspace.
struct Prepared {
    workspace: PathBuf,
    store: Arc<Store>,
    source: Arc<FrozenSource>,
    staging: Staging,
}

/// Runs the command to its end. All output has been forwarded, and no process is left, when this returns.
async fn run(ctx: &StepContext, input: &ExecutorInput, prepared: &Prepared) -> Result<ExitStatus, RunnerError> {
    let private = prepared.staging.work();
    let mark = format!("{}-{}", input.step_id, prepared.store.instance().new_id());
    let launch = Launch {
        command: &input.step.cmd,
        workspace: &prepared.workspace,
        private,
        env: environment(input, prepared),
        mark: &mark,
    };
    let mut child = start(launch).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => {
            RunnerError::unsupported("the command or its environment contains a NUL byte or a variable without a name")
        }
        _ => RunnerError::infrastructure("start a shell", error),
    })?;
    let leader = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let leader = leader
        .ok_or_else(|| RunnerError::infrastructure("start a shell", io::Error::other("the process has no id")))?;
    // Held until the end: the watchdog waits for this end of the pipe to close.
    let _lifeline = child.stdin.take();
    let mut group = Group::new(leader, mark);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut output = pin!(pump(stdout.zip(stderr), &ctx.event_bus, input.step_id));
    let mut drained = false;
    let ended = {
        let mut ended = pin!(end(ctx, &mut child, &group));
        loop {
            tokio::select! {
                ended = &mut ended => break ended,
                () = &mut output, if !drained => drained = true,
            }
        }
    };
    group.end().await;
    if !drained && awake::timeout(DRAIN, output).await.is_none() {
        tracing::warn!("a process outside of the step's process group still holds its output open");
    }
    ended
}

/// Waits for the shell to end by itself, or ends it when `ctx.cancel` fires.
async fn end(ctx: &StepContext, child: &mut Child, group: &Group) -> Result<ExitStatus, RunnerError> {
    let waited = |status: io::Result<ExitStatus>| {
        status.map_err(|error| RunnerError::infrastructure("wait for the step's shell", error))
    };
    tokio::select! {
        biased;
        status = child.wait() => return waited(status),
        () = ctx.cancel.cancelled() => group.signal(Signal::TERM),
    }
    // The shell may be the first to end. The other processes have the same grace.
    let ended = {
        let last = pin!(async {
            let shell = child.wait().await;
            group.ended().await;
            shell
        });
        awake::timeout(ctx.grace, last).await
    };
    match ended {
        Some(shell) => drop(waited(shell)?),
        None => {
            group.signal(Signal::KILL);
            waited(child.wait().await)?;
        }
    }
    Err(ctx.interrupted())
}

/// Returns the command's environment: a few variables of the caller, then the step's own.
fn environment(input: &ExecutorInput, prepared: &Prepared) -> Vec<(OsString, OsString)> {
    let private = prepared.staging.work();
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut env = vec![
        ("PATH".into(), path),
        ("HOME".into(), private.join("home").into()),
        ("TMPDIR".into(), private.join("tmp").into()),
    ];
    env.extend(std::env::var_os("LANG").map(|lang| ("LANG".into(), lang)));
    env.extend(input.env.iter().map(|(name, value)| (name.into(), value.into())));
    env
}

/// Returns the id in a snapshot of this runner.
fn workspace_id(snapshot: &SnapshotRef) -> Option<LayerId> {
    LayerId::parse(snapshot.0.strip_prefix(ProcessRunner::NAME)?.strip_prefix(':')?)
}
