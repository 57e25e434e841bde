//! The errors of reading a project's file.

use std::{io, path::PathBuf};

use rustix::{fs::FileType, io::Errno};

/// The kind of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProjectFileErrorKind {
    /// There is no such file.
    Missing,
    /// The path leads out of the project.
    Outside,
    /// It is a directory, a FIFO, a device or a socket.
    NotRegular,
    /// The file is larger than the limit.
    TooLarge,
    /// It is not UTF-8.
    NotText,
    /// The system refuses to read it.
    Unreadable,
}

/// The reason why a project's file is not read. The text names the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct ProjectFileError {
    path: PathBuf,
    kind: ProjectFileErrorKind,
    reason: String,
    #[source]
    source: Option<io::Error>,
}

impl ProjectFileError {
    /// Returns the kind of the error.
    #[must_use]
    pub fn kind(&self) -> ProjectFileErrorKind {
        self.kind
    }

    /// Returns the file.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Returns the error and its remedy, without the file's name.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    fn new(path: PathBuf, kind: ProjectFileErrorKind, reason: impl Into<String>) -> Self {
        Self { path, kind, reason: reason.into(), source: None }
    }

    pub(super) fn outside(path: PathBuf) -> Self {
        let reason = "it is a link that leads out of the project; copy the file into the project";
        Self::new(path, ProjectFileErrorKind::Outside, reason)
    }

    pub(super) fn not_regular(path: PathBuf, found: FileType) -> Self {
        let what = match found {
            FileType::Directory => "a directory",
            FileType::Fifo => "a FIFO",
            FileType::Socket => "a socket",
            FileType::CharacterDevice | FileType::BlockDevice => "a device",
            _ => "not a regular file",
        };
        let reason = format!("it is {what}; replace it with a regular file, or remove it");
        Self::new(path, ProjectFileErrorKind::NotRegular, reason)
    }

    pub(super) fn too_large(path: PathBuf, limit: u64) -> Self {
        let limit = if limit >= 1 << 20 { format!("{} MiB", limit >> 20) } else { format!("{limit} bytes") };
        let reason = format!("it is larger than {limit}; make it smaller, or remove it");
        Self::new(path, ProjectFileErrorKind::TooLarge, reason)
    }

    pub(super) fn not_text(path: PathBuf) -> Self {
        Self::new(path, ProjectFileErrorKind::NotText, "it is not UTF-8; save it as UTF-8")
    }

    pub(super) fn of_errno(path: PathBuf, errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR => Self::new(path, ProjectFileErrorKind::Missing, "no such file or directory"),
            Errno::XDEV => Self::outside(path),
            // The errors of opening a socket, or a device without a driver.
            Errno::NXIO | Errno::NODEV => Self::not_regular(path, FileType::Unknown),
            Errno::LOOP => {
                let reason = "it is part of a loop of symbolic links; remove it";
                Self::new(path, ProjectFileErrorKind::Outside, reason)
            }
            errno => Self::of_io(path, errno.into()),
        }
    }

    pub(super) fn of_io(path: PathBuf, error: io::Error) -> Self {
        let reason = "failed to read it; check its permissions";
        Self { source: Some(error), ..Self::new(path, ProjectFileErrorKind::Unreadable, reason) }
    }
}
