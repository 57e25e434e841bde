//! Mounting an overlay: a step's layers, and the directory that takes its changes.

use std::{
    ffi::{CStr, CString},
    fmt::Write as _,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::{
    fs::{CWD, Gid, Mode, OFlags, Uid},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
    },
};

use super::{
    SetupError,
    error::ResultExt,
    spec::{MountApi, MountedOverlay, Overlay, Screen, UserNamespace},
    sys,
};

/// The longest string that `fsconfig` takes, in bytes, including the final zero byte.
const MAX_FSCONFIG_BYTES: usize = 256;

/// The overlay options that keep a layer self-contained: plain files and directories, whiteouts and opaque
/// marks, but no references to other layers. `nofollow` rather than `off`: some kernels are configured to
/// take `off` as `follow`, which conflicts with `userxattr`.
const OVERLAY_OPTIONS: [(&CStr, &CStr); 4] =
    [(c"redirect_dir", c"nofollow"), (c"metacopy", c"off"), (c"index", c"off"), (c"xino", c"off")];

/// Mounts an overlay for steps that start later.
pub(super) fn mount(it: &MountedOverlay, user_namespace: UserNamespace, api: MountApi) -> Result<(), SetupError> {
    let MountedOverlay { overlay: it, on, takes_owner } = it;
    if *takes_owner && let Some(model) = it.lowers.first() {
        let doing = || format!("give {} the owner of {}", it.upper.to_string_lossy(), model.to_string_lossy());
        let model = rustix::fs::lstat(model).doing(doing)?;
        let (owner, group) = (Uid::from_raw(model.st_uid), Gid::from_raw(model.st_gid));
        rustix::fs::chown(&it.upper, Some(owner), Some(group)).doing(doing)?;
    }
    let mount = overlay(it, user_namespace, api, on)?;
    // Not `attach`: if the directory is gone, the overlay is no longer needed.
    move_mount(&mount, c"", CWD, on, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing(|| format!("mount {}", on.to_string_lossy()))
}

/// Mounts a screen. Before overlayfs shows a file, it also checks the permissions of the user who mounted the
/// overlay. So the overlay is mounted as a user who owns nothing and lacks root's capabilities. All
/// directories are opened as root, because the store is closed to other users.
pub(super) fn screen(it: &Screen) -> Result<(), SetupError> {
    let doing = || format!("mount {} without private files", it.dir.to_string_lossy());
    let (dir, empty, on) = (open_dir(&it.dir)?, open_dir(&it.empty)?, open_dir(&it.on)?);
    let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mut options = format!("lowerdir={}:{}", path(&dir), path(&empty));
    for (key, value) in OVERLAY_OPTIONS {
        let _ = write!(options, ",{}={}", key.to_string_lossy(), value.to_string_lossy());
    }
    let options = CString::new(options).map_err(|_| SetupError::new(doing(), Errno::INVAL))?;
    let flags = MountFlags::NODEV | MountFlags::RDONLY;
    sys::as_owner_of_nothing(|| rustix::mount::mount(c"overlay", path(&on), c"overlay", flags, options.as_c_str()))
        .and_then(|mounted| mounted)
        .doing(doing)
}

/// Makes an overlay that is not attached yet. It may be mounted on `mountpoint` for a moment. Device nodes in
/// it cannot be opened: `/dev` is a separate file system.
///
/// `volatile`: the layer is discarded unless the whole step passes, and unmounting would otherwise flush the
/// whole disk.
pub(super) fn overlay(
    it: &Overlay,
    user_namespace: UserNamespace,
    api: MountApi,
    mountpoint: &CStr,
) -> Result<OwnedFd, SetupError> {
    match api {
        MountApi::New => overlay_by_fsopen(it, user_namespace),
        MountApi::Legacy => overlay_by_mount(it, user_namespace, mountpoint),
    }
}

fn overlay_by_fsopen(it: &Overlay, user_namespace: UserNamespace) -> Result<OwnedFd, SetupError> {
    let fs = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC).doing(|| "open the overlay file system".into())?;
    let mut held = Vec::new();
    let mut set_path = |key: &CStr, path: &CStr| -> Result<(), SetupError> {
        let set = if path.to_bytes_with_nul().len() <= MAX_FSCONFIG_BYTES {
            fsconfig_set_string(&fs, key, path)
        } else {
            let dir = open_dir(path)?;
            let set = fsconfig_set_string(&fs, key, format!("/proc/self/fd/{}", dir.as_raw_fd()));
            held.push(dir);
            set
        };
        set.map_err(|errno| {
            refused(&fs, &format!("use {} as {}", path.to_string_lossy(), key.to_string_lossy()), errno)
        })
    };
    for lower in &it.lowers {
        set_path(c"lowerdir+", lower)?;
    }
    set_path(c"upperdir", &it.upper)?;
    set_path(c"workdir", &it.work)?;
    let configured = OVERLAY_OPTIONS
        .into_iter()
        .try_for_each(|(key, value)| fsconfig_set_string(&fs, key, value))
        .and_then(|()| fsconfig_set_flag(&fs, c"volatile"))
        .and_then(|()| match user_namespace {
            UserNamespace::None => Ok(()),
            UserNamespace::Range | UserNamespace::Single => fsconfig_set_flag(&fs, c"userxattr"),
        })
        .and_then(|()| fsconfig_create(&fs))
        .and_then(|()| fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV));
    configured.map_err(|errno| refused(&fs, &mounting(it), errno))
}

