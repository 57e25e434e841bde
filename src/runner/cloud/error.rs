//! Converts errors of an engine and of the store to runner errors.

use crate::{
    remote::{RemoteError, RemoteErrorKind},
    runner::{RunnerError, image_notes::no_image},
    store::StoreError,
    transfer::TransferError,
};

/// Converts an error of the engine. Temporary errors are retryable; others are final.
pub(super) fn remote(doing: &'static str) -> impl FnOnce(RemoteError) -> RunnerError {
    move |error| match error.kind() {
        RemoteErrorKind::Unavailable | RemoteErrorKind::MissingBlobs | RemoteErrorKind::Cancelled => {
            RunnerError::infrastructure(doing, error)
        }
        RemoteErrorKind::TimedOut => RunnerError::timed_out_by(error.to_string()),
        _ => RunnerError::unsupported(format!("failed to {doing}: {:#}", anyhow::Error::new(error))),
    }
}

pub(super) fn store(doing: &'static str) -> impl FnOnce(StoreError) -> RunnerError {
    move |error| RunnerError::infrastructure(doing, error)
}

pub(super) fn transfer(error: TransferError) -> RunnerError {
    match error {
        TransferError::Remote { doing, source } => remote(doing)(source),
        TransferError::Store { doing, source } => store(doing)(source),
        TransferError::Unpack(error) => no_image(error),
        TransferError::Chunks(_) => RunnerError::infrastructure("fetch a layer", error),
        TransferError::Pack(error) => RunnerError::infrastructure("pack a layer", error),
        TransferError::Thread { doing, source } => RunnerError::infrastructure(doing, source),
    }
}
