//! The files in which git may keep credentials, anywhere in a project: checkouts made by continuous
//! integration have a token in them.
//!
//! What git needs to describe commits, branches and tags (`git describe`) stays visible. Everything else in a
//! repository is hidden, so that this module need not know which of its files may contain a token. The whole
//! project is searched for repositories: submodules, worktrees and nested checkouts have configurations of
//! their own.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// Files of a repository that state only which commit a name refers to.
const SHOWN: [&[u8]; 11] = [
    b"HEAD",
    b"MERGE_HEAD",
    b"ORIG_HEAD",
    b"CHERRY_PICK_HEAD",
    b"REVERT_HEAD",
    b"commondir",
    b"description",
    b"gitdir",
    b"index",
    b"packed-refs",
    b"shallow",
];

/// Directories of a repository that contain only the project's content and names.
const OF_CONTENT: [&[u8]; 4] = [b"objects", b"refs", b"info", b"rr-cache"];
/// Directories of git extensions that contain thousands of files of the project, in `objects`.
const STORES: [&[u8]; 2] = [b"annex", b"lfs"];

/// The maximum size of a reflog that is read. A larger one is hidden.
const MAX_LOG_BYTES: u64 = 4 << 20;

/// The role of a directory in git.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Not part of a repository.
    Project,
    /// A repository, or a directory in one about which nothing is known.
    Repository,
    /// Reflogs. There may be thousands: one for each branch.
    Logs,
    /// One of [`STORES`].
    Store,
}

/// Returns the files below `project` that may contain git credentials.
pub(super) fn find(project: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![(project.to_path_buf(), Part::Project)];
    while let Some((dir, part)) = dirs.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?,
            // A pipeline cannot list what this user cannot list, or what has been removed meanwhile.
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(error),
        };
        let has = |name: &str| entries.iter().any(|entry| entry.file_name() == name);
        let is_repository = has("HEAD") && has("objects") && has("refs");
        let part = if part == Part::Project && is_repository { Part::Repository } else { part };
        for entry in &entries {
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.as_bytes();
            let is_dir = entry.file_type()?.is_dir();
            match part {
                Part::Project if is_dir => {
                    let part = if name == b".git" { Part::Repository } else { Part::Project };
                    dirs.push((path, part));
                }
                Part::Project => {}
                // A submodule may have the same name as one of them, but has no `HEAD` next to it.
                Part::Repository if is_dir && has("HEAD") && OF_CONTENT.contains(&name) => {}
                Part::Repository if is_dir && has("HEAD") && name == b"logs" => dirs.push((path, Part::Logs)),
                Part::Repository if is_dir && has("HEAD") && STORES.contains(&name) => dirs.push((path, Part::Store)),
                Part::Store if is_dir && name == b"objects" => {}
                Part::Store if is_dir => dirs.push((path, Part::Repository)),
                Part::Repository | Part::Logs if is_dir => dirs.push((path, part)),
                Part::Repository if SHOWN.contains(&name) || name.ends_with(b".sample") => {}
                Part::Repository | Part::Store => found.push(path),
                Part::Logs if names_an_address(&path)? => found.push(path),
                Part::Logs => {}
            }
        }
    }
    Ok(found)
}

/// Returns whether a reflog contains a URL: `git pull https://TOKEN@HOST/` is recorded as it was typed.
fn names_an_address(log: &Path) -> io::Result<bool> {
    let mut text = Vec::new();
    match File::open(log).and_then(|file| file.take(MAX_LOG_BYTES + 1).read_to_end(&mut text)) {
        Ok(_) => Ok(text.len() as u64 > MAX_LOG_BYTES || text.windows(3).any(|three| three == b"://")),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotADirectory | NotFound | PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_every_repository_only_what_names_commits_is_shown() {
        let top = tempfile::tempdir().unwrap();
        let files = [
            ("src/config", false),
            (".git/HEAD", false),
            (".git/packed-refs", false),
            (".git/refs/heads/config", false),
            (".git/objects/pack/x.pack", false),
            (".git/hooks/pre-push.sample", false),
            (".git/logs/HEAD", false),
            (".git/logs/refs/heads/main", true),
            (".git/config", true),
            (".git/config.worktree", true),
            (".git/FETCH_HEAD", true),
            (".git/hooks/pre-push", true),
            (".git/lfs/objects/ab/x", false),
            (".git/lfs/logs/x.log", true),
            (".git/worktrees/w/HEAD", false),
            (".git/worktrees/w/config.worktree", true),
            (".git/modules/a/HEAD", false),
            (".git/modules/a/config", true),
            (".git/modules/a/modules/b/c/config", true),
            (".git/modules/objects/config", true),
            ("vendor/x/.git/config", true),
            ("vendor/bare/HEAD", false),
            ("vendor/bare/objects/x", false),
            ("vendor/bare/refs/x", false),
            ("vendor/bare/config", true),
            ("vendor/y/.git", false),
        ];
        for (file, _) in files {
            let path = top.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text = if file.ends_with("heads/main") { "pull https://t0ken@host/: x" } else { "a b <c@d> x" };
            fs::write(path, text).unwrap();
        }
        let mut found = find(top.path()).unwrap();
        found.sort();
        let mut expected: Vec<_> =
            files.iter().filter(|(_, is_secret)| *is_secret).map(|(file, _)| top.path().join(file)).collect();
        expected.sort();
        assert_eq!(found, expected);
    }
}
