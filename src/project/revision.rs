//! The branch and the commit of a checkout, read from files. Git is never run, because a checkout's
//! configuration may name programs for it to run.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use super::{common_dir, git_dir, read_plain, repository_above};

/// More than the size of any file with the name of one branch or commit.
const MAX_REF_BYTES: u64 = 8 << 10;
/// The maximum size of a list of all branches, in bytes.
const MAX_PACKED_BYTES: u64 = 64 << 20;

/// The state of a checkout.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Revision {
    /// The branch. `None` if no branch is checked out.
    pub branch: Option<String>,
    /// The commit. `None` if there is none yet, or if it cannot be determined.
    pub commit: Option<String>,
    /// The branch that `origin` builds by default.
    pub default_branch: Option<String>,
}

impl Revision {
    /// Returns the revision of the checkout that contains `dir`. What cannot be determined is left out.
    /// Blocks while a few small files are read.
    #[must_use]
    pub fn of_checkout(dir: &Path) -> Self {
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let Some(top) = repository_above(&dir) else { return Self::default() };
        Self::read(top).unwrap_or_else(|error| {
            tracing::debug!(%error, "failed to read the branch and the commit of the source");
            Self::default()
        })
    }

    fn read(top: &Path) -> io::Result<Self> {
        let git = top.join(".git");
        let (own, common) = (git_dir(top, &git)?, common_dir(top, &git)?);
        let head = read_ref(&own, Path::new("HEAD"))?;
        let (branch, commit) = match head {
            Some(Ref::Commit(commit)) => (None, Some(commit)),
            Some(Ref::Name(name)) => {
                let branch = name.strip_prefix("refs/heads/").filter(|branch| *branch != ".invalid");
                (branch.map(Into::into), find_commit(&own, &common, &name)?)
            }
            None => (None, None),
        };
        let default = match read_ref(&common, Path::new("refs/remotes/origin/HEAD"))? {
            Some(Ref::Name(name)) => name.strip_prefix("refs/remotes/origin/").map(Into::into),
            _ => None,
        };
        Ok(Self { branch, commit, default_branch: default })
    }
}

/// The content of a file that names a commit.
enum Ref {
    Commit(String),
    /// The name of another such file.
    Name(String),
}

fn read_ref(dir: &Path, name: &Path) -> io::Result<Option<Ref>> {
    let Some(text) = read_plain(&dir.join(name), MAX_REF_BYTES)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    Ok(match text.strip_prefix("ref:") {
        Some(name) => Some(Ref::Name(name.trim().to_owned())),
        None => is_commit(text).then(|| Ref::Commit(text.to_owned())),
    })
}

/// Returns the commit that a branch is at: from its own file, else from the list of all.
fn find_commit(own: &Path, common: &Path, name: &str) -> io::Result<Option<String>> {
    let path = PathBuf::from(OsStr::from_bytes(name.as_bytes()));
    if !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(None);
    }
    for dir in [own, common] {
        if let Some(Ref::Commit(commit)) = read_ref(dir, &path)? {
            return Ok(Some(commit));
        }
    }
    let Some(packed) = read_plain(&common.join("packed-refs"), MAX_PACKED_BYTES)? else { return Ok(None) };
    let packed = String::from_utf8_lossy(&packed);
    let mut lines = packed.lines().filter_map(|line| line.split_once(' '));
    let found = lines.find(|(commit, known)| *known == name && is_commit(commit));
    Ok(found.map(|(commit, _)| commit.to_owned()))
}

/// Returns whether a text is a commit's id: SHA-1 or SHA-256.
fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    fn git(dir: &Path, args: &[&str]) -> String {
        let base = ["-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "init.defaultBranch=main"];
        let output = Command::new("git")
            .args(base)
            .args(args)
            .current_dir(dir)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn the_revision_is_what_git_says_in_every_kind_of_checkout() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("a");
        fs::create_dir(&dir).unwrap();
        assert_eq!(Revision::of_checkout(&dir), Revision::default());
        git(&dir, &["init", "-q"]);
        let branch = |name: &str| Some(name.to_owned());
        assert_eq!(Revision::of_checkout(&dir), Revision { branch: branch("main"), ..Revision::default() });
        git(&dir, &["commit", "-q", "--allow-empty", "-m", "one"]);
        let first = Some(git(&dir, &["rev-parse", "HEAD"]));
        let of = |dir: &Path| {
            let Revision { branch, commit, .. } = Revision::of_checkout(dir);
            (branch, commit)
        };
        assert_eq!(of(&dir), (branch("main"), first.clone()));
        git(&dir, &["checkout", "-q", "-b", "topic/x"]);
        git(&dir, &["pack-refs", "--all"]);
        assert_eq!(of(&dir), (branch("topic/x"), first.clone()));
        git(&dir, &["checkout", "-q", "--detach"]);
        assert_eq!(of(&dir), (None, first.clone()));
        git(&dir, &["worktree", "add", "-q", "../b", "main"]);
        assert_eq!(of(&top.path().join("b")), (branch("main"), first.clone()));
        git(top.path(), &["clone", "-q", "b", "d"]);
        let cloned = Revision::of_checkout(&top.path().join("d"));
        assert_eq!((cloned.commit, cloned.default_branch), (first, branch("main")));
    }

    #[test]
    fn a_hostile_checkout_names_no_file_outside() {
        let top = tempfile::tempdir().unwrap();
        let git = top.path().join(".git");
        fs::create_dir(&git).unwrap();
        fs::write(top.path().join("secret"), "a".repeat(40)).unwrap();
        for name in ["../secret", "/etc/hostname", "refs/heads/../../../secret", ""] {
            fs::write(git.join("HEAD"), format!("ref: {name}\n")).unwrap();
            assert_eq!(Revision::of_checkout(top.path()).commit, None, "{name}");
        }
        fs::write(git.join("HEAD"), [0xff; 100]).unwrap();
        assert_eq!(Revision::of_checkout(top.path()), Revision::default());
    }
}
