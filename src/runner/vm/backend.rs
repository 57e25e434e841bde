//! The traits that a backend implements.

use std::{fmt, fs::File, future::Future, path::PathBuf, sync::Arc};

use uuid::Uuid;

use crate::{
    event::EventBus,
    image::ImageProgram,
    ir::Env,
    model::{Activity, SnapshotRef, StdStream},
    outputs::StepOutputs,
    runner::{
        CacheIdentity, ExecutorInput, InputFiles, Limits, Probe, RunnerCapabilities, RunnerError, StepContext,
        services::beside::ServiceOutput,
    },
    source::{FrozenSource, RunSource},
    store::{LayerId, Snapshot, Store},
};

/// Creates machines: virtual machines, containers, or anything else that starts from an image, runs commands
/// and can be saved.
///
/// [`VmRunner`](super::VmRunner) turns it into a runner, and calls its methods for many steps at once.
pub trait VmBackend: Send + Sync + fmt::Debug + 'static {
    /// The runner's name, as in [`StepRunner::NAME`](crate::runner::StepRunner::NAME).
    const NAME: &'static str;

    /// The version to raise whenever the same command would produce a different filesystem than before.
    const CACHE_VERSION: u32 = 1;

    /// Whether machines start from layers of the store and commit to it. If so, [`boot`](Self::boot) starts
    /// machines, while other backends [create](Self::create) them. [`Vm::commit`] saves them if the snapshot
    /// is needed outside of this backend's machines.
    const LAYERS: bool = false;

    /// Whether connections of machines with a network of their own can be limited to a list:
    /// [`Limits::egress`].
    const EGRESS: bool = false;

    /// The type of a machine.
    type Vm: Vm;

    /// Starts a machine from an image. The runner calls it once for each attempt of a root step.
    ///
    /// # Errors
    /// Returns an error if the machine cannot be started: [`RunnerError::unsupported`] if a retry would fail
    /// in the same way.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no machine behind.
    fn create(&self, image: &str, limits: &Limits) -> impl Future<Output = Result<Self::Vm, RunnerError>> + Send;

    /// Starts a machine from a snapshot. Any number of machines may be started from the snapshot at the same
    /// time. Returns `None` if there is no such snapshot.
    ///
    /// # Errors
    /// Returns the same errors as [`create`](Self::create).
    ///
    /// # Cancel safety
    /// As [`create`](Self::create).
    fn restore(
        &self,
        snapshot: &str,
        limits: &Limits,
    ) -> impl Future<Output = Result<Option<Self::Vm>, RunnerError>> + Send;

    /// Starts a machine that sees the source at the work directory, over an image or over a snapshot of the
    /// store. Called instead of [`create`](Self::create) if the backend has [`LAYERS`](Self::LAYERS). The
    /// user sees text written to `output` as the step's output.
    ///
    /// # Errors
    /// Returns the same errors as [`create`](Self::create).
    ///
    /// # Cancel safety
    /// As [`create`](Self::create).
    fn boot(
        &self,
        ctx: &StepContext,
        context: &BootContext,
        limits: &Limits,
        output: &Output<'_>,
    ) -> impl Future<Output = Result<Self::Vm, RunnerError>> + Send {
        let _ = (ctx, context, limits, output);
        async { Err(claims(Self::NAME, "layers of the store")) }
    }

    /// Starts a machine beside `vm` that does nothing but hold a network with a loopback device of its own.
    /// The step's machine, and those of its services, [join](Vm::join) it. There, `names` lead to 127.0.0.1.
    /// Called once for each attempt of a step with services, before any of those machines runs a command, if
    /// the backend has the capability [`services`](RunnerCapabilities::services).
    ///
    /// # Errors
    /// Returns the same errors as [`create`](Self::create).
    ///
    /// # Cancel safety
    /// As [`create`](Self::create).
    fn hold_network(
        &self,
        vm: &Self::Vm,
        names: &[&str],
    ) -> impl Future<Output = Result<Self::Vm, RunnerError>> + Send {
        let _ = (vm, names);
        async { Err(claims(Self::NAME, "services")) }
    }

    /// Shows the files of other steps, [`ExecutorInput::inputs`], to a machine that has run nothing yet,
    /// read-only. They are no part of what the machine is saved as. Called if there are any, and the backend
    /// has the capability [`inputs`](RunnerCapabilities::inputs).
    ///
    /// # Errors
    /// Returns [`RunnerError::unsupported`] if something is not there, or another error if it cannot be read.
    ///
    /// # Cancel safety
    /// As [`create`](Self::create).
    fn bring_inputs(
        &self,
        ctx: &StepContext,
        store: &Arc<Store>,
        vm: &mut Self::Vm,
        input: &ExecutorInput,
    ) -> impl Future<Output = Result<(), RunnerError>> + Send {
        let _ = (ctx, store, vm, input);
        async { Err(claims(Self::NAME, "files of other steps")) }
    }

    /// Returns the digest of files of another step: see
    /// [`StepRunner::input_digest`](crate::runner::StepRunner::input_digest).
    ///
    /// # Errors
    /// As there.
    fn input_digest(
        &self,
        store: &Arc<Store>,
        source: &RunSource,
        input: &InputFiles,
    ) -> impl Future<Output = Result<[u8; 32], RunnerError>> + Send {
        let _ = (store, source, input);
        async { Err(claims(Self::NAME, "files of other steps")) }
    }

    /// Returns what goes into cache keys: see
    /// [`StepRunner::cache_identity`](crate::runner::StepRunner::cache_identity). Called if the backend has
    /// [`LAYERS`](Self::LAYERS).
    ///
    /// # Errors
    /// Returns an error if the image cannot be resolved.
    fn cache_identity(
        &self,
        store: Arc<Store>,
        image: Option<&str>,
    ) -> impl Future<Output = Result<Option<CacheIdentity>, RunnerError>> + Send {
        let _ = (store, image);
        async { Ok(None) }
    }

    /// Removes a snapshot. A missing snapshot is ignored. Machines that were started from it continue to run.
    ///
    /// # Errors
    /// Returns an error if the snapshot cannot be removed.
    fn remove(&self, snapshot: &str) -> impl Future<Output = Result<(), RunnerError>> + Send;

    /// Ends every process of a machine, and copies the outputs of its step. Called for backends with the
    /// capability [`outputs`](RunnerCapabilities::outputs), before the machine is saved or destroyed.
    /// Problems are warnings.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no half file.
    fn copy_outputs(&self, vm: &mut Self::Vm, step: EndedStep<'_>) -> impl Future<Output = ()> + Send {
        let _ = (vm, step);
        async {}
    }

    /// Copies the outputs of a step whose result, a snapshot of the store, the cache has; see
    /// [`StepRunner::copy_outputs`](crate::runner::StepRunner::copy_outputs).
    fn copy_snapshot_outputs(
        &self,
        ctx: &StepContext,
        store: &Arc<Store>,
        snapshot: SnapshotRef,
    ) -> impl Future<Output = ()> + Send {
        let _ = (ctx, store, snapshot);
        async {}
    }

    /// Reports whether the backend can work on this machine.
    fn probe(&self) -> impl Future<Output = Probe> + Send {
        async { Probe::Usable { note: None } }
    }

    /// Reports whether machines can have networks of their own, as
    /// [`private_network`](RunnerCapabilities::private_network) promises.
    fn probe_network(&self) -> impl Future<Output = Probe> + Send {
        async { Probe::Usable { note: None } }
    }

    /// Returns the directories of this machine that its machines expose at the same path. Visits to a step's
    /// filesystem expose them, too.
    fn host_dirs(&self) -> &[PathBuf] {
        &[]
    }

    /// Returns what the backend promises, besides `workspace`, `snapshots` and `layers`, which the runner
    /// derives from the backend's methods. If the backend enforces no [`Limits`], neither `limits` nor
    /// `network`, steps that request some are refused.
    fn capabilities(&self) -> RunnerCapabilities {
        RunnerCapabilities::default()
    }
}

