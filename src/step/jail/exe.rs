//! Protects this program's own file from steps.
//!
//! The process that executes a step's command runs this program until then, with the step's files as its
//! root. If the command, its interpreter or its loader is a link to `/proc/self/exe`, the kernel opens this
//! program's file, and the step has a descriptor of it. The file cannot be written to while the program runs,
//! but the step's root could change the file's mode, owner, times and attributes through the descriptor. So a
//! program that makes jails runs from a private read-only mount, of its own file or of a copy in memory.

use std::{
    ffi::{CStr, CString, OsString},
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, StatVfsMountFlags, statvfs},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
        fsmount, fsopen, move_mount, open_tree,
    },
};

use super::{SetupError, error::ResultExt, mounts, sys};

/// The last argument of a program that was executed again.
const AGAIN: &str = "again";
/// This process' file, whatever its name is now.
const EXE: &CStr = c"/proc/self/exe";

/// Returns whether this program was run again, from a file that steps cannot change.
#[must_use]
pub fn is_again() -> bool {
    std::env::args_os().next_back().is_some_and(|arg| arg == AGAIN)
}

/// Returns if this program runs from a read-only mount. Otherwise executes it again from one, with the same
/// arguments and an additional one, which [`is_again`] detects.
///
/// This process must have one thread, a mount namespace of its own with private mounts, and no descriptors
/// that must survive except the three standard ones.
///
/// # Errors
/// Returns an error if neither a mount nor a copy can be made.
pub(crate) fn protect() -> Result<(), SetupError> {
    if statvfs(EXE).is_ok_and(|at| at.f_flag.contains(StatVfsMountFlags::RDONLY)) {
        return Ok(());
    }
    let mut args: Vec<_> = std::env::args_os().skip(1).collect();
    if !is_again() {
        args.push(AGAIN.into());
        // The mount fails if the file was replaced since this process started.
        if let Ok(path) = mount_over_itself() {
            let _ = run(&path, &args);
        }
    }
    // The second time, this is reached if the file was replaced between the mount and the start.
    let doing = || "run this program from a copy in memory".to_owned();
    let (dir, name) = copy().doing(doing)?;
    let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name.as_bytes()].concat();
    let path = CString::new(path).map_err(io::Error::from).doing(doing)?;
    Err(SetupError::new(doing(), run(&path, &args)))
}

/// Mounts the file of this process over itself, read-only, and returns its path.
fn mount_over_itself() -> Result<CString, Errno> {
    let path = fs::read_link("/proc/self/exe").map_err(|error| errno(&error))?;
    let path = CString::new(path.into_os_string().into_vec()).map_err(|_| Errno::INVAL)?;
    let file = open_tree(CWD, &*path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let (this, that) = (rustix::fs::stat(EXE)?, rustix::fs::fstat(&file)?);
    if (this.st_dev, this.st_ino) != (that.st_dev, that.st_ino) {
        return Err(Errno::STALE);
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let file = mounts::restricted(file, attributes)?;
    move_mount(&file, c"", CWD, &*path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(path)
}

/// Copies the file of this process to a tmpfs. Returns the tmpfs, read-only, and the file's name in it.
fn copy() -> io::Result<(OwnedFd, OsString)> {
    let path = std::env::args_os().next().unwrap_or_default();
    // The process name after the execution.
    let name = Path::new(&path).file_name().unwrap_or("hm".as_ref()).to_owned();
    let fs = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, c"mode", c"0755")?;
    fsconfig_create(&fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let dir = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(&dir, &*name, flags, Mode::from_raw_mode(0o755))?;
    // The descriptor must be closed before the file is executed.
    io::copy(&mut File::open("/proc/self/exe")?, &mut File::from(copy))?;
    Ok((mounts::restricted(dir, MountAttrFlags::MOUNT_ATTR_RDONLY)?, name))
}

/// Executes `path` under this process' name. Returns only on failure.
fn run(path: &CStr, args: &[OsString]) -> Errno {
    let name = std::env::args_os().next().unwrap_or_else(|| "hm".into());
    let argv = [&name].into_iter().chain(args).map(|arg| CString::new(arg.as_bytes()));
    let env = std::env::vars_os().map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()));
    let (Ok(argv), Ok(env)) = (argv.collect::<Result<Vec<_>, _>>(), env.collect::<Result<Vec<_>, _>>()) else {
        return Errno::INVAL;
    };
    let argv: Vec<&CStr> = argv.iter().map(CString::as_c_str).collect();
    let env: Vec<&CStr> = env.iter().map(CString::as_c_str).collect();
    sys::execve(path, &argv, &env)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
