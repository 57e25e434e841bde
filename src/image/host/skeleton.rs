//! The directories of a step's root besides those of the system.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{HostDir, SYSTEM};
use crate::{
    store::{StoreError, error::IoContext, files::make_dir},
    tree,
};

/// Empty directories, with these modes.
const EMPTY: [(&str, u32); 14] = [
    ("root", 0o700),
    ("home", 0o755),
    ("tmp", 0o1777),
    ("run", 0o755),
    ("run/lock", 0o1777),
    ("workspace", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("mnt", 0o755),
    ("media", 0o755),
    ("srv", 0o755),
    ("var", 0o755),
    ("boot", 0o755),
];

/// Small state of package scripts, which is copied. Without it they consider the system incompletely
/// installed.
const STATE: [&str; 14] = [
    "var/lib/alternatives",
    "var/lib/ca-certificates-java",
    "var/lib/dictionaries-common",
    "var/lib/emacsen-common",
    "var/lib/gems",
    "var/lib/misc",
    "var/lib/pam",
    "var/lib/python",
    "var/lib/sgml-base",
    "var/lib/shells.state",
    "var/lib/systemd/deb-systemd-helper-enabled",
    "var/lib/ucf",
    "var/lib/vim",
    "var/lib/xml-core",
];

/// Only small state is copied: these limits apply to each entry of [`STATE`].
const MAX_STATE_FILES: u32 = 512;
const MAX_STATE_BYTES: u64 = 1 << 20;

/// Creates the skeleton at `skeleton`.
pub(super) fn make(machine: &Path, skeleton: &Path, dirs: &[HostDir]) -> Result<(), StoreError> {
    let empty = |path: &Path, mode| {
        make_dir(path)?;
        fs::set_permissions(path, Permissions::from_mode(mode)).doing("set the mode of", path)
    };
    empty(skeleton, 0o755)?;
    for (name, mode) in EMPTY {
        empty(&skeleton.join(name), mode)?;
    }
    let (mark, content) = tree::CONTAINER_MARK;
    let mark = skeleton.join(mark);
    fs::write(&mark, content).doing("write", &mark)?;
    fs::set_permissions(&mark, Permissions::from_mode(0o644)).doing("set the mode of", &mark)?;
    for name in SYSTEM {
        if let Ok(target) = fs::read_link(machine.join(name)) {
            link(&target, &skeleton.join(name))?;
        }
    }
    mirror(machine, skeleton, Path::new("var"))?;
    for name in ["var/lib", "var/cache", "var/log", "var/spool"] {
        mirror(machine, skeleton, Path::new(name))?;
    }
    empty(&skeleton.join("var/tmp"), 0o1777)?;
    for name in STATE {
        copy_state(&machine.join(name), &skeleton.join(name))?;
    }
    for dir in dirs {
        let mut path = skeleton.to_path_buf();
        for part in dir.path.components() {
            path.push(part);
            if !path.is_dir() {
                empty(&path, 0o755)?;
            }
        }
    }
    Ok(())
}

/// Recreates the links and, empty, the directories of the machine's `dir`, because packages expect them.
fn mirror(machine: &Path, skeleton: &Path, dir: &Path) -> Result<(), StoreError> {
    let made = skeleton.join(dir);
    if !made.is_dir() {
        make_dir(&made)?;
        fs::set_permissions(&made, Permissions::from_mode(0o755)).doing("set the mode of", &made)?;
    }
    // A directory that cannot be listed is not needed: it stays empty.
    let Ok(entries) = fs::read_dir(machine.join(dir)) else { return Ok(()) };
    for entry in entries.flatten() {
        let (from, to) = (entry.path(), made.join(entry.file_name()));
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_symlink() {
            link(&fs::read_link(&from).doing("read", &from)?, &to)?;
        } else if metadata.is_dir() {
            make_dir(&to)?;
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::chown(&to, Some(metadata.uid()), Some(metadata.gid())).doing("own", &to)?;
            }
            fs::set_permissions(&to, Permissions::from_mode(metadata.mode() & 0o7777)).doing("set the mode of", &to)?;
        }
    }
    Ok(())
}

fn link(target: &Path, path: &Path) -> Result<(), StoreError> {
    std::os::unix::fs::symlink(target, path).doing("make the link", path)
}

/// Copies a file or a tree that other users may read, if it is small.
fn copy_state(from: &Path, to: &Path) -> Result<(), StoreError> {
    let mut budget = (MAX_STATE_FILES, MAX_STATE_BYTES);
    if !fits(from, &mut budget) {
        return Ok(());
    }
    if from.is_dir() {
        // It exists already, empty, if it is on the first level of a mirrored directory.
        match fs::remove_dir(to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StoreError::io("replace", to, error)),
            _ => {}
        }
        to.parent().map_or(Ok(()), make_dir)?;
        tree::copy_tree(from, to).doing("copy", from)
    } else {
        fs::copy(from, to).doing("copy", from).map(drop)
    }
}

fn fits(path: &Path, budget: &mut (u32, u64)) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return false };
    let (Some(files), Some(bytes)) = (budget.0.checked_sub(1), budget.1.checked_sub(metadata.len())) else {
        return false;
    };
    *budget = (files, bytes);
    let for_all = metadata.is_symlink() || metadata.mode() & 0o004 != 0;
    for_all
        && (!metadata.is_dir()
            || fs::read_dir(path).is_ok_and(|entries| {
                entries
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect::<io::Result<Vec<PathBuf>>>()
                    .is_ok_and(|entries| entries.iter().all(|entry| fits(entry, budget)))
            }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_database_is_mounted_not_copied() {
        assert!(STATE.iter().all(|state| !super::super::PACKAGES.contains(state)));
    }
}
