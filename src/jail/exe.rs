//! This program's own file, kept from steps.
//!
//! The process that executes a step's command is this program until it does, in the step's own files. If the
//! command, its interpreter or its loader is a link to `/proc/self/exe`, the kernel opens the file of this
//! program, and the step has a descriptor of it: one that can't be written to while the program runs, but
//! through which root of the step could change the file's mode, owner, times and attributes. So a program that
//! makes jails runs from a file that nothing can change: its own behind a read-only mount, or a copy in memory.

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
    fs::{CWD, MemfdFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals, fcntl_get_seals, memfd_create, statvfs},
    io::Errno,
    mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
    thread::set_name,
};

use super::{SetupError, error::Doing, mounts, sys};

/// The last argument of a program that was run again.
const AGAIN: &str = "again";
/// This process' file, whatever its name is by now.
const EXE: &CStr = c"/proc/self/exe";
/// What makes a copy as unchangeable as the file of a read-only mount.
const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// Returns whether [`protect`] ran this program.
pub(crate) fn is_again() -> bool {
    std::env::args_os().next_back().is_some_and(|arg| arg == AGAIN)
}

/// Returns whether nothing can be changed through a descriptor of this process' file.
fn is_protected() -> bool {
    statvfs(EXE).is_ok_and(|at| at.f_flag.contains(StatVfsMountFlags::RDONLY)) || is_copy()
}

/// Returns whether this process runs from a copy in memory, and gives it back its name then.
fn is_copy() -> bool {
    let is_copy = File::open("/proc/self/exe").and_then(|file| Ok(fcntl_get_seals(file)?.contains(SEALS)));
    let is_copy = is_copy.unwrap_or(false);
    if is_copy {
        // The kernel named it after a descriptor. A wrong name does no harm.
        let _ = set_name(&name());
    }
    is_copy
}

fn name() -> CString {
    let path = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&path).file_name().unwrap_or_default();
    CString::new(name.as_bytes()).unwrap_or_default()
}

/// Returns if this program runs from a file that nothing can change. Runs it again from such a file otherwise,
/// with the same arguments and one more, which [`is_again`] sees.
///
/// This process must have one thread, a mount namespace of its own with private mounts, and no descriptor
/// that matters but the three standard ones.
///
/// # Errors
/// Returns an error if there is neither a mount nor a copy.
pub(crate) fn protect() -> Result<(), SetupError> {
    if is_protected() {
        return Ok(());
    }
    let mut args: Vec<_> = std::env::args_os().skip(1).collect();
    if !is_again() {
        args.push(AGAIN.into());
        // There is no mount if the file was replaced since this process started, or if the kernel is older
        // than 5.12.
        if let Ok(path) = mount_over_itself() {
            let _ = run(&path, &args);
        }
    }
    // If this is the second time, the file was replaced between the mount and the start.
    run_copy(&args)
}

/// Returns if this program runs from a file that nothing can change. Runs it again from a copy in memory
/// otherwise, with the same arguments: this process must have one thread.
///
/// # Errors
/// Returns an error if there is no copy.
pub fn protect_by_copy() -> Result<(), SetupError> {
    if is_protected() {
        return Ok(());
    }
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    run_copy(&args)
}

fn run_copy(args: &[OsString]) -> Result<(), SetupError> {
    let doing = || "run this program from a copy in memory".to_owned();
    let copy = copy().doing(doing)?;
    let path = CString::new(format!("/proc/self/fd/{}", copy.as_raw_fd())).map_err(io::Error::from).doing(doing)?;
    Err(SetupError::new(doing(), run(&path, args)))
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

/// Copies the file of this process.
fn copy() -> io::Result<OwnedFd> {
    let mut file = File::open("/proc/self/exe")?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Where such files may not be executed unless it is said, it is said; older kernels don't know the word.
    let memory = match memfd_create(c"hm", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create(c"hm", flags)?,
        made => made?,
    };
    let mut memory = File::from(memory);
    io::copy(&mut file, &mut memory)?;
    fcntl_add_seals(&memory, SEALS)?;
    Ok(memory.into())
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
