//! What a backend implements.

use std::{fmt, fs::File, future::Future, path::PathBuf, sync::Arc};

use uuid::Uuid;

use crate::{
    event::{EventBus, StdStream},
    ir::Env,
    runner::{CacheIdentity, Limits, Probe, RunnerCapabilities, RunnerError, SnapshotRef, StepContext},
    store::{FrozenSource, LayerId, Snapshot, Store},
};

/// Makes machines: virtual ones, containers, whatever starts from an image, runs commands and can be saved.
///
/// [`VmRunner`](super::VmRunner) makes a runner of it. It calls these for many steps at once.
pub trait VmBackend: Send + Sync + fmt::Debug + 'static {
    /// The runner's name, as [`StepRunner::NAME`](crate::runner::StepRunner::NAME).
    const NAME: &'static str;

    /// Raised whenever the same command would leave another filesystem than before.
    const CACHE_VERSION: u32 = 1;

    /// Whether machines start from layers of the store and leave some: by [`boot`](Self::boot), where others are
    /// [created](Self::create), and by [`Vm::commit`], where the snapshot is needed by more than this backend's machines.
    const LAYERS: bool = false;

    /// A machine.
    type Vm: Vm;

    /// Starts a machine from an image. The runner calls it once for each attempt of a root step.
    ///
    /// # Errors
    /// Why there is none; [`RunnerError::unsupported`] where another attempt would end in the same way.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no machine behind.
    fn create(&self, image: &str, limits: &Limits) -> impl Future<Output = Result<Self::Vm, RunnerError>> + Send;

    /// Starts a machine from a snapshot, which any number of others may be started from at the same time; `None` where there
    /// is no such snapshot.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    ///
    /// # Cancel safety
    /// As [`create`](Self::create).
    fn restore(
        &self,
        snapshot: &str,
        limits: &Limits,
    ) -> impl Future<Output = Result<Option<Self::Vm>, RunnerError>> + Send;

    /// Starts a machine that sees the source at the work directory, over an image or over a snapshot of the store. Called
    /// where the backend has [`LAYERS`](Self::LAYERS), instead of [`create`](Self::create). What is told to `output` a
    /// person reads as the step's.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    ///
    /// # Cancel safety
    /// As [`create`](Self::create).
    fn boot(
        &self,
        ctx: &StepContext,
        ground: &Ground,
        limits: &Limits,
        output: &Output<'_>,
    ) -> impl Future<Output = Result<Self::Vm, RunnerError>> + Send {
        let _ = (ctx, ground, limits, output);
        async { Err(no_layers(Self::NAME)) }
    }

    /// What goes into cache keys: see [`StepRunner::cache_identity`](crate::runner::StepRunner::cache_identity). Asked where
    /// the backend has [`LAYERS`](Self::LAYERS).
    ///
    /// # Errors
    /// Where the image can't be found out about.
    fn cache_identity(
        &self,
        store: Arc<Store>,
        image: Option<&str>,
    ) -> impl Future<Output = Result<Option<CacheIdentity>, RunnerError>> + Send {
        let _ = (store, image);
        async { Ok(None) }
    }

    /// Removes a snapshot; one that is not there is passed over. Machines that were started from it go on.
    ///
    /// # Errors
    /// Why it is still there.
    fn remove(&self, snapshot: &str) -> impl Future<Output = Result<(), RunnerError>> + Send;

    /// Tells whether the backend can work on this machine.
    fn probe(&self) -> impl Future<Output = Probe> + Send {
        async { Probe::Usable { note: None } }
    }

    /// Directories of this machine that its machines show at the same place, so that whoever looks at what a step left
    /// finds them, too.
    fn host_dirs(&self) -> &[PathBuf] {
        &[]
    }

    /// What the backend promises, beside `workspace`, `snapshots` and `layers`, which the runner makes of its methods. Where it holds
    /// no [`Limits`], neither memory nor network, steps that ask for some are refused.
    fn capabilities(&self) -> RunnerCapabilities {
        RunnerCapabilities::default()
    }
}

/// A machine that runs one step. Dropped it is destroyed, without waiting for that.
pub trait Vm: Send + Sync {
    /// Puts files into the machine. Called at most once, before [`exec`](Self::exec).
    ///
    /// # Errors
    /// Why they are not there.
    fn inject(&mut self, files: Injection) -> impl Future<Output = Result<(), RunnerError>> + Send;

