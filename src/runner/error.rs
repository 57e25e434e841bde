//! The error of an attempt that ended without an exit code.

use std::{fmt, io};

use tokio::task::JoinError;

use crate::{
    blocking::{self, BlockingError},
    model::StepUsage,
    size,
    store::StoreError,
};

/// The reason why a command did not end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RunnerErrorKind {
    /// The executor's deadline passed, and the runner ended the command.
    TimedOut,
    /// The build was cancelled, and the runner ended the command.
    Cancelled,
    /// The command exceeded its memory limit and was killed, or it failed when the machine had no memory
    /// left: see [`RunnerError::machine_out_of_memory`].
    OutOfMemory,
    /// The command reached its limit on processes, and failed or was killed as a result: see
    /// [`RunnerError::exit_code`].
    TooManyProcesses,
    /// Any failure that the command did not cause. Retried a bounded number of times.
    Infrastructure,
}

/// The error of an attempt that ended without an exit code.
///
/// `Display` is a lowercase fragment that fits "failed to run the step: ..."; the cause is only in
/// [`source`](std::error::Error::source).
// A box, because every attempt's result is moved several times, with room for an error that few have.
#[derive(Debug)]
pub struct RunnerError(Box<Parts>);

#[derive(Debug)]
struct Parts {
    kind: RunnerErrorKind,
    message: String,
    source: Option<anyhow::Error>,
    retry: bool,
    exit_code: Option<i32>,
    usage: Option<StepUsage>,
}

impl RunnerError {
    /// Returns the error of a command that was ended because its time limit was reached.
    #[must_use]
    pub fn timed_out() -> Self {
        Self::bare(RunnerErrorKind::TimedOut, "the time limit was reached".into())
    }

    /// Returns the error of a command that was ended by a time limit that is not the step's, as `message`
    /// says.
    #[must_use]
    pub fn timed_out_by(message: impl Into<String>) -> Self {
        Self::bare(RunnerErrorKind::TimedOut, message.into())
    }

    /// Returns the error of a command that was ended because the build was cancelled.
    #[must_use]
    pub fn cancelled() -> Self {
        Self::bare(RunnerErrorKind::Cancelled, "the build was cancelled".into())
    }

    /// Returns the error of a command that was killed because it exceeded its memory limit of `limit_bytes`.
    #[must_use]
    pub fn out_of_memory(limit_bytes: u64) -> Self {
        // Limits are mostly whole numbers.
        let limit = size::show(limit_bytes).replace(".0 ", " ");
        Self::bare(RunnerErrorKind::OutOfMemory, format!("the memory limit of {limit} was reached"))
    }

    /// Returns the error of a command that failed with `exit_code` while the machine had so little memory
    /// that the kernel ended processes. If other steps ran at that time, the step runs again alone.
    #[must_use]
    pub fn machine_out_of_memory(exit_code: i32) -> Self {
        let message =
            format!("the machine ran out of memory while the step ran, and its command exited with {exit_code}");
        Self::bare(RunnerErrorKind::OutOfMemory, message).with(|parts| parts.exit_code = Some(exit_code))
    }

    /// Returns the error of a command that reached its limit of `limit` processes, and ended with `exit_code`
    /// as a result.
    #[must_use]
    pub fn too_many_processes(limit: u64, exit_code: i32) -> Self {
        let message = format!("the limit of {limit} processes was reached");
        Self::bare(RunnerErrorKind::TooManyProcesses, message).with(|parts| parts.exit_code = Some(exit_code))
    }

    /// Returns the error of a failure of the infrastructure. `doing` completes "failed to run the step:
    /// failed to ...". The error is retryable, unless the cause is a [`StoreError`] that is not transient.
    #[must_use]
    pub fn infrastructure(doing: impl fmt::Display, source: impl Into<anyhow::Error>) -> Self {
        let source = source.into();
        Self::bare(RunnerErrorKind::Infrastructure, format!("failed to {doing}")).with(|parts| {
            parts.retry = source.downcast_ref::<StoreError>().is_none_or(StoreError::is_transient);
            parts.source = Some(source);
        })
    }

    /// Returns the error of a request that the runner does not support. A retry would fail as well.
    #[must_use]
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::bare(RunnerErrorKind::Infrastructure, message.into()).with(|parts| parts.retry = false)
    }

    /// Returns why the command did not end by itself.
    #[must_use]
    pub fn kind(&self) -> RunnerErrorKind {
        self.0.kind
    }

    /// Returns the exit code of the command, or `None` if the error does not come from the command.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.0.exit_code
    }

    /// Sets what the command used of the machine.
    #[must_use]
    pub fn with_usage(self, usage: Option<StepUsage>) -> Self {
        self.with(|parts| parts.usage = usage)
    }

    /// Returns what the command used of the machine, if it is known.
    #[must_use]
    pub fn usage(&self) -> Option<StepUsage> {
        self.0.usage
    }

    /// Returns whether another attempt could end differently.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.0.retry
    }

    /// Returns the message and the whole chain of causes on one line.
    #[must_use]
    pub fn to_line(&self) -> String {
        match &self.0.source {
            Some(source) => format!("{}: {source:#}", self.0.message),
            None => self.0.message.clone(),
        }
    }

    /// Does work on a thread for blocking work. Every error of it counts as one of the infrastructure.
    /// `doing` completes "failed to ...".
    #[allow(dead_code, reason = "only some runners use it")]
    pub(crate) async fn blocking<T: Send + 'static>(
        doing: &'static str,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, Self> {
        blocking::run(doing, move || work().map_err(|error| Self::infrastructure(doing, error))).await
    }

    fn bare(kind: RunnerErrorKind, message: String) -> Self {
        let retry = kind == RunnerErrorKind::Infrastructure;
        Self(Box::new(Parts { kind, message, source: None, retry, exit_code: None, usage: None }))
    }

    fn with(mut self, change: impl FnOnce(&mut Parts)) -> Self {
        change(&mut self.0);
        self
    }
}

/// An error of the infrastructure, or the runner's own error if it is one: for `?` in runners.
impl From<anyhow::Error> for RunnerError {
    fn from(error: anyhow::Error) -> Self {
        error
            .downcast()
            .unwrap_or_else(|error| Self::infrastructure(FAILED, error).with(|parts| parts.message = FAILED.into()))
    }
}

/// An error of the infrastructure: for `?` in runners.
impl From<io::Error> for RunnerError {
    fn from(error: io::Error) -> Self {
        anyhow::Error::from(error).into()
    }
}

/// The message of an error that a runner did not describe.
const FAILED: &str = "the runner failed";

impl BlockingError for RunnerError {
    fn not_done(doing: &'static str, error: JoinError) -> Self {
        Self::infrastructure(doing, error)
    }
}

impl fmt::Display for RunnerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for RunnerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_libraries_are_of_the_infrastructure_and_the_runners_own_stay_themselves() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let converted = RunnerError::from(refused());
        assert_eq!(converted.kind(), RunnerErrorKind::Infrastructure);
        assert!(converted.is_retryable());
        assert_eq!(converted.to_line(), "the runner failed: connection refused");
        let with_context = anyhow::Error::from(refused()).context("failed to reach the machine");
        let line = RunnerError::from(with_context).to_line();
        assert_eq!(line, "the runner failed: failed to reach the machine: connection refused");
        let own = RunnerError::from(anyhow::Error::from(RunnerError::cancelled()).context("while waiting"));
        assert_eq!(own.kind(), RunnerErrorKind::Cancelled);
    }
}
