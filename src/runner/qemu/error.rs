//! The errors of virtual machines.

use std::{io, path::PathBuf, time::Duration};

use tokio::task::JoinError;

use crate::{
    blocking::BlockingError,
    runner::RunnerError,
    step::{NoStepProgram, StepProgram},
};

/// What the host lacks to run virtual machines. A retry would fail in the same way.
#[derive(Debug, thiserror::Error)]
pub(super) enum Missing {
    #[error("virtual machines need an x86-64 host")]
    Architecture,
    #[error("{program} not found: {hint}")]
    Program { program: &'static str, hint: &'static str },
    #[error("no readable kernel with modules in /boot: {KERNEL_HINT}")]
    Kernel,
    #[error("the kernel {} has {module} neither as a module nor built in: {KERNEL_HINT}", kernel.display())]
    Module { kernel: PathBuf, module: &'static str },
    #[error("failed to read the modules of kernel {} in {}", kernel.display(), modules.display())]
    Modules { kernel: PathBuf, modules: PathBuf, source: io::Error },
    #[error(transparent)]
    Guest(#[from] NoStepProgram),
    #[error("{guest} is dynamically linked, but a machine has no libraries: name a static one")]
    NotStatic { guest: StepProgram },
}

pub(super) const KERNEL_HINT: &str = "install one, such as Debian's `linux-image-cloud-amd64`";

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoMachine {
    #[error("QEMU ended ({how}){}", told(log))]
    Ended { how: String, log: String },
    #[error("the machine was not ready after {} s{}", after.as_secs(), told(log))]
    Late { after: Duration, log: String },
    #[error("QEMU rejected {command}: {why}")]
    Refused { command: &'static str, why: String },
    #[error("failed to talk to QEMU")]
    Talk(#[source] io::Error),
    #[error("failed to talk to the machine{}", told(log))]
    Guest { source: io::Error, log: String },
    #[error("the machine's guest has version {version}, but version {} is needed", crate::guest::VERSION)]
    Version { version: u32 },
    #[error("failed to {doing}")]
    Io { doing: &'static str, source: io::Error },
    #[error(transparent)]
    Sandbox(#[from] RunnerError),
}

fn told(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!(": it printed {log:?}") }
}

pub(super) trait ResultExt<T> {
    fn doing(self, doing: &'static str) -> Result<T, NoMachine>;
}

impl<T, E: Into<io::Error>> ResultExt<T> for Result<T, E> {
    fn doing(self, doing: &'static str) -> Result<T, NoMachine> {
        self.map_err(|error| NoMachine::Io { doing, source: error.into() })
    }
}

impl BlockingError for NoMachine {
    fn not_done(doing: &'static str, error: JoinError) -> Self {
        Self::Io { doing, source: io::Error::other(error) }
    }
}

impl From<NoMachine> for RunnerError {
    fn from(error: NoMachine) -> Self {
        match error {
            NoMachine::Sandbox(error) => error,
            error => Self::infrastructure("start a virtual machine", error),
        }
    }
}

impl From<Missing> for RunnerError {
    fn from(error: Missing) -> Self {
        Self::unsupported(format!("failed to start a virtual machine: {:#}", anyhow::Error::new(error)))
    }
}
