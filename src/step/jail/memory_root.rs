//! A root in memory: the files around the views of the host that are shown to a command that only reads.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen},
};

use super::{
    SetupError,
    error::ResultExt,
    spec::{MemoryEntry, MemoryRoot},
};

/// Makes the file system and its initial files. It is not attached yet, and is freed with its last user.
pub(super) fn make(root: &MemoryRoot) -> Result<OwnedFd, SetupError> {
    let doing = || "make a root in memory".to_owned();
    let fs = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).doing(doing)?;
    for (key, value) in [
        (c"mode", "0755".to_owned()),
        (c"size", root.max_bytes.to_string()),
        (c"nr_inodes", root.max_files.to_string()),
    ] {
        fsconfig_set_string(&fs, key, value).doing(doing)?;
    }
    fsconfig_create(&fs).doing(doing)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).doing(doing)?;
    root.entries.iter().try_for_each(|entry| put(&mount, entry))?;
    Ok(mount)
}

fn put(root: &OwnedFd, entry: &MemoryEntry) -> Result<(), SetupError> {
    let (MemoryEntry::Dir { path, .. } | MemoryEntry::Link { path, .. } | MemoryEntry::File { path, .. }) = entry;
    let doing = || format!("make /{}", path.to_string_lossy());
    match entry {
        MemoryEntry::Dir { mode, .. } => rustix::fs::mkdirat(root, path, Mode::from_raw_mode(*mode)).doing(doing),
        MemoryEntry::Link { target, .. } => rustix::fs::symlinkat(target, root, path).doing(doing),
        MemoryEntry::File { content, .. } => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(root, path, flags, Mode::from_raw_mode(0o644)).doing(doing)?;
            let mut rest = &content[..];
            while !rest.is_empty() {
                let written = rustix::io::write(&file, rest).doing(doing)?;
                rest = &rest[written..];
            }
            Ok(())
        }
    }
}
