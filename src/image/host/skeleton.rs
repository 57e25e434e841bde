//! The directories of a step's root besides those of the system.
//!
//! A [`Skeleton`] describes them, by names and attributes of the machine's files, none of which is read for
//! that. Equal descriptions make equal trees, so that a tree is kept under its description's digest: see
//! [`kept`](super::kept).

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, Metadata, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{HostDir, SYSTEM};
use crate::{
    store::{ImageDigest, StoreError, error::IoContext, files::make_dir},
    tree,
};

/// The first bytes of every description. Must be changed with any change to what a description makes.
const VERSION: &[u8] = b"hm-exec host skeleton 1";

/// A file that was changed less than this ago may change again without a difference in its times.
const SETTLED: Duration = Duration::from_secs(2);

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

/// The description of a skeleton. Paths are relative to its root, parents before children.
#[derive(Debug)]
pub(super) struct Skeleton {
    nodes: BTreeMap<PathBuf, Node>,
    /// The latest change of a file that is copied, in nanoseconds since the Unix epoch.
    changed_at: i128,
}

/// An entry of a skeleton.
#[derive(Debug)]
enum Node {
    /// An empty directory. The owner is the user who makes the skeleton, if none is named.
    Dir { mode: u32, owner: Option<(u32, u32)> },
    /// A link.
    Link(PathBuf),
    /// The file that marks containers.
    Mark,
    /// A copy of the machine's file or tree at the same path, with the attributes of everything in it.
    State { is_dir: bool, attributes: Vec<u8> },
}

impl Skeleton {
    /// Describes the current skeleton, with a mount point for each of `dirs`. What others may not read is
    /// left out.
    pub(super) fn of(machine: &Path, dirs: &[HostDir]) -> Result<Self, StoreError> {
        let mut skeleton = Self { nodes: BTreeMap::new(), changed_at: 0 };
        for (name, mode) in EMPTY {
            skeleton.dir(Path::new(name), mode, None);
        }
        skeleton.nodes.insert(tree::CONTAINER_MARK.0.into(), Node::Mark);
        for name in SYSTEM {
            if let Ok(target) = fs::read_link(machine.join(name)) {
                skeleton.nodes.insert(name.into(), Node::Link(target));
            }
        }
        for name in ["var", "var/lib", "var/cache", "var/log", "var/spool"] {
            skeleton.mirror(machine, Path::new(name))?;
        }
        skeleton.dir(Path::new("var/tmp"), 0o1777, None);
        for name in STATE {
            skeleton.state(machine, Path::new(name));
        }
        for dir in dirs {
            let mut path = PathBuf::new();
            for part in dir.path.components() {
                path.push(part);
                match skeleton.nodes.get(&path) {
                    None => skeleton.dir(&path, 0o755, None),
                    Some(Node::Dir { .. }) => {}
                    // Nothing is made behind a link: it may lead out of the tree.
                    Some(_) => break,
                }
            }
        }
        Ok(skeleton)
    }

    fn dir(&mut self, path: &Path, mode: u32, owner: Option<(u32, u32)>) {
        self.nodes.insert(path.into(), Node::Dir { mode, owner });
    }

