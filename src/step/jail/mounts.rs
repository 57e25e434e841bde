//! The step's file systems.
//!
//! Host paths are opened before the root changes, and paths of the step are resolved after it. So a symlink
//! in a layer can only lead to another place in the step.

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_bind, mount_bind_recursive, move_mount, open_tree,
        unmount,
    },
};

use super::{
    JailSpec, SetupError, dev,
    error::ResultExt,
    identity, memory_root,
    overlay::overlay,
    spec::{Bind, GroupView, JailPlace, Root, SecretFile},
    sys,
};

/// The minimum size of a tmpfs, enough for the jail's own files.
const MIN_MEMORY_BYTES: u64 = 1 << 20;

/// The paths that a step must not read, although it is root in its namespaces. They are hidden under
/// `/dev/null` or an empty directory.
const HIDDEN: [&CStr; 12] = [
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/interrupts",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/sched_debug",
    c"/proc/scsi",
    c"/proc/timer_list",
    c"/proc/timer_stats",
    c"/sys/firmware",
    c"/sys/devices/virtual/powercap",
];

/// The paths that a step may read but not write.
const READ_ONLY: [&CStr; 5] = [c"/proc/bus", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"];

/// The special paths that this kernel has. They are the same for every step, so the zygote looks once.
#[derive(Debug)]
pub(crate) struct SpecialPaths {
    /// Whether the kernel has POSIX message queues.
    message_queues: bool,
    hidden_files: Vec<&'static CStr>,
    /// Hidden directories below `/proc`.
    hidden_in_proc: Vec<&'static CStr>,
    /// Hidden directories below `/sys`.
    hidden_in_sys: Vec<&'static CStr>,
    read_only: Vec<&'static CStr>,
}

impl SpecialPaths {
    pub(crate) fn of_this_kernel() -> Self {
        let kind = |path: &CStr| rustix::fs::stat(path).ok().map(|stat| FileType::from_raw_mode(stat.st_mode));
        let mut paths = Self {
            message_queues: kind(c"/proc/sys/fs/mqueue").is_some(),
            hidden_files: Vec::new(),
            hidden_in_proc: Vec::new(),
            hidden_in_sys: Vec::new(),
            read_only: Vec::new(),
        };
        for path in HIDDEN {
            match kind(path) {
                Some(FileType::Directory) if path.to_bytes().starts_with(b"/sys/") => paths.hidden_in_sys.push(path),
                Some(FileType::Directory) => paths.hidden_in_proc.push(path),
                Some(_) => paths.hidden_files.push(path),
                None => {}
            }
        }
        paths.read_only.extend(READ_ONLY.into_iter().filter(|path| kind(path).is_some()));
        paths
    }
}

/// What to do if the kernel refuses to mount a new procfs, because the existing one has hidden parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proc {
    /// Fail: steps must see no processes except their own.
    Own,
    /// Show the existing one: it shows the processes of a container that exists for the step.
    OwnOrShared,
}

