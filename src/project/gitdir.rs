//! Locates a repository's own files.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::read_plain;

/// The maximum size of a `.git` file, in bytes: more than a path has.
const MAX_LINK_BYTES: u64 = 8 << 10;

/// Returns the directory with the `HEAD` of the checkout whose top is `top` and whose `.git` is `git`. In
/// worktrees and submodules, `.git` is a file that names another directory.
pub(crate) fn git_dir(top: &Path, git: &Path) -> io::Result<PathBuf> {
    if fs::metadata(git).is_ok_and(|git| git.is_dir()) {
        return Ok(git.to_owned());
    }
    let named = read_plain(git, MAX_LINK_BYTES)?.unwrap_or_default();
    let Some(dir) = named.strip_prefix(b"gitdir:") else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{}: missing `gitdir:`", git.display())));
    };
    Ok(top.join(OsStr::from_bytes(dir.trim_ascii())))
}

/// Returns the directory with the `config` and the `info` of the repository whose top is `top` and whose
/// `.git` is `git`. Worktrees share it.
pub(crate) fn common_dir(top: &Path, git: &Path) -> io::Result<PathBuf> {
    let dir = git_dir(top, git)?;
    if dir == git {
        return Ok(dir);
    }
    match read_plain(&dir.join("commondir"), MAX_LINK_BYTES)? {
        Some(common) => Ok(dir.join(OsStr::from_bytes(common.trim_ascii()))),
        None => Ok(dir),
    }
}
