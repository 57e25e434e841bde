//! How a helper that does not start fails a step.

use crate::{runner::RunnerError, userns::StartError};

/// Only a communication failure may go away on a retry; what this machine does not allow will not change.
impl From<StartError> for RunnerError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Talk(_) => Self::infrastructure("start the sandbox", error),
            error => Self::unsupported(format!("failed to start the sandbox: {:#}", anyhow::Error::new(error))),
        }
    }
}