/// A machine that runs one step. Dropping it destroys the machine without waiting for that.
pub trait Vm: Send + Sync {
    /// Puts files into the machine. Called at most once, before [`exec`](Self::exec).
    ///
    /// # Errors
    /// Returns an error if the files cannot be put there.
    fn inject(&mut self, files: Injection) -> impl Future<Output = Result<(), RunnerError>> + Send;

    /// Puts the machine into the network that `holder` [holds](VmBackend::hold_network). Called at most once,
    /// before [`exec`](Self::exec).
    fn join(&mut self, holder: &Self, role: NetworkRole) {
        let _ = (holder, role);
    }

    /// Returns the program that the machine's image runs by default. Services without a command run it.
    fn program(&self) -> Option<ImageProgram> {
        None
    }

    /// Runs the command to its end, and returns its exit code, or 128+n after signal n. Called once. All
    /// output of the command must have been passed to `output` when this returns. Processes that the command
    /// left may still be running, and their output is discarded. A backend with the capability
    /// [`services`](RunnerCapabilities::services) calls [`Output::started`] when the command has started.
    ///
    /// # Errors
    /// Returns [`RunnerError::out_of_memory`] if the command died because of its memory limit, or another
    /// error if there is no exit code.
    fn exec(&self, command: &Command<'_>, output: &Output<'_>)
    -> impl Future<Output = Result<i32, RunnerError>> + Send;

    /// Sends TERM to all processes of the command, while [`exec`](Self::exec) waits for its end. A machine
    /// whose command takes longer than the grace to end is destroyed.
    fn terminate(&self) -> impl Future<Output = ()> + Send;

