//! What goes wrong with a remote cache. None of it fails a build.

use crate::{
    remote::{RemoteError, RemoteErrorKind},
    runner::RunnerError,
    store::{ImageError, StoreError},
    transfer::TransferError,
};

/// Why there is no result, or why none was shared.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("layers can't be read or written here: {0}")]
    Trees(String),
    #[error("failed to read {what}")]
    Read { what: &'static str, source: std::io::Error },
    /// An entry that nobody here wrote like that.
    #[error("what the remote cache has makes no sense: {0}")]
    Foreign(String),
    #[error("a thread is gone")]
    Thread(#[from] tokio::task::JoinError),
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It concerns one result.
    Miss,
    /// Others would fare no better for a while.
    Away,
    /// We may not, or the engine can't.
    Refused,
}

impl Trouble {
    pub(super) fn verdict(&self) -> Verdict {
        match self {
            Self::Remote(error) | Self::Transfer(TransferError::Remote { source: error, .. }) => match error.kind() {
                RemoteErrorKind::NotFound
                | RemoteErrorKind::MissingBlobs
                | RemoteErrorKind::Corrupt
                | RemoteErrorKind::Local => Verdict::Miss,
                RemoteErrorKind::Denied | RemoteErrorKind::Refused | RemoteErrorKind::Unimplemented => Verdict::Refused,
                RemoteErrorKind::Unavailable
                | RemoteErrorKind::Exhausted
                | RemoteErrorKind::Cancelled
                | RemoteErrorKind::Internal => Verdict::Away,
            },
            _ => Verdict::Miss,
        }
    }

    /// The error and its causes on one line.
    pub(super) fn in_words(self) -> String {
        format!("{:#}", anyhow::Error::new(self))
    }
}

impl From<RunnerError> for Trouble {
    fn from(error: RunnerError) -> Self {
        Self::Trees(error.to_line())
    }
}
