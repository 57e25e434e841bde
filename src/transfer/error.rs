//! Errors of transferring layers.

use tokio::task::JoinError;

use crate::{
    blocking::BlockingError,
    image::{ExportError, ImageError},
    remote::RemoteError,
    store::StoreError,
};

/// The reason why a layer was not transferred.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// An error of the engine.
    #[error("failed to {doing}")]
    Remote { doing: &'static str, source: RemoteError },
    /// An error of the store.
    #[error("failed to {doing}")]
    Store { doing: &'static str, source: StoreError },
    /// A layer cannot be packed.
    #[error("failed to pack a layer")]
    Pack(#[source] ExportError),
    /// The received data cannot be unpacked, or is not what was expected.
    #[error(transparent)]
    Unpack(#[from] ImageError),
    /// The chunks of a layer are not what was expected.
    #[error("the layer's chunks are invalid: {0}")]
    Chunks(String),
    /// A thread panicked or was cancelled.
    #[error("failed to {doing}")]
    Thread { doing: &'static str, source: JoinError },
}

impl TransferError {
    pub(crate) fn remote(doing: &'static str) -> impl FnOnce(RemoteError) -> Self {
        move |source| Self::Remote { doing, source }
    }

    pub(crate) fn store(doing: &'static str) -> impl FnOnce(StoreError) -> Self {
        move |source| Self::Store { doing, source }
    }
}

impl BlockingError for TransferError {
    fn not_done(doing: &'static str, source: JoinError) -> Self {
        Self::Thread { doing, source }
    }
}
