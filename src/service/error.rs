//! The reasons why the service did not do what was requested.
//!
//! Texts are made of statuses, codes and the service's messages. URLs and headers are never part of them,
//! because they can have tokens.

use std::{io, path::PathBuf};

use crate::{backend::BackendError, size, store::StoreError};

/// The reason why the service did not do what was requested.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The service does not accept the token.
    #[error("the service does not accept the token")]
    Unauthorized,
    /// The service refused the request.
    #[error("the service refused it [{code}]: {message}")]
    Rejected {
        /// The HTTP status.
        status: u16,
        /// The service's code.
        code: String,
        /// The service's message.
        message: String,
    },
    /// The service has no such thing.
    #[error("the service does not have it [{code}]: {message}")]
    NotFound {
        /// The service's code.
        code: String,
        /// The service's message.
        message: String,
    },
    /// The service could not answer, even after retries.
    #[error("the service answered with status {status}{}", request(.request_id.as_deref()))]
    Busy {
        /// The HTTP status.
        status: u16,
        /// The service's name for the request, for its operators.
        request_id: Option<String>,
        /// Whether the request may have had its effect.
        may_be_done: bool,
    },
    /// The network failed, even after retries.
    #[error("{host} cannot be reached: {reason}")]
    Network {
        /// The host.
        host: String,
        /// The reason.
        reason: String,
        /// Whether the request may have had its effect.
        may_be_done: bool,
    },
    /// The answer is not one of this version of the service.
    #[error("the service's answer is not understood ({0}); is this version of hm too old?")]
    Answer(String),
    /// The packed source exceeds the service's limit.
    #[error("the source is larger than {} after compression", size::show(*.limit))]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
        /// The largest files, with their sizes before compression.
        largest: Vec<(PathBuf, u64)>,
    },
    /// The service accepted the build, which cannot be watched.
    #[error("the build was accepted, but cannot be watched: {0}")]
    Unwatched(#[source] Box<Self>),
    /// The user cancelled the build before it was sent.
    #[error("the build was cancelled before it was submitted")]
    Canceled,
    /// Something that the service has no place for, or that it could not be asked with.
    #[error("{0}")]
    Unsupported(String),
    /// The source could not be read or frozen.
    #[error("failed to pack the source")]
    Source(#[from] StoreError),
    /// A local file operation failed.
    #[error("failed to {doing}")]
    Local {
        /// The operation that failed, as in "failed to ...".
        doing: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl ServiceError {
    /// Returns whether a request that created something may have done so, although it failed.
    #[must_use]
    pub fn may_be_done(&self) -> bool {
        match self {
            Self::Busy { may_be_done, .. } | Self::Network { may_be_done, .. } => *may_be_done,
            Self::Answer(_) | Self::Unwatched(_) => true,
            _ => false,
        }
    }

    /// Returns the service's code, if it sent one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Rejected { code, .. } | Self::NotFound { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Returns the error of a request to create a build: it was refused, whatever is missing.
    #[must_use]
    pub fn of_submission(self) -> Self {
        match self {
            Self::NotFound { code, message } => Self::Rejected { status: 404, code, message },
            other => other,
        }
    }

    /// Returns the error with the fact that the request surely had no effect.
    pub(super) fn surely_not_done(mut self) -> Self {
        if let Self::Busy { may_be_done, .. } | Self::Network { may_be_done, .. } = &mut self {
            *may_be_done = false;
        }
        self
    }
}

fn request(id: Option<&str>) -> String {
    id.map(|id| format!(" (request {id})")).unwrap_or_default()
}

impl From<ServiceError> for BackendError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Unauthorized => Self::Unauthorized,
            ServiceError::Rejected { code, message, .. } => Self::Rejected { code, message },
            ServiceError::NotFound { code, message } => Self::NotFound(format!("[{code}] {message}")),
            ServiceError::Network { host, reason, .. } => {
                Self::Transport(format!("{host} cannot be reached: {reason}"))
            }
            ServiceError::TooLarge { limit, largest } => Self::SourceTooLarge {
                observed_bytes: limit,
                cap_bytes: limit,
                largest_paths: largest.into_iter().map(|(path, bytes)| (path.display().to_string(), bytes)).collect(),
            },
            ServiceError::Local { doing, source } => Self::Local { doing, source },
            other => Self::Other(Box::new(other)),
        }
    }
}
