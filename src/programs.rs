//! Finds programs of this machine, but never one in the checkout that the user is working in.

use std::ffi::OsString;
use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
};

use crate::project::checkout;

/// Returns the program of this name in `PATH`. Searches only absolute directories, and none in the checkout
/// around the working directory: a project must not be able to run code as the user through a file that
/// happens to have the name of a program.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    directories(&path).into_iter().map(|dir| dir.join(name)).find(|path| is_program(path))
}

/// Returns `PATH` without the directories that [`find`] skips, for a program that looks for others.
#[must_use]
pub fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(directories(&path)).unwrap_or_default()
}

fn directories(path: &OsStr) -> Vec<PathBuf> {
    let checkout = env::current_dir().ok().and_then(|dir| checkout(&dir));
    let is_inside = |dir: &Path| {
        checkout.as_ref().is_some_and(|checkout| dir.canonicalize().is_ok_and(|dir| dir.starts_with(checkout)))
    };
    env::split_paths(path).filter(|dir| dir.is_absolute() && !is_inside(dir)).collect()
}

fn is_program(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_their_names() {
        assert!(find("sh").is_some_and(|sh| sh.is_absolute()));
        assert_eq!(find("no-such-program-at-all"), None);
    }
}
