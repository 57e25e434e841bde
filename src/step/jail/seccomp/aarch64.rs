//! The system calls of 64-bit ARM that differ.

use super::{FIRST_UNKNOWN, Verdict};

const _: () = assert!(cfg!(target_arch = "aarch64"), "the sandbox does not filter system calls on this architecture");

pub(super) const NATIVE: u32 = 0xC000_00B7;
pub(super) const DENIED: &[libc::c_long] = &[];
pub(super) const PRETENDED: &[(libc::c_long, Verdict)] = &[];
/// 32-bit programs get ENOSYS for every call: there is no list for them.
pub(super) const COMPAT: Option<u32> = None;
pub(super) const COMPAT_SOCKET: u32 = FIRST_UNKNOWN;
pub(super) const COMPAT_SOCKETS: &[(u32, Verdict)] = &[];
pub(super) const COMPAT_DENIED: &[(u32, Verdict)] = &[];
pub(super) const COMPAT_PRETENDED: &[(u32, Verdict)] = &[];
