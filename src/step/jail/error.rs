//! The errors of making a jail.

use std::{fmt, io};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// An operation of the jail that the kernel refused.
///
/// `Display` completes "failed to ...": the operation, its object, and the kernel's error message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupError {
    /// The operation, as in "mount /proc".
    pub doing: String,
    /// The system's error number.
    pub errno: i32,
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for SetupError {}

impl SetupError {
    pub(crate) fn new(doing: impl Into<String>, errno: Errno) -> Self {
        Self { doing: doing.into(), errno: errno.raw_os_error() }
    }
}

/// Adds the name of the failed operation to an error.
pub(crate) trait ResultExt<T> {
    /// Converts the error; `what` completes "failed to ...".
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, SetupError>;
}

impl<T> ResultExt<T> for Result<T, Errno> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, SetupError> {
        self.map_err(|errno| SetupError::new(what(), errno))
    }
}

impl<T> ResultExt<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, SetupError> {
        self.map_err(|error| SetupError { doing: what(), errno: error.raw_os_error().unwrap_or(libc::EIO) })
    }
}
