//! The system calls of a tracer: a listener of a filter, and the memory of another process. Besides `sys`,
//! the only file with `unsafe` code.

#![allow(unsafe_code, reason = "system calls without a safe wrapper: seccomp, its ioctls, process_vm_readv")]

use std::{
    ffi::{c_int, c_long, c_uint, c_ulong},
    mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use rustix::io::Errno;

const NEW_LISTENER: c_uint = 1 << 3;
const SPEC_ALLOW: c_uint = 1 << 2;
const WAIT_KILLABLE_RECV: c_uint = 1 << 5;

const RECEIVE: c_ulong = 0xC050_2100;
const SEND: c_ulong = 0xC018_2101;
const ID_VALID: c_ulong = 0x4008_2102;
const SET_FLAGS: c_ulong = 0x4008_2104;

const FD_SYNC_WAKE_UP: u64 = 1;
const CONTINUE: u32 = 1;

/// A call that waits for an answer: the kernel's `seccomp_notif`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Notification {
    /// Its id.
    id: u64,
    /// The id of the calling thread, in the receiver's pid namespace.
    pub(super) thread: u32,
    flags: u32,
    /// The call's number.
    pub(super) number: c_int,
    /// The architecture, as auditing names it.
    pub(super) architecture: u32,
    instruction: u64,
    /// The call's arguments.
    pub(super) arguments: [u64; 6],
}

/// The kernel's `seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const _: () = assert!(mem::size_of::<Notification>() == 80 && mem::size_of::<Answer>() == 24);

fn check(ret: c_long) -> Result<c_long, Errno> {
    if ret >= 0 {
        return Ok(ret);
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// Installs a filter on the calling thread, and returns its listener. Fails with `EINVAL` if this kernel
/// cannot keep signals from interrupting a call that is examined. The rights are those of
/// [`install_seccomp`](super::sys::install_seccomp).
pub(super) fn install_listener(program: &[libc::sock_filter]) -> Result<OwnedFd, Errno> {
    const SET_MODE_FILTER: c_uint = 1;
    let prog = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut(),
    };
    let flags = NEW_LISTENER | WAIT_KILLABLE_RECV | SPEC_ALLOW;
    // SAFETY: `prog` points to `len` instructions that outlive the call; the kernel copies and checks them.
    let fd = check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const prog) })?;
    // SAFETY: the kernel made a new descriptor that has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(c_int::try_from(fd).map_err(|_| Errno::OVERFLOW)?) })
}

/// Has the kernel run the receiver at once, on the caller's processor, if it can.
pub(super) fn wake_at_once(listener: impl AsFd) -> Result<(), Errno> {
    // SAFETY: takes a number instead of a pointer.
    check(c_long::from(unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), SET_FLAGS as _, FD_SYNC_WAKE_UP) })).map(drop)
}

/// Takes a waiting call. Fails with `ENOENT` if its process was killed meanwhile.
pub(super) fn receive(listener: impl AsFd) -> Result<Notification, Errno> {
    let mut it = Notification::default();
    // SAFETY: `it` is as large as the kernel's structure, and all zero, as the kernel demands.
    check(c_long::from(unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), RECEIVE as _, &raw mut it) }))?;
    Ok(it)
}

/// Lets the kernel execute a call. Fails with `ENOENT` if its process was killed meanwhile.
pub(super) fn resume(listener: impl AsFd, it: &Notification) -> Result<(), Errno> {
    let mut answer = Answer { id: it.id, value: 0, error: 0, flags: CONTINUE };
    // SAFETY: `answer` is as large as the kernel's structure, and outlives the call.
    check(c_long::from(unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), SEND as _, &raw mut answer) })).map(drop)
}

/// Returns whether a call still waits, so that what was read of its process was the process' own.
pub(super) fn is_waiting(listener: impl AsFd, it: &Notification) -> bool {
    let id = it.id;
    // SAFETY: `id` outlives the call.
    unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), ID_VALID as _, &raw const id) == 0 }
}

/// Reads memory of another process. Returns how much could be read.
pub(super) fn read_memory(thread: u32, address: u64, to: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    let address = usize::try_from(address).map_err(|_| Errno::FAULT)?;
    let remote = libc::iovec { iov_base: ptr::with_exposed_provenance_mut(address), iov_len: to.len() };
    let thread = libc::pid_t::try_from(thread).map_err(|_| Errno::SRCH)?;
    // SAFETY: `local` is `to`; `remote` is memory of another process, which the kernel checks.
    let read = unsafe { libc::process_vm_readv(thread, &raw const local, 1, &raw const remote, 1, 0) };
    check(read as c_long).map(|read| usize::try_from(read).unwrap_or(0))
}
