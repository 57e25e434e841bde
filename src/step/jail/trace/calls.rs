//! The system calls that name a path, and what each does with it.

use libc::c_long;

/// What a call does with its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// Opens a file. The flags are this argument.
    Open {
        flags: usize,
    },
    /// Creates or empties a file.
    Create,
    /// Opens a file. This argument is the address of an `open_how`.
    OpenHow {
        how: usize,
    },
    /// Asks for metadata, attributes, or existence.
    Look,
    /// Asks for the target of a link.
    ReadLink,
    /// Executes a file.
    Execute,
    /// Lists a directory, which is a descriptor.
    List,
    /// Changes the root, so that roots must be looked up from now on.
    ChangeRoot,
    /// Changes metadata, which carries the content into the layer.
    Change,
    MakeDir,
    MakeNode,
    /// Makes a symbolic link.
    MakeLink,
    Remove,
    RemoveDir,
    /// Moves to the place that these arguments name: the directory, if there is one, and the path.
    Rename {
        dir: Option<usize>,
        path: usize,
        flags: Option<usize>,
    },
    /// Makes another name: as with `Rename`.
    Link {
        dir: Option<usize>,
        path: usize,
    },
    /// Connects to an address.
    Connect,
    /// Binds a socket to an address.
    Bind,
    /// Installs a seccomp filter, by `seccomp` or by `prctl`.
    Filter {
        listens: bool,
    },
}

/// Whether a link at the end of the path is followed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Follow {
    Yes,
    No,
    /// Unless this argument has this bit.
    Unless(usize, u64),
    /// If this argument has this bit.
    If(usize, u64),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) number: c_long,
    pub(super) name: &'static str,
    pub(super) op: Op,
    /// The argument that is the directory's descriptor.
    pub(super) dir: Option<usize>,
    /// The argument that is the path's address.
    pub(super) path: usize,
    pub(super) follow: Follow,
}

const NOFOLLOW: u64 = libc::AT_SYMLINK_NOFOLLOW as u64;
const FOLLOW: u64 = libc::AT_SYMLINK_FOLLOW as u64;
const DONT_FOLLOW: u64 = libc::IN_DONT_FOLLOW as u64;

const fn at(number: c_long, name: &'static str, op: Op, follow: Follow) -> Call {
    Call { number, name, op, dir: Some(0), path: 1, follow }
}

const fn plain(number: c_long, name: &'static str, op: Op, follow: Follow) -> Call {
    Call { number, name, op, dir: None, path: 0, follow }
}

const fn nth(path: usize, call: Call) -> Call {
    Call { path, ..call }
}

