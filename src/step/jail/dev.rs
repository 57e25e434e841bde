//! A step's `/dev`: harmless devices, terminals, shared memory and message queues.

use std::{
    ffi::{CStr, CString},
    os::fd::OwnedFd,
};

use rustix::{
    fs::{FileType, Mode},
    mount::{MountAttrFlags, MountFlags, mount_bind},
};

use super::{
    JailSpec, SetupError, apt,
    error::ResultExt,
    identity,
    mounts::{attach, clone_tree, filesystem_at, memory, path, restricted},
    spec::UserNamespace,
    sys,
};

/// Character devices of a step: name, major and minor number. None of them gives access to the host.
const DEVICES: [(&CStr, u32, u32); 6] =
    [(c"null", 1, 3), (c"zero", 1, 5), (c"full", 1, 7), (c"random", 1, 8), (c"urandom", 1, 9), (c"tty", 5, 0)];

/// Mounts `/dev`, a tmpfs.
///
/// The tmpfs is `nodev`, so a node that the step makes cannot be opened; the known nodes are shown on mounts
/// of their own. As root, they are the step's own inodes. In a user namespace no node can be made, so the
/// host's nodes are shown. They are read-only, because a change to an inode's metadata would be a change on
/// the host. A read-only mount of a device does not prevent reads and writes of its data.
///
/// Returns two mounts of a directory that stays empty, because no path leads to it.
pub(super) fn mount(host: &OwnedFd, spec: &JailSpec, message_queues: bool) -> Result<[OwnedFd; 2], SetupError> {
    let doing = || "fill /dev".into();
    let dev = memory(c"0755", spec.memory_bytes, MountAttrFlags::empty())?;
    let dirs = [(c"pts", 0o755), (c"pts/empty", 0o555), (c"shm", 0o1777)];
    for (name, mode) in dirs.into_iter().chain(message_queues.then_some((c"mqueue", 0o1777))) {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(mode)).doing(doing)?;
    }
    for (target, name) in [
        (c"/proc/self/fd", c"fd"),
        (c"/proc/self/fd/0", c"stdin"),
        (c"/proc/self/fd/1", c"stdout"),
        (c"/proc/self/fd/2", c"stderr"),
        (c"pts/ptmx", c"ptmx"),
    ] {
        rustix::fs::symlinkat(target, &dev, name).doing(doing)?;
    }
    let own_nodes = spec.user_namespace == UserNamespace::None;
    for (name, major, minor) in DEVICES {
        let (kind, number) = match own_nodes {
            true => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
            false => (FileType::RegularFile, 0),
        };
        rustix::fs::mknodat(&dev, name, kind, Mode::from_raw_mode(0o666), number).doing(doing)?;
    }
    apt::write(&dev, spec)?;
    attach(&dev, c"/dev")?;
    let showing = |node: &CStr| format!("show {} to the step", node.to_string_lossy());
    if own_nodes {
        for node in DEVICES.map(|(name, ..)| at_dev(name)) {
            mount_bind(&*node, &*node).doing(|| showing(&node))?;
        }
    }
    // Not applied to the mounts of the nodes, which were cloned from it before.
    sys::restrict_mount(&dev, MountAttrFlags::MOUNT_ATTR_NODEV).doing(doing)?;
    if !own_nodes {
        for (name, ..) in DEVICES {
            let node = clone_tree(host, &path(format!("dev/{}", name.to_string_lossy())))
                .and_then(|node| restricted(node, MountAttrFlags::MOUNT_ATTR_RDONLY))
                .doing(|| showing(name))?;
            attach(&node, &at_dev(name))?;
        }
    }
    // A bind mount of the same file system: another tmpfs would cost as much as all the nodes.
    mount_bind(c"/dev/shm", c"/dev/shm").doing(doing)?;
    let empty = || {
        clone_tree(&dev, c"pts/empty").and_then(|tree| restricted(tree, MountAttrFlags::MOUNT_ATTR_RDONLY)).doing(doing)
    };
    let empty = [empty()?, empty()?];
    identity::name_the_host(c"/dev/pts", &spec.own_names)?;
    if let Some(content) = &spec.resolver {
        identity::show_resolver(c"/dev/pts", content)?;
    }
    let terminals = match spec.user_namespace {
        UserNamespace::Single => c"ptmxmode=0666,mode=0620",
        UserNamespace::None | UserNamespace::Range => c"ptmxmode=0666,mode=0620,gid=5",
    };
    // Hides what the statements above put there.
    filesystem_at(c"/dev/pts", c"devpts", MountFlags::empty(), terminals)?;
    if message_queues {
        filesystem_at(c"/dev/mqueue", c"mqueue", MountFlags::NODEV, c"")?;
    }
    Ok(empty)
}

fn at_dev(name: &CStr) -> CString {
    path(format!("/dev/{}", name.to_string_lossy()))
}