    /// Runs the command to its end: its exit code, or 128+n after signal n. Called once. All that the command printed has
    /// been given to `output` when it returns; processes that the command left may still run, and what they print is
    /// nobody's.
    ///
    /// # Errors
    /// [`RunnerError::out_of_memory`] where it died of its memory limit; else why there is no exit code.
    fn exec(&self, command: &Command<'_>, output: &Output<'_>)
    -> impl Future<Output = Result<i32, RunnerError>> + Send;

    /// Sends TERM to all processes of the command, while [`exec`](Self::exec) waits for its end. A machine whose command
    /// takes longer than the grace to end is destroyed.
    fn terminate(&self) -> impl Future<Output = ()> + Send;

    /// Ends every process of the machine, and saves its files. Called after a command that exited 0. Gives the snapshot's
    /// name, without spaces, for [`restore`](VmBackend::restore).
    ///
    /// # Errors
    /// Why there is no snapshot; the machine is gone all the same.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no machine behind; there may be a snapshot that nobody knows.
    fn snapshot(self) -> impl Future<Output = Result<String, RunnerError>> + Send;

    /// Whether the snapshot is to be the store's, whoever needs it: where the backend can pile up no more of its own.
    fn wants_commit(&self) -> bool {
        false
    }

    /// Does what [`snapshot`](Self::snapshot) does, and makes it a snapshot of the store. Called also after a command that
    /// failed, or that still runs because it did not end in its grace.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot).
    ///
    /// # Cancel safety
    /// As [`snapshot`](Self::snapshot).
    fn commit(self, store: &Arc<Store>) -> impl Future<Output = Result<SnapshotRef, RunnerError>> + Send
    where
        Self: Sized,
    {
        let _ = store;
        async { Err(no_layers("this")) }
    }

    /// Ends the machine, and every process in it, before it returns.
    fn destroy(self) -> impl Future<Output = ()> + Send;
}

/// What a machine of a backend with [`LAYERS`](VmBackend::LAYERS) starts from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Ground {
    /// The run that it is for.
    pub run: Uuid,
    /// Where layers are.
    pub store: Arc<Store>,
    /// The source that the machine sees: over the image, below the snapshot's layers.
    pub source: Arc<FrozenSource>,
    /// The rest.
    pub base: GroundBase,
}

/// What lies below and above the source.
#[derive(Debug, Clone)]
pub enum GroundBase {
    /// An image, and nothing above.
    Image(Arc<str>),
    /// A snapshot of the store.
    Snapshot {
        /// Its name.
        name: SnapshotRef,
        /// What it consists of.
        snapshot: Arc<Snapshot>,
        /// The layer to put over it, so that it shows this source instead of an older one.
        delta: Option<LayerId>,
    },
}

/// What is told of a backend that says that it has layers, and has not.
fn no_layers(backend: &str) -> RunnerError {
    RunnerError::unsupported(format!("backend `{backend}` knows no layers of the store, which is a bug in it"))
}

/// Files to put into a machine: first some go, then the archive's come.
#[derive(Debug)]
#[non_exhaustive]
pub struct Injection {
    /// The directory that all paths are relative to. To be made where it is missing.
    pub dir: PathBuf,
    /// What is to be removed, contents before directories: those that are not empty stay.
    pub removed: Vec<PathBuf>,
    /// A tar archive, to be read from its beginning. What is there already is replaced, but for directories.
    pub archive: File,
}

/// A step's command.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Command<'a> {
    /// What `/bin/sh -c` runs, with nothing to read on its standard input.
    pub script: &'a str,
    /// The step's own variables, over those of the image.
    pub env: &'a Env,
    /// Where it starts.
    pub workdir: &'a str,
}

/// Where a command's output goes.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a> {
    pub(in crate::runner) bus: &'a EventBus,
    pub(in crate::runner) step_id: Uuid,
}

impl Output<'_> {
    /// Hands on what the command printed. Chunks may end anywhere.
    ///
    /// # Cancel safety
    /// The bytes were handed on, or none were.
    pub async fn write(&self, stream: StdStream, bytes: &[u8]) {
        self.bus.output(self.step_id, stream, bytes).await;
    }
}
