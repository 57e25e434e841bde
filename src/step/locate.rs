//! Locates the `hm-step` executable for other machines.

use std::{
    borrow::Cow,
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::{built_in::BUILT_IN, elf::is_static};

/// The environment variable that names the executable. Only the caller's path takes precedence over it.
pub const STEP_VARIABLE: &str = "HM_STEP";

/// The file name of the executable in the directory of `hm`.
const NAME: &str = "hm-step";

/// An `hm-step` executable for other machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepProgram {
    /// The path, or `None` for the one that is part of this program.
    path: Option<PathBuf>,
    is_static: bool,
}

impl StepProgram {
    /// Returns whether it runs on machines without libraries. If not, it runs on machines with the same
    /// libraries as this one.
    #[must_use]
    pub fn is_static(&self) -> bool {
        self.is_static
    }

    /// Returns its path, or `None` for the executable that is part of this program.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Returns its bytes. Reads the file, if it is one.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub fn bytes(&self) -> io::Result<Cow<'static, [u8]>> {
        match &self.path {
            Some(path) => fs::read(path).map(Cow::Owned),
            None => Ok(Cow::Borrowed(BUILT_IN.unwrap_or_default())),
        }
    }
}

impl fmt::Display for StepProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => path.display().fmt(f),
            None => f.write_str("the hm-step in hm"),
        }
    }
}

/// The reason why there is no `hm-step`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoStepProgram {
    /// No path is given, none is part of this program, and there is none in its directory.
    #[error("no hm-step: {why}; set {STEP_VARIABLE} to a static one, or build hm with --release")]
    Missing {
        /// The reason why none is part of this program.
        why: &'static str,
    },
    /// The file cannot be read.
    #[error("failed to read {}", path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not a 64-bit ELF file.
    #[error("{} is not a 64-bit ELF file: name a static hm-step", path.display())]
    NoProgram {
        /// The path.
        path: PathBuf,
    },
}

/// Locates `hm-step`: at the given path, at the path in the environment, in this program, or in the directory
/// of this executable.
///
/// # Errors
/// Returns an error if there is none, or if the file is not an executable.
pub fn locate(given: Option<&Path>) -> Result<StepProgram, NoStepProgram> {
    let named = || std::env::var_os(STEP_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    let beside = || {
        let beside = std::env::current_exe().ok()?.parent()?.join(NAME);
        beside.is_file().then_some(beside)
    };
    let path = match (given.map(PathBuf::from).or_else(named), BUILT_IN) {
        (Some(path), _) => path,
        // The build script has checked that it is static.
        (None, Ok(_)) => return Ok(StepProgram { path: None, is_static: true }),
        (None, Err(why)) => beside().ok_or(NoStepProgram::Missing { why })?,
    };
    match File::open(&path).and_then(is_static) {
        Ok(Some(is_static)) => Ok(StepProgram { path: Some(path), is_static }),
        Ok(None) => Err(NoStepProgram::NoProgram { path }),
        Err(source) => Err(NoStepProgram::Unreadable { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_what_counts() {
        let error = locate(Some(Path::new("/nowhere/hm-step"))).unwrap_err();
        assert!(matches!(&error, NoStepProgram::Unreadable { .. }), "{error}");
        let error = locate(Some(Path::new("/proc/self/status"))).unwrap_err();
        assert!(error.to_string().contains("not a 64-bit ELF file"), "{error}");
        // The test is not an `hm-step`, but it is linked like every program of this machine.
        let this = std::env::current_exe().unwrap();
        let program = locate(Some(&this)).unwrap();
        assert_eq!(program.path(), Some(&*this));
        assert_eq!(program.bytes().unwrap(), fs::read(&this).unwrap());
    }
}