    /// Ends every process of the machine, and saves its files. Called after a command that exited with 0.
    /// Returns the snapshot's name, without spaces, for [`restore`](VmBackend::restore).
    ///
    /// # Errors
    /// Returns an error if there is no snapshot. The machine is destroyed in any case.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no machine behind, but possibly an unreferenced snapshot.
    fn snapshot(self) -> impl Future<Output = Result<String, RunnerError>> + Send;

    /// Returns whether the snapshot must be committed to the store, even if only this backend needs it,
    /// because the backend cannot stack any more layers of its own.
    fn wants_commit(&self) -> bool {
        false
    }

    /// Does the same as [`snapshot`](Self::snapshot), but commits the snapshot to the store. Also called
    /// after a command that failed, or that still runs because it did not end within its grace.
    ///
    /// # Errors
    /// Returns the same errors as [`snapshot`](Self::snapshot).
    ///
    /// # Cancel safety
    /// As [`snapshot`](Self::snapshot).
    fn commit(self, store: &Arc<Store>) -> impl Future<Output = Result<SnapshotRef, RunnerError>> + Send
    where
        Self: Sized,
    {
        let _ = store;
        async { Err(claims("this", "layers of the store")) }
    }

    /// Ends the machine, and every process in it, before it returns.
    fn destroy(self) -> impl Future<Output = ()> + Send;
}

/// The files that a machine of a backend with [`LAYERS`](VmBackend::LAYERS) starts from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BootContext {
    /// The id of the run.
    pub run: Uuid,
    /// The store of the layers.
    pub store: Arc<Store>,
    /// The source that the machine sees: over the image, below the snapshot's layers.
    pub source: Arc<FrozenSource>,
    /// The image or snapshot.
    pub base: MachineBase,
}

/// The files below and above the source.
#[derive(Debug, Clone)]
pub enum MachineBase {
    /// An image, with nothing above the source.
    Image(Arc<str>),
    /// A snapshot of the store.
    Snapshot {
        /// The name of the snapshot.
        name: SnapshotRef,
        /// The content of the snapshot.
        snapshot: Arc<Snapshot>,
        /// The layer to put over the snapshot, so that it shows this source instead of an older one.
        delta: Option<LayerId>,
    },
}

/// Returns the error of a backend that claims to support something but does not.
fn claims(backend: &str, what: &str) -> RunnerError {
    RunnerError::unsupported(format!("backend `{backend}` does not support {what}, which is a bug in the backend"))
}

/// What a machine does in a network that several machines share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a network belongs to a step, and others are beside it")]
pub enum NetworkRole {
    /// It runs the step whose network it is.
    Step,
    /// It runs a service, which must not be able to listen to what the step sends.
    Service,
}

/// Files to put into a machine. First some files are removed, then those of the archive are added.
#[derive(Debug)]
#[non_exhaustive]
pub struct Injection {
    /// The directory that all paths are relative to. Must be created if it is missing.
    pub dir: PathBuf,
    /// The paths to remove, contents before directories. Directories that are not empty stay.
    pub removed: Vec<PathBuf>,
    /// A tar archive, to read from its start. Existing files are replaced; existing directories are kept.
    pub archive: File,
}

/// A step's command.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Command<'a> {
    /// The script that `/bin/sh -c` runs, with an empty standard input.
    pub script: &'a str,
    /// The step's own variables, which override those of the image.
    pub env: &'a Env,
    /// The directory where the command starts.
    pub workdir: &'a str,
}

/// A step whose command has ended, or was interrupted, and the outputs that it asked for.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct EndedStep<'a> {
    /// The store.
    pub store: &'a Arc<Store>,
    /// The outputs.
    #[doc(hidden)]
    pub outputs: &'a Arc<StepOutputs>,
    /// The directory where the command started.
    pub workdir: &'a str,
}

/// The destination of a command's output.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a> {
    pub(in crate::runner) bus: &'a EventBus,
    pub(in crate::runner) step_id: Uuid,
    /// The service beside the step whose output it is.
    pub(in crate::runner) service: Option<&'a ServiceOutput<'a>>,
}

impl Output<'_> {
    /// Tells that the command has started. The time that a service has to become ready counts from here, and
    /// one without a condition is ready now.
    pub fn started(&self) {
        if let Some(service) = self.service {
            service.started();
        }
    }

    /// Forwards output of the command. Chunks may end anywhere.
    ///
    /// # Cancel safety
    /// Either all bytes were forwarded, or none.
    pub async fn write(&self, stream: StdStream, bytes: &[u8]) {
        match self.service {
            Some(service) => service.write(stream, bytes).await,
            None => self.bus.output(self.step_id, stream, bytes).await,
        }
    }

    /// Waits until a machine has started, and reports that it starts if that takes long.
    ///
    /// # Cancel safety
    /// As that of `machine`.
    pub async fn booting<T>(&self, machine: impl Future<Output = T>) -> T {
        if self.service.is_some() {
            // It is reported that services start.
            return machine.await;
        }
        self.bus.reporting(Some(self.step_id), || Some((Activity::Booting, None)), machine).await
    }
}
