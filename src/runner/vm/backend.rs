//! What a backend implements.

use std::{fmt, fs::File, future::Future, path::PathBuf};

use uuid::Uuid;

use crate::{
    event::{EventBus, StdStream},
    ir::Env,
    runner::{Limits, Probe, RunnerCapabilities, RunnerError},
};

/// Makes machines: virtual ones, containers, whatever starts from an image, runs commands and can be saved.
///
/// [`VmRunner`](super::VmRunner) makes a runner of it. It calls these for many steps at once.
pub trait VmBackend: Send + Sync + fmt::Debug + 'static {
    /// The runner's name, as [`StepRunner::NAME`](crate::runner::StepRunner::NAME).
    const NAME: &'static str;

    /// Raised whenever the same command would leave another filesystem than before.
    const CACHE_VERSION: u32 = 1;

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

    /// Removes a snapshot; one that is not there is passed over. Machines that were started from it go on.
    ///
    /// # Errors
    /// Why it is still there.
    fn remove(&self, snapshot: &str) -> impl Future<Output = Result<(), RunnerError>> + Send;

    /// Tells whether the backend can work on this machine.
    fn probe(&self) -> impl Future<Output = Probe> + Send {
        async { Probe::Usable { note: None } }
    }

    /// What the backend promises, beside `workspace` and `snapshots`, which the runner makes of its methods. Where it holds
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

    /// Ends the machine, and every process in it, before it returns.
    fn destroy(self) -> impl Future<Output = ()> + Send;
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
    pub(super) bus: &'a EventBus,
    pub(super) step_id: Uuid,
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
