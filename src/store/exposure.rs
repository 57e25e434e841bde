//! Detects a store that other users can access, and closes it to them.
//!
//! Everything that the store creates is accessible to its owner only. Files of an earlier version, and files
//! that a person made accessible, are closed when the store is opened: every entry directly in the store's
//! directory, and the directory itself if it contains nothing but the store. Deeper entries are then
//! unreachable.

use std::{
    fs::{self, Metadata, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{StoreError, error::IoContext};
use crate::quote::quote;

/// The entries of a store's directory. A name is either one of these or begins with one of them.
const OWN: [&str; 20] = [
    "boot",
    "dsl",
    "format",
    "gc.lock",
    "index.",
    "last-runs",
    "layers",
    "locks",
    "logs",
    "pulling",
    "remote-",
    "reserve",
    "runs",
    "secret",
    "snapshots",
    "sources",
    "stat",
    "tmp",
    "vm",
    "workspaces",
];

/// How other users can access a store.
///
/// `Display` is a sentence that begins with the path of the directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Exposure {
    /// The store belongs to another user, who can read and change the filesystems of steps.
    #[error("the store at {} belongs to user {owner}, who can change cached results", dir.display())]
    Owner {
        /// The store.
        dir: PathBuf,
        /// The other user's id.
        owner: u32,
    },
    /// Other users can enter the store's directory.
    #[error("other users have access to the store at {} (mode {mode:04o})", dir.display())]
    Open {
        /// The store.
        dir: PathBuf,
        /// The directory's mode.
        mode: u32,
    },
    /// Other users could enter the store's directory until now.
    #[error("other users had access to the store at {} (mode {mode:04o}); hm has removed their access", dir.display())]
    Closed {
        /// The store.
        dir: PathBuf,
        /// The directory's previous mode.
        mode: u32,
    },
}

impl Exposure {
    /// Checks whether other users can access the store at `dir`, without changing anything. A store that does
    /// not exist counts as closed.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be examined.
    pub fn of(dir: &Path) -> Result<Option<Self>, StoreError> {
        match fs::metadata(dir) {
            Ok(metadata) => Ok(found(dir, &metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("look at", dir, error)),
        }
    }

    /// Returns a command or an instruction that closes the exposure, or `None` if nothing is left to do.
    #[must_use]
    pub fn mended_by(&self) -> Option<String> {
        match self {
            Self::Owner { .. } => Some("set HM_CACHE_DIR to a directory of your own".into()),
            Self::Open { dir, .. } => Some(format!("chmod 700 {}", quote(&dir.to_string_lossy()))),
            Self::Closed { .. } => None,
        }
    }
}

/// Returns how other users can access a directory with this metadata.
fn found(dir: &Path, metadata: &Metadata) -> Option<Exposure> {
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Some(Exposure::Owner { dir: dir.into(), owner: metadata.uid() });
    }
    let mode = metadata.mode() & 0o7777;
    (mode & 0o077 != 0).then(|| Exposure::Open { dir: dir.into(), mode })
}

/// Closes the store at `dir` to other users, as far as this user owns it. Returns how they could access it.
pub(super) fn close(dir: &Path) -> Result<Option<Exposure>, StoreError> {
    let found = found(dir, &fs::metadata(dir).doing("look at", dir)?);
    let me = rustix::process::geteuid().as_raw();
    let mut only_ours = true;
    for entry in fs::read_dir(dir).doing("list", dir)? {
        let entry = entry.doing("list", dir)?;
        let name = entry.file_name();
        if !OWN.iter().any(|own| name.as_encoded_bytes().starts_with(own.as_bytes())) {
            only_ours = false;
            continue;
        }
        // Another process may have removed the entry.
        let Ok(metadata) = entry.metadata() else { continue };
        let wanted = match metadata.file_type() {
            kind if kind.is_dir() => 0o700,
            kind if kind.is_file() => 0o600,
            _ => continue,
        };
        if metadata.uid() == me && metadata.mode() & 0o077 != 0 {
            set_mode(&entry.path(), wanted);
        }
    }
    match found {
        // A directory that also contains files of others was not created for the store.
        Some(Exposure::Open { dir, mode }) if only_ours && mode & 0o1000 == 0 && set_mode(&dir, 0o700) => {
            // A directory that never was a store needs no report.
            Ok(dir.join("format").exists().then_some(Exposure::Closed { dir, mode }))
        }
        found => Ok(found),
    }
}

fn set_mode(path: &Path, mode: u32) -> bool {
    let set = fs::set_permissions(path, Permissions::from_mode(mode));
    if let Err(error) = &set {
        tracing::debug!(%error, path = %path.display(), "failed to remove other users' access");
    }
    // Some filesystems do not support modes and ignore the change without an error.
    set.is_ok() && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.mode() & 0o077 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn open_up(path: &Path, to: u32) {
        fs::set_permissions(path, Permissions::from_mode(to)).unwrap();
    }

    #[test]
    fn an_open_store_is_closed_and_that_is_told_once() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("store");
        drop(Store::open(&dir).unwrap());
        open_up(&dir, 0o755);
        for name in ["index.db", "layers", "format"] {
            open_up(&dir.join(name), if name == "layers" { 0o777 } else { 0o644 });
        }
        assert!(matches!(Exposure::of(&dir).unwrap(), Some(Exposure::Open { mode: 0o755, .. })));
        let store = Store::open(&dir).unwrap();
        assert!(matches!(store.exposure(), Some(Exposure::Closed { mode: 0o755, .. })));
        for (name, wanted) in [("", 0o700), ("index.db", 0o600), ("layers", 0o700), ("format", 0o600)] {
            assert_eq!(mode(&dir.join(name)), wanted, "{name}");
        }
        drop(store);
        assert_eq!(Store::open(&dir).unwrap().exposure(), None);
        assert_eq!(Exposure::of(&dir).unwrap(), None);
        assert_eq!(Exposure::of(&top.path().join("none")).unwrap(), None);
    }

    #[test]
    fn a_directory_that_has_other_files_or_is_everybodys_stays_as_it_is() {
        for (mode_before, other) in [(0o755, Some("notes.txt")), (0o1777, None)] {
            let dir = tempfile::tempdir().unwrap();
            open_up(dir.path(), mode_before);
            if let Some(name) = other {
                fs::write(dir.path().join(name), "").unwrap();
            }
            let store = Store::open(dir.path()).unwrap();
            assert!(matches!(store.exposure(), Some(Exposure::Open { .. })), "{mode_before:o}");
            assert_eq!((mode(dir.path()), mode(&dir.path().join("layers"))), (mode_before, 0o700));
        }
    }
}
