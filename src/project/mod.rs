//! Reads the files that a project names, defensively: a checkout must not be able to hang `hm`, to exhaust
//! its memory, or to make it read files elsewhere.
//!
//! A [`ProjectDir`] is opened once, and every lookup is below it. It reads only regular files, up to a limit,
//! and never through a symbolic link that leads out of the directory. [`ProjectFileError`] names the file and
//! the remedy.

mod beneath;
mod checkout;
mod error;
mod gitdir;
mod plain;
mod revision;

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{self, Dir, FileType, Mode, OFlags},
    io::Errno,
};

pub(crate) use checkout::{OUT, repository_above};
pub use checkout::{checkout, has_only_outputs, is_own};
pub use error::{ProjectFileError, ProjectFileErrorKind};
pub(crate) use gitdir::{common_dir, git_dir};
pub(crate) use plain::read_plain;
pub use revision::Revision;

/// The maximum size of a configuration file such as `.hm/hm.toml` or `.git/config`, in bytes.
pub const CONFIG_BYTES: u64 = 1 << 20;
/// The maximum size of a pipeline's definition, in bytes.
pub const PIPELINE_BYTES: u64 = 256 << 20;

/// `NONBLOCK`: a FIFO can be opened without a writer. `NOCTTY`: no terminal becomes the controlling one.
const FILE_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The open top directory of a project.
///
/// # Examples
/// ```
/// use hm_exec::project::{CONFIG_BYTES, ProjectDir};
///
/// let project = ProjectDir::open(".")?;
/// assert!(project.read_text("Cargo.toml", CONFIG_BYTES)?.contains("[package]"));
/// assert!(project.read("../elsewhere", CONFIG_BYTES).is_err());
/// # Ok::<(), hm_exec::project::ProjectFileError>(())
/// ```
#[derive(Debug)]
pub struct ProjectDir {
    path: PathBuf,
    dir: OwnedFd,
}

impl ProjectDir {
    /// Opens the top directory. The path comes from the caller, so links in it are followed.
    ///
    /// # Errors
    /// Returns an error if the path is not a directory, or cannot be opened.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, ProjectFileError> {
        let path = path.into();
        match fs::open(&path, DIR_FLAGS, Mode::empty()) {
            Ok(dir) => Ok(Self { path, dir }),
            Err(errno) => Err(ProjectFileError::of_errno(path, errno)),
        }
    }

    /// Returns the directory's path, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a regular file of at most `limit` bytes for reading. `path` is relative to the project, or an
    /// absolute path that begins with the project's own.
    ///
    /// A file may grow while it is read; [`read`](Self::read) enforces the limit in that case, too.
    ///
    /// # Errors
    /// Returns an error if the path leads out of the project, or to anything but a regular file of that size.
    pub fn open_file(&self, path: impl AsRef<Path>, limit: u64) -> Result<File, ProjectFileError> {
        let (inside, shown) = self.resolve(path.as_ref())?;
        let file = beneath::open(&self.dir, &inside, FILE_FLAGS)
            .map_err(|errno| ProjectFileError::of_errno(shown.clone(), errno))?;
        let stat = fs::fstat(&file).map_err(|errno| ProjectFileError::of_errno(shown.clone(), errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            other => return Err(ProjectFileError::not_regular(shown, other)),
        }
        if u64::try_from(stat.st_size).is_ok_and(|size| size > limit) {
            return Err(ProjectFileError::too_large(shown, limit));
        }
        Ok(File::from(file))
    }

    /// Reads a whole regular file of at most `limit` bytes.
    ///
    /// # Errors
    /// Returns the errors of [`open_file`](Self::open_file), and one if reading fails.
    pub fn read(&self, path: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>, ProjectFileError> {
        let path = path.as_ref();
        let file = self.open_file(path, limit)?;
        let shown = || self.path.join(path);
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| ProjectFileError::of_io(shown(), error))?;
        if bytes.len() as u64 > limit {
            return Err(ProjectFileError::too_large(shown(), limit));
        }
        Ok(bytes)
    }

    /// Reads a file as text.
    ///
    /// # Errors
    /// Returns the errors of [`read`](Self::read), and one if the file is not UTF-8.
    pub fn read_text(&self, path: impl AsRef<Path>, limit: u64) -> Result<String, ProjectFileError> {
        let path = path.as_ref();
        let bytes = self.read(path, limit)?;
        String::from_utf8(bytes).map_err(|_| ProjectFileError::not_text(self.path.join(path)))
    }

    /// Reads an optional file. Returns `None` if it, or a directory on the path to it, does not exist.
    ///
    /// # Errors
    /// Returns the other errors of [`read_text`](Self::read_text).
    pub fn read_text_if_any(&self, path: impl AsRef<Path>, limit: u64) -> Result<Option<String>, ProjectFileError> {
        match self.read_text(path, limit) {
            Err(error) if error.kind() == ProjectFileErrorKind::Missing => Ok(None),
            read => read.map(Some),
        }
    }

    /// Returns the names of a directory's entries, sorted.
    ///
    /// # Errors
    /// Returns an error if the path leads out of the project, or is not a directory.
    pub fn names(&self, dir: impl AsRef<Path>) -> Result<Vec<OsString>, ProjectFileError> {
        let (inside, shown) = self.resolve(dir.as_ref())?;
        let failed = |errno| ProjectFileError::of_errno(shown.clone(), errno);
        let dir = beneath::open(&self.dir, &inside, DIR_FLAGS).map_err(failed)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir).map_err(failed)? {
            let name = OsStr::from_bytes(entry.map_err(failed)?.file_name().to_bytes()).to_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Returns the path below the project, and the path to display.
    fn resolve(&self, path: &Path) -> Result<(PathBuf, PathBuf), ProjectFileError> {
        let shown = self.path.join(path);
        let inside = if path.is_absolute() {
            match path.strip_prefix(&self.path) {
                Ok(inside) => inside,
                Err(_) => return Err(ProjectFileError::outside(shown)),
            }
        } else {
            path
        };
        if inside.as_os_str().as_bytes().contains(&0) {
            return Err(ProjectFileError::of_io(shown, io::Error::from(Errno::INVAL)));
        }
        let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
        debug_assert!(!inside.components().any(|part| matches!(part, Component::RootDir)), "{inside:?}");
        Ok((inside.to_owned(), shown))
    }
}

#[cfg(test)]
mod tests;