/// Mounts the step's file systems. With [`JailPlace::Root`] they become the caller's root, and the host's
/// file systems are detached. With [`JailPlace::Beside`] the caller keeps its root, and they are at the mount
/// point, without the file systems that every kernel makes for itself.
pub(super) fn enter(spec: &JailSpec, special: &SpecialPaths, proc: Proc) -> Result<(), SetupError> {
    let host = rustix::fs::openat(CWD, c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "open the host's root".into())?;
    let root = match &spec.root {
        Root::Overlay(it) => overlay(it, spec.user_namespace, spec.mount_api, &spec.mountpoint)?,
        Root::Dir(dir) => clone_tree(CWD, dir)
            .and_then(|tree| restricted(tree, MountAttrFlags::MOUNT_ATTR_NODEV))
            .doing(|| format!("mount {}", dir.to_string_lossy()))?,
        Root::Memory(root) => memory_root::make(root)?,
    };
    let binds = spec.binds.iter().map(|it| Ok((&it.target, view(it)?))).collect::<Result<Vec<_>, _>>()?;
    let inner = spec
        .overlays
        .iter()
        .map(|it| Ok((&it.target, overlay(&it.overlay, spec.user_namespace, spec.mount_api, &spec.mountpoint)?)));
    let inner = inner.collect::<Result<Vec<_>, SetupError>>()?;
    let groups = spec.group_views.iter().map(group).collect::<Result<Vec<_>, _>>()?;

    if let (JailPlace::Beside, Some(content)) = (spec.place, &spec.resolver) {
        // The root covers this next.
        attach(&memory(c"0755", None, MountAttrFlags::empty())?, &spec.mountpoint)?;
        identity::show_resolver(&spec.mountpoint, content)?;
    }
    attach(&root, &spec.mountpoint)?;
    rustix::process::fchdir(&root).doing(|| "enter the new root".into())?;
    // For as long as paths of the step are resolved: a link in a layer must not lead to the host's files.
    // `pivot_root` comes last, because it leaves the host's root on top of the new one, where `..` leads to
    // it.
    rustix::process::chroot(c".").doing(|| "open the new root".into())?;
    rustix::process::chdir(c"/").doing(|| "enter the new root".into())?;

    for (target, mount) in binds.iter().chain(&inner) {
        attach(mount, target)?;
    }
    if spec.place == JailPlace::Beside {
        rustix::process::fchdir(&host).doing(|| "enter the host's root".into())?;
        return rustix::process::chroot(c".").doing(|| "go back to the host's root".into());
    }
    // Every mount at a path where an image may have a link comes before `/proc`: procfs has links to the
    // host's root, which is still open.
    let has_sys = spec.root.memory().is_none();
    if has_sys {
        let shows_groups = sys_dir(&host)?;
        identity::show_limits(&groups, shows_groups)?;
    }
    let [empty, another] = dev::mount(&host, spec, special.message_queues)?;
    if !spec.secrets.is_empty() {
        secrets_dir(&spec.secrets)?;
    }
    if has_sys {
        cover(&empty, &special.hidden_in_sys)?;
    }
    spec.root.memory().map_or(Ok(()), |root| hide(&root.hidden))?;
    proc_dir(&host, proc)?;
    mask_proc(special, &another)?;

    rustix::process::fchdir(&host).doing(|| "enter the host's root".into())?;
    rustix::process::chroot(c".").doing(|| "go back to the host's root".into())?;
    rustix::process::fchdir(&root).doing(|| "enter the new root".into())?;
    rustix::process::pivot_root(c".", c".").doing(|| "make the new root the root".into())?;
    rustix::process::fchdir(&host).doing(|| "enter the host's root".into())?;
    unmount(c".", UnmountFlags::DETACH).doing(|| "leave the host's root".into())?;
    rustix::process::chdir(c"/").doing(|| "enter the new root".into())
}

/// Returns a view of a control group, with the name to show it under.
fn group(it: &GroupView) -> Result<(CString, OwnedFd), SetupError> {
    let source = it.dir.clone();
    Ok((it.name.clone(), view(&Bind { source, target: c"/".into(), writable: false })?))
}

/// Clones a mount, with all mounts below it: a user namespace may not clone a part. Device nodes in it cannot
/// be opened; a writable view is an overlay of [`mount`], which is `nodev` already. If it is read-only,
/// owners, modes, times and attributes cannot be changed through it, either.
fn view(it: &Bind) -> Result<OwnedFd, SetupError> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_RDONLY;
    clone_tree(CWD, &it.source)
        .and_then(|tree| if it.writable { Ok(tree) } else { restricted(tree, attributes) })
        .doing(|| format!("show {} to the step", it.source.to_string_lossy()))
}

/// Adds `attributes` to a mount that is not attached yet, and to the mounts below it.
pub(super) fn restricted(tree: OwnedFd, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    sys::restrict_mounts(&tree, attributes).map(|()| tree)
}

