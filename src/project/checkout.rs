//! The directories of one checkout. Nothing in them is an instruction of the user, and nothing in them is
//! executed on the user's behalf.

use std::{
    env,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Returns the outermost directory around `dir` that is a repository or has pipelines, except for the home
/// directory and its parents. The outermost is used because a checkout can contain other repositories.
#[must_use]
pub fn checkout(dir: &Path) -> Option<PathBuf> {
    let home = env::var_os("HOME").and_then(|home| PathBuf::from(home).canonicalize().ok());
    checkout_below(dir, home.as_deref())
}

fn checkout_below(dir: &Path, home: Option<&Path>) -> Option<PathBuf> {
    let is_home = |dir: &Path| dir.parent().is_none() || home.is_some_and(|home| home.starts_with(dir));
    let above = dir.ancestors().take_while(|dir| !is_home(dir));
    above.filter(|dir| dir.join(".git").exists() || is_hm_dir(&dir.join(".hm"))).last().map(Path::to_path_buf)
}

fn is_hm_dir(path: &Path) -> bool {
    path.exists() && !has_only_outputs(path)
}

/// The directory in `.hm` of the outputs of steps.
pub(crate) const OUT: &str = "out";

/// Returns whether a `.hm` directory has nothing but `out`, which a run has made for the outputs of its
/// steps. It is no project's.
#[must_use]
pub fn has_only_outputs(hm_dir: &Path) -> bool {
    let Ok(mut entries) = hm_dir.read_dir() else { return false };
    let first = entries.next();
    first.is_some_and(|entry| entry.is_ok_and(|entry| entry.file_name() == OUT)) && entries.next().is_none()
}

/// Returns whether `path` exists and belongs to this user, to root, or to the owner of `dir`. In a directory
/// that all users may write to, another user can put a repository or pipelines above `dir`.
#[must_use]
pub fn is_own(path: &Path, dir: &Path) -> bool {
    let user = rustix::process::geteuid().as_raw();
    let owner = dir.metadata().map_or(user, |dir| dir.uid());
    path.symlink_metadata().is_ok_and(|path| [user, owner, 0].contains(&path.uid()))
}

/// Returns the top of the repository that contains `dir`. Repositories of other users in directories above
/// are ignored.
pub(crate) fn repository_above(dir: &Path) -> Option<&Path> {
    dir.ancestors().find(|top| is_own(&top.join(".git"), dir))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_outermost_repository_is_the_checkout_but_no_home() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        for dir in ["home/.git", "home/project/.hm", "home/project/sub/.git", "home/project/sub/deep", "elsewhere"] {
            fs::create_dir_all(top.join(dir)).unwrap();
        }
        let home = top.join("home");
        let of = |dir: &str| checkout_below(&top.join(dir), Some(&home)).filter(|found| found.starts_with(&top));
        assert_eq!(of("home/project/sub/deep"), Some(top.join("home/project")));
        assert_eq!(of("home"), None);
        assert_eq!(of("elsewhere"), None);
    }
}