/// The calls that all architectures have.
const COMMON: &[Call] = &[
    at(libc::SYS_openat, "openat", Op::Open { flags: 2 }, Follow::Yes),
    at(libc::SYS_openat2, "openat2", Op::OpenHow { how: 2 }, Follow::Yes),
    at(libc::SYS_newfstatat, "newfstatat", Op::Look, Follow::Unless(3, NOFOLLOW)),
    at(libc::SYS_statx, "statx", Op::Look, Follow::Unless(2, NOFOLLOW)),
    at(libc::SYS_faccessat, "faccessat", Op::Look, Follow::Yes),
    at(libc::SYS_faccessat2, "faccessat2", Op::Look, Follow::Unless(3, NOFOLLOW)),
    at(libc::SYS_readlinkat, "readlinkat", Op::ReadLink, Follow::No),
    plain(libc::SYS_execve, "execve", Op::Execute, Follow::Yes),
    at(libc::SYS_execveat, "execveat", Op::Execute, Follow::Unless(4, NOFOLLOW)),
    plain(libc::SYS_getdents64, "getdents64", Op::List, Follow::No),
    plain(libc::SYS_chdir, "chdir", Op::Look, Follow::Yes),
    plain(libc::SYS_chroot, "chroot", Op::ChangeRoot, Follow::Yes),
    plain(libc::SYS_statfs, "statfs", Op::Look, Follow::Yes),
    nth(1, plain(libc::SYS_inotify_add_watch, "inotify_add_watch", Op::Look, Follow::Unless(2, DONT_FOLLOW))),
    plain(libc::SYS_getxattr, "getxattr", Op::Look, Follow::Yes),
    plain(libc::SYS_lgetxattr, "lgetxattr", Op::Look, Follow::No),
    plain(libc::SYS_listxattr, "listxattr", Op::Look, Follow::Yes),
    plain(libc::SYS_llistxattr, "llistxattr", Op::Look, Follow::No),
    plain(libc::SYS_setxattr, "setxattr", Op::Change, Follow::Yes),
    plain(libc::SYS_lsetxattr, "lsetxattr", Op::Change, Follow::No),
    plain(libc::SYS_removexattr, "removexattr", Op::Change, Follow::Yes),
    plain(libc::SYS_lremovexattr, "lremovexattr", Op::Change, Follow::No),
    at(463, "setxattrat", Op::Change, Follow::Unless(2, NOFOLLOW)),
    at(464, "getxattrat", Op::Look, Follow::Unless(2, NOFOLLOW)),
    at(465, "listxattrat", Op::Look, Follow::Unless(2, NOFOLLOW)),
    at(466, "removexattrat", Op::Change, Follow::Unless(2, NOFOLLOW)),
    at(468, "file_getattr", Op::Look, Follow::Unless(4, NOFOLLOW)),
    at(469, "file_setattr", Op::Change, Follow::Unless(4, NOFOLLOW)),
    at(libc::SYS_name_to_handle_at, "name_to_handle_at", Op::Look, Follow::If(4, FOLLOW)),
    at(libc::SYS_mkdirat, "mkdirat", Op::MakeDir, Follow::No),
    at(libc::SYS_mknodat, "mknodat", Op::MakeNode, Follow::No),
    // The first argument is the target, which is not looked up.
    Call { dir: Some(1), path: 2, ..at(libc::SYS_symlinkat, "symlinkat", Op::MakeLink, Follow::No) },
    // Also removes directories, by a flag.
    at(libc::SYS_unlinkat, "unlinkat", Op::RemoveDir, Follow::No),
    at(libc::SYS_renameat2, "renameat2", Op::Rename { dir: Some(2), path: 3, flags: Some(4) }, Follow::No),
    at(libc::SYS_linkat, "linkat", Op::Link { dir: Some(2), path: 3 }, Follow::If(4, FOLLOW)),
    at(libc::SYS_fchmodat, "fchmodat", Op::Change, Follow::Yes),
    at(452, "fchmodat2", Op::Change, Follow::Unless(3, NOFOLLOW)),
    at(libc::SYS_fchownat, "fchownat", Op::Change, Follow::Unless(4, NOFOLLOW)),
    at(libc::SYS_utimensat, "utimensat", Op::Change, Follow::Unless(3, NOFOLLOW)),
    plain(libc::SYS_truncate, "truncate", Op::Change, Follow::Yes),
    nth(1, plain(libc::SYS_connect, "connect", Op::Connect, Follow::Yes)),
    nth(1, plain(libc::SYS_bind, "bind", Op::Bind, Follow::No)),
    nth(2, plain(libc::SYS_seccomp, "seccomp", Op::Filter { listens: true }, Follow::No)),
    nth(2, plain(libc::SYS_prctl, "prctl", Op::Filter { listens: false }, Follow::No)),
];

