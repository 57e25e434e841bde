//! What goes wrong on the way.

use crate::{
    remote::RemoteError,
    store::{ExportError, ImageError, StoreError},
};

/// Why a layer did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// The engine's trouble.
    #[error("failed to {doing}")]
    Remote { doing: &'static str, source: RemoteError },
    /// The store's.
    #[error("failed to {doing}")]
    Store { doing: &'static str, source: StoreError },
    /// A layer can't be packed.
    #[error("failed to pack a layer")]
    Pack(#[source] ExportError),
    /// What came can't be unpacked, or is something else.
    #[error(transparent)]
    Unpack(#[from] ImageError),
    /// A thread is gone.
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

    /// Does work that reads or writes files on a thread for it.
    pub(crate) async fn on_thread<T: Send + 'static>(
        doing: &'static str,
        work: impl FnOnce() -> Result<T, Self> + Send + 'static,
    ) -> Result<T, Self> {
        tokio::task::spawn_blocking(work).await.map_err(|source| Self::Thread { doing, source })?
    }
}
