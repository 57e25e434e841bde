//! Converts errors of the daemon and of the store to runner errors.

use bollard::errors::Error;

use crate::{
    image::{ExportError, ImageError},
    runner::RunnerError,
    store::StoreError,
};

const NO_ANSWER: &str = "the daemon did not answer for minutes: if it starts no container either, restart it (versions \
                         before 20.10.26 can deadlock when one container starts while another ends)";

/// Converts an error of the daemon. A bad request is not retryable; any other error may be temporary.
pub(super) fn daemon(doing: &'static str) -> impl FnOnce(Error) -> RunnerError {
    move |error| match error {
        Error::DockerResponseServerError { status_code: 400, message } => {
            RunnerError::unsupported(format!("failed to {doing}: {message}"))
        }
        Error::RequestTimeoutError => RunnerError::infrastructure(doing, anyhow::anyhow!(NO_ANSWER)),
        error => RunnerError::infrastructure(doing, error),
    }
}

/// Returns whether the daemon reports that an object does not exist.
pub(super) fn is_missing(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, .. })
}

pub(super) fn store(doing: &'static str) -> impl FnOnce(StoreError) -> RunnerError {
    move |error| RunnerError::infrastructure(doing, error)
}

pub(super) fn export(doing: &'static str) -> impl FnOnce(ExportError) -> RunnerError {
    move |error| match error {
        ExportError::Store(error) => RunnerError::infrastructure(doing, error),
        error @ ExportError::Write { .. } => RunnerError::infrastructure(doing, error),
        error => RunnerError::unsupported(format!("failed to {doing}: {:#}", anyhow::Error::new(error))),
    }
}

pub(super) fn image(doing: &'static str) -> impl FnOnce(ImageError) -> RunnerError {
    move |error| match error {
        ImageError::Store(error) => RunnerError::infrastructure(doing, error),
        error => RunnerError::unsupported(format!("failed to {doing}: {:#}", anyhow::Error::new(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_does_not_answer_is_to_be_restarted() {
        let error = daemon("start the container")(Error::RequestTimeoutError);
        let text = format!("{:#}", anyhow::Error::new(error));
        assert!(text.starts_with("failed to start the container: the daemon did not answer"), "{text}");
        assert!(text.contains("restart it"), "{text}");
    }
}