/// The older calls, which later architectures lack.
#[cfg(target_arch = "x86_64")]
const OLDER: &[Call] = &[
    plain(libc::SYS_open, "open", Op::Open { flags: 1 }, Follow::Yes),
    plain(libc::SYS_creat, "creat", Op::Create, Follow::Yes),
    plain(libc::SYS_stat, "stat", Op::Look, Follow::Yes),
    plain(libc::SYS_lstat, "lstat", Op::Look, Follow::No),
    plain(libc::SYS_access, "access", Op::Look, Follow::Yes),
    plain(libc::SYS_readlink, "readlink", Op::ReadLink, Follow::No),
    plain(libc::SYS_getdents, "getdents", Op::List, Follow::No),
    plain(libc::SYS_mkdir, "mkdir", Op::MakeDir, Follow::No),
    plain(libc::SYS_mknod, "mknod", Op::MakeNode, Follow::No),
    nth(1, plain(libc::SYS_symlink, "symlink", Op::MakeLink, Follow::No)),
    plain(libc::SYS_unlink, "unlink", Op::Remove, Follow::No),
    plain(libc::SYS_rmdir, "rmdir", Op::RemoveDir, Follow::No),
    plain(libc::SYS_rename, "rename", Op::Rename { dir: None, path: 1, flags: None }, Follow::No),
    at(libc::SYS_renameat, "renameat", Op::Rename { dir: Some(2), path: 3, flags: None }, Follow::No),
    plain(libc::SYS_link, "link", Op::Link { dir: None, path: 1 }, Follow::No),
    plain(libc::SYS_chmod, "chmod", Op::Change, Follow::Yes),
    plain(libc::SYS_chown, "chown", Op::Change, Follow::Yes),
    plain(libc::SYS_lchown, "lchown", Op::Change, Follow::No),
    plain(libc::SYS_utime, "utime", Op::Change, Follow::Yes),
    plain(libc::SYS_utimes, "utimes", Op::Change, Follow::Yes),
    at(libc::SYS_futimesat, "futimesat", Op::Change, Follow::Yes),
];

#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[Call] =
    &[at(libc::SYS_renameat, "renameat", Op::Rename { dir: Some(2), path: 3, flags: None }, Follow::No)];

/// The 32-bit calls that name a path. They are not examined: one of them makes the trace not reusable.
pub(in crate::jail) const FOREIGN: &[u32] = if cfg!(target_arch = "x86_64") { FOREIGN_OF_X86 } else { &[] };

const FOREIGN_OF_X86: &[u32] = &[
    5, 8, 9, 10, 11, 12, 14, 15, 16, 18, 30, 33, 38, 39, 40, 61, 83, 84, 85, 89, 92, 99, 102, 106, 107, 141, 182, 193,
    195, 196, 198, 212, 220, 226, 227, 229, 230, 232, 233, 235, 236, 268, 271, 292, 295, 296, 297, 298, 299, 300, 301,
    302, 303, 304, 305, 306, 307, 320, 341, 353, 354, 358, 361, 362, 383, 412, 437, 439, 452, 463, 464, 465, 466, 468,
    469,
];

/// Returns all calls of this architecture.
pub(in crate::jail::trace) fn all() -> impl Iterator<Item = &'static Call> {
    COMMON.iter().chain(OLDER)
}

/// Returns the numbers of the calls that are reported with all arguments.
pub(in crate::jail) fn reported() -> impl Iterator<Item = u32> {
    all().filter(|call| !matches!(call.op, Op::Filter { .. })).filter_map(|call| u32::try_from(call.number).ok())
}

/// The calls by their numbers.
#[derive(Debug)]
pub(super) struct Table(Vec<Option<&'static Call>>);

impl Table {
    pub(super) fn new() -> Self {
        let mut table = vec![None; 512];
        for call in all() {
            if let Some(place) = usize::try_from(call.number).ok().and_then(|number| table.get_mut(number)) {
                *place = Some(call);
            }
        }
        Self(table)
    }

    pub(super) fn get(&self, number: i32) -> Option<&'static Call> {
        usize::try_from(number).ok().and_then(|number| self.0.get(number).copied().flatten())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_call_is_listed_twice() {
        let numbers: BTreeSet<c_long> = all().map(|call| call.number).collect();
        assert_eq!(numbers.len(), all().count());
        let foreign: BTreeSet<u32> = FOREIGN.iter().copied().collect();
        assert_eq!(foreign.len(), FOREIGN.len());
    }
}
