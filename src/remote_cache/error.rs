//! The errors of a remote cache. None of them fails a build.

use tokio::task::JoinError;

use super::{scope::CacheScope, signature::Unsigned};
use crate::{
    blocking::BlockingError,
    image::ImageError,
    remote::{RemoteError, RemoteErrorKind},
    store::StoreError,
    transfer::TransferError,
    userns::StartError,
};

/// The reason why there is no result, or why none was shared.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoteCacheError {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("cannot read or write layers here: failed to start the sandbox")]
    Userns(#[from] StartError),
    #[error("failed to read {what}")]
    Read { what: &'static str, source: std::io::Error },
    /// An entry that this program did not write.
    #[error("the remote cache has an invalid entry: {0}")]
    Foreign(String),
    /// An entry that may not be used.
    #[error("the entry of step `{}` in scope `{scope}` is not used: {why}", step.escape_debug())]
    Unsigned { step: String, scope: CacheScope, why: Unsigned },
    #[error("failed to {doing}")]
    Thread { doing: &'static str, source: JoinError },
}

/// The consequence of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consequence {
    /// Only one result is affected.
    Miss,
    /// Other calls would fail, too, for a while.
    Away,
    /// We lack permission, or the engine does not support the call.
    Refused,
}

impl BlockingError for RemoteCacheError {
    fn not_done(doing: &'static str, source: JoinError) -> Self {
        Self::Thread { doing, source }
    }
}

impl RemoteCacheError {
    pub(super) fn consequence(&self) -> Consequence {
        match self {
            Self::Remote(error) | Self::Transfer(TransferError::Remote { source: error, .. }) => match error.kind() {
                RemoteErrorKind::NotFound
                | RemoteErrorKind::MissingBlobs
                | RemoteErrorKind::Corrupt
                | RemoteErrorKind::Local => Consequence::Miss,
                RemoteErrorKind::Denied | RemoteErrorKind::Refused | RemoteErrorKind::Unimplemented => {
                    Consequence::Refused
                }
                RemoteErrorKind::Unavailable
                | RemoteErrorKind::Exhausted
                | RemoteErrorKind::Cancelled
                | RemoteErrorKind::TimedOut
                | RemoteErrorKind::Internal => Consequence::Away,
            },
            _ => Consequence::Miss,
        }
    }

    /// Returns the error and its causes on one line.
    pub(super) fn into_line(self) -> String {
        format!("{:#}", anyhow::Error::new(self))
    }
}