    /// Adds the links and, empty, the directories of the machine's `dir`, because packages expect them.
    fn mirror(&mut self, machine: &Path, dir: &Path) -> Result<(), StoreError> {
        match self.nodes.get(dir) {
            None => self.dir(dir, 0o755, None),
            Some(Node::Dir { .. }) => {}
            // The link's target has a place of its own.
            Some(_) => return Ok(()),
        }
        // A directory that cannot be listed is not needed: it stays empty.
        let Ok(entries) = fs::read_dir(machine.join(dir)) else { return Ok(()) };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let path = dir.join(entry.file_name());
            if metadata.is_symlink() {
                let from = entry.path();
                self.nodes.insert(path, Node::Link(fs::read_link(&from).doing("read", &from)?));
            } else if metadata.is_dir() {
                let owner = rustix::process::geteuid().is_root().then_some((metadata.uid(), metadata.gid()));
                self.dir(&path, metadata.mode() & 0o7777, owner);
            }
        }
        Ok(())
    }

    /// Adds a copy of a file or a tree that other users may read, if it is small.
    fn state(&mut self, machine: &Path, path: &Path) {
        // The parent is a link, or is mirrored, too.
        if !matches!(path.parent().and_then(|parent| self.nodes.get(parent)), Some(Node::Dir { .. })) {
            return;
        }
        let from = machine.join(path);
        // A link is mirrored as such: what it leads to may be hidden.
        if !fs::symlink_metadata(&from).is_ok_and(|metadata| !metadata.is_symlink()) {
            return;
        }
        let mut survey = Survey { files: MAX_STATE_FILES, bytes: MAX_STATE_BYTES, attributes: vec![], changed_at: 0 };
        if survey.fits(&from) {
            self.changed_at = self.changed_at.max(survey.changed_at);
            let node = Node::State { is_dir: from.is_dir(), attributes: survey.attributes };
            self.nodes.insert(path.into(), node);
        }
    }

    /// Returns a digest of everything that the tree depends on, including the user who makes it.
    pub(super) fn digest(&self) -> ImageDigest {
        let mut text = VERSION.to_vec();
        let mut add = |kind: u8, numbers: &[u32], bytes: &[&[u8]]| {
            text.push(kind);
            numbers.iter().for_each(|number| text.extend(number.to_le_bytes()));
            for bytes in bytes {
                text.extend((bytes.len() as u64).to_le_bytes());
                text.extend_from_slice(bytes);
            }
        };
        add(0, &[rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()], &[]);
        for (path, node) in &self.nodes {
            let path = path.as_os_str().as_bytes();
            match node {
                Node::Dir { mode, owner: None } => add(1, &[*mode], &[path]),
                Node::Dir { mode, owner: Some((user, group)) } => add(2, &[*mode, *user, *group], &[path]),
                Node::Link(target) => add(3, &[], &[path, target.as_os_str().as_bytes()]),
                Node::Mark => add(4, &[], &[path, tree::CONTAINER_MARK.1.as_bytes()]),
                Node::State { is_dir, attributes } => add(5, &[u32::from(*is_dir)], &[path, attributes]),
            }
        }
        ImageDigest::of(&text)
    }

    /// Returns whether the digest identifies the content of the copied files. It does not if a file was
    /// changed just now, or in the future.
    pub(super) fn is_settled(&self, now: SystemTime) -> bool {
        let since_epoch = now.checked_sub(SETTLED).and_then(|then| then.duration_since(SystemTime::UNIX_EPOCH).ok());
        since_epoch.is_some_and(|then| i128::try_from(then.as_nanos()).is_ok_and(|then| self.changed_at < then))
    }

    /// Creates the skeleton in the empty directory `root`.
    pub(super) fn make(&self, machine: &Path, root: &Path) -> Result<(), StoreError> {
        set_mode(root, 0o755)?;
        for (path, node) in &self.nodes {
            let to = root.join(path);
            match node {
                Node::Dir { mode, owner } => {
                    make_dir(&to)?;
                    if let Some((user, group)) = owner {
                        std::os::unix::fs::chown(&to, Some(*user), Some(*group)).doing("own", &to)?;
                    }
                    set_mode(&to, *mode)?;
                }
                Node::Link(target) => std::os::unix::fs::symlink(target, &to).doing("make the link", &to)?,
                Node::Mark => {
                    fs::write(&to, tree::CONTAINER_MARK.1).doing("write", &to)?;
                    set_mode(&to, 0o644)?;
                }
                Node::State { is_dir, .. } => {
                    let from = machine.join(path);
                    let copied = if *is_dir { tree::copy_tree(&from, &to) } else { fs::copy(&from, &to).map(drop) };
                    copied.doing("copy", &from)?;
                }
            }
        }
        Ok(())
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).doing("set the mode of", path)
}

/// What is left of the limits on a copied tree, and the attributes of what was seen of it.
struct Survey {
    files: u32,
    bytes: u64,
    attributes: Vec<u8>,
    changed_at: i128,
}

impl Survey {
    /// Returns whether the file or tree at `path` is small, and other users may read all of it.
    fn fits(&mut self, path: &Path) -> bool {
        let Ok(metadata) = fs::symlink_metadata(path) else { return false };
        let (Some(files), Some(bytes)) = (self.files.checked_sub(1), self.bytes.checked_sub(metadata.len())) else {
            return false;
        };
        (self.files, self.bytes) = (files, bytes);
        self.note(path.file_name().unwrap_or_default(), &metadata);
        let for_all = metadata.is_symlink() || metadata.mode() & 0o004 != 0;
        if !for_all || !metadata.is_dir() {
            return for_all;
        }
        let entries = fs::read_dir(path).and_then(|entries| {
            let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
            paths.sort();
            Ok(paths)
        });
        let fits = entries.is_ok_and(|entries| entries.iter().all(|entry| self.fits(entry)));
        // Marks the end of the directory.
        self.attributes.push(0);
        fits
    }

    /// Notes what changes with the file. Its inode and the time of its change differ if its content does.
    fn note(&mut self, name: &OsStr, metadata: &Metadata) {
        let changed_at = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
        self.changed_at = self.changed_at.max(changed_at);
        self.attributes.push(1);
        self.attributes.extend((name.len() as u64).to_le_bytes());
        self.attributes.extend_from_slice(name.as_bytes());
        self.attributes.extend(changed_at.to_le_bytes());
        self.attributes.extend([metadata.mode(), metadata.uid(), metadata.gid()].map(u32::to_le_bytes).as_flattened());
        let numbers = [metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime().cast_unsigned()];
        self.attributes.extend(numbers.map(u64::to_le_bytes).as_flattened());
        self.attributes.extend(metadata.mtime_nsec().to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_database_is_mounted_not_copied() {
        assert!(STATE.iter().all(|state| !super::super::PACKAGES.contains(state)));
    }
}
