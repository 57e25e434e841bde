//! The reasons why a step could not be run.

use std::{fmt, io};

use hm_exec_step::{Exit, jail::SetupError, tree::UnpackError};
use rustix::io::Errno;

/// The reason why a step could not be run, and whether another attempt may succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    retry: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// Creates a failure that another attempt would meet, too.
    pub(crate) fn lasting(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: false }
    }

    /// Creates a failure that another attempt, here or elsewhere, may not meet.
    pub(crate) fn passing(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: true }
    }

    /// Creates a failure of a file operation. `doing` completes "failed to ...".
    pub(crate) fn io(doing: impl fmt::Display, error: &io::Error) -> Self {
        Self::passing(format!("failed to {doing}: {error}"))
    }

    /// Creates a failure to set up the jail.
    pub(crate) fn setup(error: &SetupError) -> Self {
        // A shortage of kernel resources may be temporary.
        let short = [Errno::AGAIN, Errno::NOMEM, Errno::NOSPC, Errno::MFILE, Errno::NFILE, Errno::BUSY, Errno::IO];
        let retry = short.iter().any(|errno| errno.raw_os_error() == error.errno);
        Self { message: format!("failed to {error}"), retry }
    }

    /// Creates a failure to unpack a layer.
    pub(crate) fn unpack(path: &str, error: &UnpackError) -> Self {
        let retry = matches!(error, UnpackError::Io { .. } | UnpackError::Damaged { .. });
        Self { message: format!("failed to unpack {path}: {error}"), retry }
    }

    /// Returns the failure as the result file states it.
    pub(crate) fn exit(&self) -> Exit {
        Exit::Failed { message: self.message.clone(), retry: self.retry }
    }
}
