//! The step's identity: its host name and its own control groups.

use std::{
    ffi::{CStr, CString},
    os::fd::OwnedFd,
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{MountAttrFlags, mount_bind},
};

use super::{
    SetupError,
    error::ResultExt,
    hosts,
    mounts::{attach, filesystem},
    small_file, sys,
};

const HOSTS: &CStr = c"/etc/hosts";
const RESOLVER: &CStr = c"/etc/resolv.conf";
/// The mount point of control groups.
const CGROUPS: &CStr = c"/sys/fs/cgroup";

/// Mounts a file in memory over the step's `/etc/hosts`, so that the host name resolves and the file is in no
/// layer. The step may write to it, as in a container.
///
/// `aside` is a directory of a tmpfs that another mount is about to hide. A step without an `/etc/hosts`
/// stays without one. Every image has the file, except for custom root file systems.
pub(super) fn name_the_host(aside: &CStr, own_names: &[String]) -> Result<(), SetupError> {
    let doing = || "show the step's host name in /etc/hosts".to_owned();
    let own = small_file::read(HOSTS, hosts::MAX_BYTES).unwrap_or_default();
    let uname = rustix::system::uname();
    let content = hosts::complete(&own, &uname.nodename().to_string_lossy(), own_names);
    show_file(&[aside.to_bytes(), b"/hosts"].concat(), &content, HOSTS).doing(doing)
}

/// Mounts a file in memory over the step's `/etc/resolv.conf`, in the same way as `/etc/hosts`.
pub(super) fn show_resolver(aside: &CStr, content: &[u8]) -> Result<(), SetupError> {
    let aside = [aside.to_bytes(), b"/resolv.conf"].concat();
    show_file(&aside, content, RESOLVER).doing(|| "show the step's resolver in /etc/resolv.conf".into())
}

/// Writes a file at `aside` and mounts it over `target`, if the step has a file there.
fn show_file(aside: &[u8], content: &[u8], target: &CStr) -> Result<(), Errno> {
    let aside = CString::new(aside).map_err(|_| Errno::INVAL)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, &aside, flags, Mode::from_raw_mode(0o644))?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = &rest[written..];
    }
    // A missing mount point is not made, because it would become part of the step's layer. A link that leads
    // nowhere, or to a directory, is the image's own fault.
    match mount_bind(&*aside, target) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::INVAL | Errno::LOOP) => Ok(()),
        mounted => mounted,
    }
}

/// Shows the step its control groups, read-only, each under the name of its hierarchy. With version 2 there
/// is one group without a name. Without any group, the host's control groups are hidden if they are
/// `visible`.
pub(super) fn show_limits(groups: &[(CString, OwnedFd)], visible: bool) -> Result<(), SetupError> {
    // A kernel, or a container, may have no control groups.
    if (groups.is_empty() && !visible) || rustix::fs::stat(CGROUPS).is_err() {
        return Ok(());
    }
    if let [(name, group)] = groups
        && name.is_empty()
    {
        return attach(group, CGROUPS);
    }
    let doing = || "show the step its limits".to_owned();
    let top = filesystem(c"tmpfs", &[(c"mode", c"0755"), (c"size", c"64k")], MountAttrFlags::MOUNT_ATTR_NODEV)?;
    let named: Vec<_> = groups.iter().filter(|(name, _)| !name.is_empty()).collect();
    for (name, _) in &named {
        rustix::fs::mkdirat(&top, name.as_c_str(), Mode::from_raw_mode(0o755)).doing(doing)?;
        // The same links as on every machine that mounts two controllers together.
        let parts = name.to_bytes().split(|byte| *byte == b',').filter(|part| *part != name.to_bytes());
        for part in parts {
            rustix::fs::symlinkat(name.as_c_str(), &top, part).doing(doing)?;
        }
    }
    attach(&top, CGROUPS)?;
    for (name, group) in named {
        let path = [CGROUPS.to_bytes(), b"/", name.to_bytes()].concat();
        let path = CString::new(path).map_err(|_| SetupError::new(doing(), Errno::INVAL))?;
        attach(group, &path)?;
    }
    sys::restrict_mounts(&top, MountAttrFlags::MOUNT_ATTR_RDONLY).doing(doing)
}