pub(super) fn clone_tree(dir: impl AsFd, path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(dir, path, flags)
}

pub(super) fn filesystem(
    kind: &CStr,
    options: &[(&CStr, &CStr)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, SetupError> {
    let doing = || format!("mount a {}", kind.to_string_lossy());
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).doing(doing)?;
    for (key, value) in options {
        fsconfig_set_string(&fs, *key, *value).doing(doing)?;
    }
    fsconfig_create(&fs).doing(doing)?;
    let attributes = attributes | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).doing(doing)
}

/// Attaches a mount. A mount point that no layer has is made, and so becomes part of the step's layer.
pub(super) fn attach(mount: &OwnedFd, target: &CStr) -> Result<(), SetupError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    let is_file =
        || rustix::fs::fstat(mount).is_ok_and(|it| FileType::from_raw_mode(it.st_mode) == FileType::RegularFile);
    at_mount_point(target, is_file, || move_mount(mount, c"", CWD, target, flags))
}

/// Mounts a new file system, as [`filesystem`] and [`attach`] do, with one system call instead of six.
pub(super) fn filesystem_at(target: &CStr, kind: &CStr, flags: MountFlags, options: &CStr) -> Result<(), SetupError> {
    let flags = flags | MountFlags::NOSUID | MountFlags::NOEXEC;
    at_mount_point(target, || false, || rustix::mount::mount(kind, target, kind, flags, options))
}

fn at_mount_point(
    target: &CStr,
    is_file: impl Fn() -> bool,
    mount: impl Fn() -> Result<(), Errno>,
) -> Result<(), SetupError> {
    let mounted = match mount() {
        Err(Errno::NOENT) => {
            make_mount_point(target, is_file());
            mount()
        }
        mounted => mounted,
    };
    mounted.doing(|| format!("mount {}", target.to_string_lossy()))
}

/// Makes an empty directory or file, and the directories above it.
fn make_mount_point(path: &CStr, is_file: bool) {
    let (bytes, mode) = (path.to_bytes(), Mode::from_raw_mode(0o755));
    // Errors are ignored here: the mount fails if the mount point is missing.
    for end in (1..bytes.len()).filter(|&at| bytes[at] == b'/') {
        let _ = rustix::fs::mkdir(&bytes[..end], mode);
    }
    let _ = match is_file {
        true => rustix::fs::mknodat(CWD, path, FileType::RegularFile, Mode::from_raw_mode(0o644), 0),
        false => rustix::fs::mkdir(path, mode),
    };
}

/// Mounts a tmpfs over a directory. Its top directory is accessible to its owner only.
pub(super) fn memory_over(dir: &CStr) -> Result<(), SetupError> {
    let doing = || format!("mount a tmpfs over {}", dir.to_string_lossy());
    let fs = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).doing(doing)?;
    fsconfig_set_string(&fs, c"mode", c"0700").and_then(|()| fsconfig_create(&fs)).doing(doing)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).doing(doing)?;
    move_mount(&mount, c"", CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(doing)
}

fn proc_dir(host: &OwnedFd, proc: Proc) -> Result<(), SetupError> {
    match filesystem_at(c"/proc", c"proc", MountFlags::NODEV, c"") {
        Err(error) if proc == Proc::OwnOrShared && error.errno == Errno::PERM.raw_os_error() => {
            let shared = clone_tree(host, c"proc").doing(|| "show /proc to the step".into())?;
            attach(&shared, c"/proc")
        }
        mounted => mounted,
    }
}

