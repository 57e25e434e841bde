//! Errors of unpacking a layer.

use std::{fmt::Write, io};

use serde::{Deserialize, Serialize};

use super::stream::TooLarge;

/// The maximum length of names in messages, in bytes: an archive may contain names of any length.
const SHOWN_BYTES: usize = 200;

/// The reason why a layer could not be unpacked. It is sent between processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// An entry that no legitimate image has, or that cannot be made here.
    #[error("invalid entry `{entry}`: {reason}")]
    Refused {
        /// The name of the entry, escaped and cut.
        entry: String,
        /// The reason.
        reason: String,
    },
    /// The stream is not an archive, or ends too early.
    #[error("the archive is damaged{}: {reason}", at(" at", .entry))]
    Damaged {
        /// The affected entry, escaped and cut, or the one before; empty at the beginning.
        entry: String,
        /// The problem.
        reason: String,
    },
    /// The layer has more bytes than the caller allows.
    #[error("a layer has more than {limit} uncompressed bytes: set HM_MAX_IMAGE_BYTES to allow more")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The layer has more entries than the caller allows.
    #[error("a layer has more than {limit} files")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// A file operation failed.
    #[error("failed to {doing}{}: {}", at("", .entry), io::Error::from_raw_os_error(*errno))]
    Io {
        /// The operation.
        doing: String,
        /// The entry, escaped and cut.
        entry: String,
        /// The system's error number.
        errno: i32,
    },
}

impl UnpackError {
    /// Returns an error that does not concern an entry.
    pub fn io(doing: &str, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error());
        Self::Io { doing: doing.into(), entry: String::new(), errno }
    }

    /// Returns the error of reading the archive.
    pub fn reading(error: &io::Error) -> Self {
        Fault::reading(error).at(b"")
    }
}

/// Formats the name of an entry for a message, if there is one.
fn at(before: &str, entry: &str) -> String {
    if entry.is_empty() { String::new() } else { format!("{before} `{entry}`") }
}

/// An error without the name of the affected entry.
#[derive(Debug)]
pub(super) enum Fault {
    Refused(String),
    Damaged(String),
    TooLarge(u64),
    Io(&'static str, io::Error),
}

impl Fault {
    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self::Refused(reason.into())
    }

    pub(super) fn damaged(reason: impl Into<String>) -> Self {
        Self::Damaged(reason.into())
    }

    /// Returns the fault of a failure to read the stream.
    pub(super) fn reading(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<TooLarge>()) {
            Some(TooLarge { limit }) => Self::TooLarge(*limit),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::damaged("it ends in the middle"),
            None => Self::damaged(error.to_string()),
        }
    }

    /// Returns the error with the entry's name.
    pub(super) fn at(self, path: &[u8]) -> UnpackError {
        let entry = shown(path);
        match self {
            Self::Refused(reason) => UnpackError::Refused { entry, reason },
            Self::Damaged(reason) => UnpackError::Damaged { entry, reason },
            Self::TooLarge(limit) => UnpackError::TooLarge { limit },
            Self::Io(doing, error) => match error.raw_os_error() {
                Some(errno) => UnpackError::Io { doing: doing.into(), entry, errno },
                None => UnpackError::Damaged { entry, reason: error.to_string() },
            },
        }
    }
}

/// Adds the operation to a failed file operation.
pub(super) trait ResultExt<T> {
    fn doing(self, doing: &'static str) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> ResultExt<T> for Result<T, E> {
    fn doing(self, doing: &'static str) -> Result<T, Fault> {
        self.map_err(|error| Fault::Io(doing, error.into()))
    }
}

/// Formats a name for display: control characters escaped, and no longer than a line.
pub(super) fn shown(name: &[u8]) -> String {
    let mut shown = String::new();
    for c in String::from_utf8_lossy(name).chars() {
        if shown.len() >= SHOWN_BYTES {
            shown.push('…');
            break;
        }
        if c.is_control() {
            // Writing to a string does not fail.
            let _ = write!(shown, "{}", c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}
