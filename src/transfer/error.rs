//! Errors of transferring layers.

use crate::{
    remote::RemoteError,
    store::{ExportError, ImageError, StoreError},
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
    /// A thread panicked or was cancelled.
    #[error("failed to {doing}")]
    Thread { doing: &'static str, source: tokio::task::JoinError },
}

impl TransferError {
    pub(crate) fn remote(doing: &'static str) -> impl FnOnce(RemoteError) -> Self {
        move |source| Self::Remote { doing, source }
    }

    pub(crate) fn store(doing: &'static str) -> impl FnOnce(StoreError) -> Self {
        move |source| Self::Store { doing, source }
    }

    /// Runs work that reads or writes files on a thread for blocking work.
    pub(crate) async fn on_thread<T: Send + 'static>(
        doing: &'static str,
        work: impl FnOnce() -> Result<T, Self> + Send + 'static,
    ) -> Result<T, Self> {
        tokio::task::spawn_blocking(work).await.map_err(|source| Self::Thread { doing, source })?
    }
}