/// Describes the mount for error messages, by the directory that users know: the lowest.
fn mounting(it: &Overlay) -> String {
    let lowest = it.lowers.last().map_or_else(String::new, |lowest| lowest.to_string_lossy().into_owned());
    format!("mount the overlay of {lowest} over {}", it.upper.to_string_lossy())
}

/// Adds the kernel's explanation of a failure, which is in the context's log, to the error.
fn refused(fs: &OwnedFd, doing: &str, errno: Errno) -> SetupError {
    let mut log = [0; 512];
    match rustix::io::read(fs, &mut log[..]) {
        Ok(len) => {
            let words = String::from_utf8_lossy(&log[..len]);
            SetupError::new(format!("{doing} ({})", words.trim_start_matches("e ").trim()), errno)
        }
        Err(_) => SetupError::new(doing, errno),
    }
}

fn overlay_by_mount(it: &Overlay, user_namespace: UserNamespace, mountpoint: &CStr) -> Result<OwnedFd, SetupError> {
    let doing = || mounting(it);
    // Relative to /proc/self/fd a layer's name is a number: nothing needs escapes, and 500 names fit a page.
    let lowers = it.lowers.iter().map(|path| open_dir(path)).collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = (open_dir(&it.upper)?, open_dir(&it.work)?);
    let names: Vec<String> = lowers.iter().map(|dir| dir.as_raw_fd().to_string()).collect();
    let mut options = format!("lowerdir={}", names.join(":"));
    let _ = write!(options, ",upperdir={},workdir={}", upper.as_raw_fd(), work.as_raw_fd());
    for (key, value) in OVERLAY_OPTIONS {
        let _ = write!(options, ",{}={}", key.to_string_lossy(), value.to_string_lossy());
    }
    options.push_str(",volatile");
    if user_namespace != UserNamespace::None {
        options.push_str(",userxattr");
    }
    let options = CString::new(options).map_err(|_| SetupError::new(doing(), Errno::INVAL))?;
    rustix::process::chdir(c"/proc/self/fd").doing(doing)?;
    let mounted = rustix::mount::mount(c"overlay", mountpoint, c"overlay", MountFlags::NODEV, options.as_c_str());
    rustix::process::chdir(c"/").doing(doing)?;
    mounted.doing(doing)?;
    let clone =
        open_tree(CWD, mountpoint, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).doing(doing)?;
    unmount(mountpoint, UnmountFlags::DETACH).doing(doing)?;
    Ok(clone)
}

fn open_dir(path: &CStr) -> Result<OwnedFd, SetupError> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("open {}", path.to_string_lossy()))
}
