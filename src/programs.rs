//! Finding programs of this machine without ever finding one of the checkout that a user is working in.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Returns the program of this name in `PATH`: in its absolute directories, and in none of the checkout
/// around the working directory. A project must not decide what runs in the user's name by a file that
/// happens to be called like it.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let checkout = env::current_dir().ok().and_then(|dir| checkout(&dir, home().as_deref()));
    let is_inside = |dir: &Path| {
        checkout.as_ref().is_some_and(|checkout| dir.canonicalize().is_ok_and(|dir| dir.starts_with(checkout)))
    };
    env::split_paths(&path)
        .filter(|dir: &PathBuf| dir.is_absolute() && !is_inside(dir))
        .map(|dir| dir.join(name))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
}

fn home() -> Option<PathBuf> {
    env::var_os("HOME").and_then(|home| PathBuf::from(home).canonicalize().ok())
}

/// Returns the outermost directory around `dir` that is a repository or has pipelines, but for the home
/// directory and what holds it.
fn checkout(dir: &Path, home: Option<&Path>) -> Option<PathBuf> {
    let is_home = |dir: &Path| dir.parent().is_none() || home.is_some_and(|home| home.starts_with(dir));
    let above = dir.ancestors().take_while(|dir| !is_home(dir));
    above.filter(|dir| dir.join(".git").exists() || dir.join(".hm").exists()).last().map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_home_that_is_a_repository_is_no_checkout() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        for dir in ["home/.git", "home/project/.hm", "home/project/sub/deep", "elsewhere"] {
            fs::create_dir_all(top.join(dir)).unwrap();
        }
        let home = top.join("home");
        let of = |dir: &str| checkout(&top.join(dir), Some(&home)).filter(|found| found.starts_with(&top));
        assert_eq!(of("home/project/sub/deep"), Some(top.join("home/project")));
        assert_eq!(of("home"), None);
        assert_eq!(of("elsewhere"), None);
    }

    #[test]
    fn programs_are_found_by_their_names() {
        assert!(find("sh").is_some_and(|sh| sh.is_absolute()));
        assert_eq!(find("no-such-program-at-all"), None);
    }
}
