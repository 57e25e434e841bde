//! Why a lease has no result, and how that is reported to the engine.

use std::io;

use prost::Message;
use prost_types::Any;
use tokio::task::JoinError;
use tonic::Code;

use super::{inputs::InputError, rpc, workspace::WorkspaceError};
use crate::{
    blocking::BlockingError,
    image::{ExportError, ImageError},
    remote::{Digest, RemoteError, RemoteErrorKind},
    runner::RunnerError,
    step,
    store::StoreError,
};

const PRECONDITION_FAILURE: &str = "type.googleapis.com/google.rpc.PreconditionFailure";

/// The reason why a lease has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeaseError {
    #[error("{0}")]
    NotOurs(String),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("failed to read input.json")]
    Format(#[from] step::FormatError),
    #[error("failed to get a layer")]
    Layer(#[source] ImageError),
    #[error("failed to get the source")]
    Workspace(#[from] WorkspaceError),
    #[error("failed to pack the command's changes")]
    Pack(#[from] ExportError),
    #[error("failed to {0}")]
    Io(&'static str, #[source] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("failed to run the command")]
    Sandbox(#[source] RunnerError),
    #[error("the engine's time limit for the action was reached")]
    Deadline,
}

impl BlockingError for LeaseError {
    fn not_done(doing: &'static str, error: JoinError) -> Self {
        Self::Io(doing, io::Error::other(error))
    }
}

impl From<RemoteError> for LeaseError {
    fn from(error: RemoteError) -> Self {
        Self::Input(error.into())
    }
}

/// Returns the status that is reported to the engine. INTERNAL and UNAVAILABLE make the engine retry on
/// another worker, so they are only used for errors that may not occur there.
pub(super) fn status_of(error: &LeaseError) -> rpc::Status {
    let remote = match error {
        LeaseError::Input(InputError::Remote(remote))
        | LeaseError::Workspace(WorkspaceError::Input(InputError::Remote(remote))) => Some(remote),
        _ => None,
    };
    let code = match (error, remote.map(RemoteError::kind)) {
        (LeaseError::NotOurs(_), _) | (_, Some(RemoteErrorKind::MissingBlobs)) => Code::FailedPrecondition,
        (LeaseError::Deadline, _) => Code::DeadlineExceeded,
        (_, Some(RemoteErrorKind::Unavailable)) => Code::Unavailable,
        (_, Some(_)) => Code::Internal,
        (
            LeaseError::Input(InputError::Malformed(_))
            | LeaseError::Workspace(WorkspaceError::Input(InputError::Malformed(_)))
            | LeaseError::Format(_)
            | LeaseError::Layer(_),
            None,
        ) => Code::InvalidArgument,
        (LeaseError::Sandbox(error), None) if !error.is_retryable() => Code::FailedPrecondition,
        _ => Code::Internal,
    };
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        message = format!("{message}: {error}");
        source = error.source();
    }
    let missing = remote.map_or(&[][..], RemoteError::missing);
    let details = if missing.is_empty() { Vec::new() } else { vec![precondition_failure(missing)] };
    rpc::Status { code: code as i32, message, details }
}

/// Lists missing blobs in the protocol's form, so that a client that has them can upload them again.
fn precondition_failure(missing: &[Digest]) -> Any {
    let violation = |digest: &Digest| rpc::precondition_failure::Violation {
        r#type: "MISSING".into(),
        subject: format!("blobs/{digest}"),
        description: String::new(),
    };
    let failure = rpc::PreconditionFailure { violations: missing.iter().map(violation).collect() };
    Any { type_url: PRECONDITION_FAILURE.into(), value: failure.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_elsewhere_is_tried_elsewhere() {
        let malformed = || InputError::Malformed("nothing".into());
        let unusable = RunnerError::unsupported("no user namespaces");
        let passing = RunnerError::infrastructure("start the sandbox", io::Error::other("busy"));
        let full = StoreError::io("write", "/store", io::Error::from_raw_os_error(28));
        for (error, code) in [
            (LeaseError::NotOurs("no step".into()), Code::FailedPrecondition),
            (LeaseError::Deadline, Code::DeadlineExceeded),
            (LeaseError::Input(malformed()), Code::InvalidArgument),
            (LeaseError::Workspace(WorkspaceError::Input(malformed())), Code::InvalidArgument),
            (LeaseError::Sandbox(unusable), Code::FailedPrecondition),
            (LeaseError::Sandbox(passing), Code::Internal),
            (LeaseError::Store(full), Code::Internal),
        ] {
            let status = status_of(&error);
            assert_eq!(status.code, code as i32, "{error}");
            assert!(status.message.starts_with(&error.to_string()), "{status:?}");
        }
    }

    #[test]
    fn blobs_that_are_missing_are_named_as_the_protocol_wants() {
        let digest = Digest::of(b"gone");
        let failure = precondition_failure(&[digest]);
        let failure = rpc::PreconditionFailure::decode(&failure.value[..]).unwrap();
        let [violation] = &failure.violations[..] else { panic!("{failure:?}") };
        assert_eq!((&*violation.r#type, &*violation.subject), ("MISSING", &*format!("blobs/{digest}")));
    }
}
