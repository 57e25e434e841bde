//! Why an attempt has no exit code.

use std::fmt;

use crate::store::StoreError;

/// What kept a command from ending by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RunnerErrorKind {
    /// The executor's deadline passed, and the runner ended the command.
    TimedOut,
    /// The build was cancelled, and the runner ended the command.
    Cancelled,
    /// The command went over its memory limit and was killed for it.
    OutOfMemory,
    /// The command reached its limit on processes, and failed or was killed for it:
    /// [`RunnerError::exit_code`].
    TooManyProcesses,
    /// Everything that is not the command's fault. Retried, within a bound.
    Infrastructure,
}

/// An attempt that gave no exit code.
///
/// `Display` is a lowercase fragment that fits "failed to run the step: ..."; the cause is in
/// [`source`](std::error::Error::source) alone.
#[derive(Debug)]
pub struct RunnerError {
    kind: RunnerErrorKind,
    message: String,
    source: Option<anyhow::Error>,
    retry: bool,
    exit_code: Option<i32>,
}

impl RunnerError {
    /// The command was ended because its time was up.
    #[must_use]
    pub fn timed_out() -> Self {
        Self::bare(RunnerErrorKind::TimedOut, "the time limit was reached".into())
    }

    /// The command was ended because the build was cancelled.
    #[must_use]
    pub fn cancelled() -> Self {
        Self::bare(RunnerErrorKind::Cancelled, "the build was cancelled".into())
    }

    /// The command was killed for going over its memory limit of `limit_bytes`.
    #[must_use]
    pub fn out_of_memory(limit_bytes: u64) -> Self {
        Self::bare(RunnerErrorKind::OutOfMemory, format!("the memory limit of {limit_bytes} bytes was reached"))
    }

    /// Returns the error of a command that reached its limit of `limit` processes, and ended with `exit_code`
    /// for it.
    #[must_use]
    pub fn too_many_processes(limit: u64, exit_code: i32) -> Self {
        let message = format!("the limit of {limit} processes was reached");
        Self { exit_code: Some(exit_code), ..Self::bare(RunnerErrorKind::TooManyProcesses, message) }
    }

    /// The machinery failed. `doing` completes "failed to run the step: failed to ...". Another attempt is worth it,
    /// unless the cause is a [`StoreError`] that says otherwise.
    #[must_use]
    pub fn infrastructure(doing: impl fmt::Display, source: impl Into<anyhow::Error>) -> Self {
        let source = source.into();
        Self {
            kind: RunnerErrorKind::Infrastructure,
            message: format!("failed to {doing}"),
            retry: source.downcast_ref::<StoreError>().is_none_or(StoreError::is_transient),
            source: Some(source),
            exit_code: None,
        }
    }

    /// The machinery can't do this, and will not be able to on a second try either.
    #[must_use]
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self { retry: false, ..Self::bare(RunnerErrorKind::Infrastructure, message.into()) }
    }

    /// What kept the command from ending by itself.
    #[must_use]
    pub fn kind(&self) -> RunnerErrorKind {
        self.kind
    }

    /// Returns how the command ended, or `None` if that is not the command's doing.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.exit_code
    }

    /// Whether another attempt could end otherwise.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retry
    }

    /// The whole chain of causes on one line.
    #[must_use]
    pub fn to_line(&self) -> String {
        match &self.source {
            Some(source) => format!("{}: {source:#}", self.message),
            None => self.message.clone(),
        }
    }

    fn bare(kind: RunnerErrorKind, message: String) -> Self {
        Self { kind, message, source: None, retry: kind == RunnerErrorKind::Infrastructure, exit_code: None }
    }
}

impl fmt::Display for RunnerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for RunnerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}