/// Shows `/sys` to the step. A new sysfs shows the devices of the network namespace, and only that
/// namespace's owner may mount one. In a container without a sysfs, steps have none. Returns whether the
/// sysfs is the host's, which shows the host's control groups.
fn sys_dir(host: &OwnedFd) -> Result<bool, SetupError> {
    let doing = || "show /sys to the step".to_owned();
    match filesystem_at(c"/sys", c"sysfs", MountFlags::NODEV, c"") {
        // Restricts the mount, not the file system, which may be mounted elsewhere, too.
        Ok(()) => {
            sys::restrict_mounts_at(c"/sys", MountAttrFlags::MOUNT_ATTR_RDONLY).doing(doing)?;
            Ok(false)
        }
        Err(error) if error.errno == Errno::PERM.raw_os_error() => match clone_tree(host, c"sys") {
            Err(Errno::NOENT) => Ok(false),
            tree => {
                let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
                let tree = tree.and_then(|tree| restricted(tree, attributes)).doing(doing)?;
                attach(&tree, c"/sys").map(|()| true)
            }
        },
        Err(error) => Err(error),
    }
}

/// Makes a tmpfs that is not larger than the step's memory limit: its content counts towards the limit.
pub(super) fn memory(
    mode: &CStr,
    memory_bytes: Option<u64>,
    attributes: MountAttrFlags,
) -> Result<OwnedFd, SetupError> {
    match memory_bytes {
        None => filesystem(c"tmpfs", &[(c"mode", mode)], attributes),
        Some(bytes) => {
            let size = path(bytes.max(MIN_MEMORY_BYTES).to_string());
            filesystem(c"tmpfs", &[(c"mode", mode), (c"size", &size)], attributes)
        }
    }
}

/// Converts a text of literals, device names and numbers to a C string.
pub(super) fn path(text: String) -> CString {
    CString::new(text).unwrap_or_default()
}

fn secrets_dir(secrets: &[SecretFile]) -> Result<(), SetupError> {
    let dir = filesystem(c"tmpfs", &[(c"mode", c"0755")], MountAttrFlags::MOUNT_ATTR_NODEV)?;
    for secret in secrets {
        let doing = || format!("write the secret {}", secret.name.to_string_lossy());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, &secret.name, flags, Mode::from_raw_mode(0o400)).doing(doing)?;
        let mut rest = &secret.value[..];
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest).doing(doing)?;
            rest = &rest[written..];
        }
    }
    sys::restrict_mounts(&dir, MountAttrFlags::MOUNT_ATTR_RDONLY).doing(|| "make /run/secrets read-only".into())?;
    attach(&dir, c"/run/secrets")
}

/// Attaches a mount at the first of `paths`, and bind-mounts it, with its restrictions, at the others.
fn cover(mount: &OwnedFd, paths: &[impl AsRef<CStr>]) -> Result<(), SetupError> {
    let mut paths = paths.iter().map(AsRef::as_ref);
    let Some(first) = paths.next() else { return Ok(()) };
    attach(mount, first)?;
    paths.try_for_each(|path| at_mount_point(path, || false, || mount_bind(first, path)))
}

/// Makes files appear empty: the step's own `/dev/null` is mounted over them, read-only.
fn hide(files: &[impl AsRef<CStr>]) -> Result<(), SetupError> {
    if files.is_empty() {
        return Ok(());
    }
    let null = clone_tree(CWD, c"/dev/null")
        .and_then(|null| restricted(null, MountAttrFlags::MOUNT_ATTR_RDONLY))
        .doing(|| "hide files".into())?;
    cover(&null, files)
}

/// Hides files of the kernel under `/dev/null`, and directories under an empty one, all of them read-only.
fn mask_proc(special: &SpecialPaths, empty: &OwnedFd) -> Result<(), SetupError> {
    hide(&special.hidden_files)?;
    cover(empty, &special.hidden_in_proc)?;
    for path in &special.read_only {
        // Includes the mounts below it, in case `/proc` is shared.
        mount_bind_recursive(*path, *path)
            .and_then(|()| sys::restrict_mounts_at(path, MountAttrFlags::MOUNT_ATTR_RDONLY))
            .doing(|| format!("make {} read-only", path.to_string_lossy()))?;
    }
    Ok(())
}
