//! The system calls of x86-64, and those of 32-bit programs on it.

use super::{CLONE, PERM, PERSONALITIES, PRETEND, UNIX_SOCKET, UNSHARE, Verdict};

pub(super) const NATIVE: u32 = 0xC000_003E;
pub(super) const DENIED: &[libc::c_long] =
    numbers![SYS__sysctl, SYS_ioperm, SYS_iopl, SYS_sysfs, SYS_uselib, SYS_ustat,];
pub(super) const PRETENDED: &[(libc::c_long, Verdict)] = &[(libc::SYS_chown, PRETEND), (libc::SYS_lchown, PRETEND)];

/// 32-bit programs.
pub(super) const COMPAT: Option<u32> = Some(0x4000_0003);
pub(super) const COMPAT_SOCKET: u32 = 359;
/// The number of `socket`. The older `socketcall` keeps its arguments in memory, which a filter cannot
/// read.
pub(super) const COMPAT_SOCKETS: &[(u32, Verdict)] = &[(359, UNIX_SOCKET), (102, PERM)];
pub(super) const COMPAT_DENIED: &[(u32, Verdict)] = &[
    (120, CLONE),
    (310, UNSHARE),
    (136, Verdict::AllowValues(PERSONALITIES)),
    (21, PERM),  // mount
    (22, PERM),  // umount
    (25, PERM),  // stime
    (51, PERM),  // acct
    (52, PERM),  // umount2
    (62, PERM),  // ustat
    (79, PERM),  // settimeofday
    (86, PERM),  // uselib
    (87, PERM),  // swapon
    (88, PERM),  // reboot
    (101, PERM), // ioperm
    (103, PERM), // syslog
    (110, PERM), // iopl
    (111, PERM), // vhangup
    (113, PERM), // vm86old
    (115, PERM), // swapoff
    (127, PERM), // create_module
    (128, PERM), // init_module
    (129, PERM), // delete_module
    (130, PERM), // get_kernel_syms
    (131, PERM), // quotactl
    (135, PERM), // sysfs
    (149, PERM), // _sysctl
    (166, PERM), // vm86
    (167, PERM), // query_module
    (169, PERM), // nfsservctl
    (217, PERM), // pivot_root
    (253, PERM), // lookup_dcookie
    (264, PERM), // clock_settime
    (274, PERM), // mbind
    (275, PERM), // get_mempolicy
    (276, PERM), // set_mempolicy
    (283, PERM), // kexec_load
    (286, PERM), // add_key
    (287, PERM), // request_key
    (288, PERM), // keyctl
    (294, PERM), // migrate_pages
    (317, PERM), // move_pages
    (336, PERM), // perf_event_open
    (338, PERM), // fanotify_init
    (342, PERM), // open_by_handle_at
    (343, PERM), // clock_adjtime
    (346, PERM), // setns
    (349, PERM), // kcmp
    (350, PERM), // finit_module
    (357, PERM), // bpf
    (374, PERM), // userfaultfd
    (404, PERM), // clock_settime64
    (405, PERM), // clock_adjtime64
];
pub(super) const COMPAT_PRETENDED: &[(u32, Verdict)] = &[
    (16, PRETEND),  // lchown16
    (23, PRETEND),  // setuid16
    (46, PRETEND),  // setgid16
    (70, PRETEND),  // setreuid16
    (71, PRETEND),  // setregid16
    (81, PRETEND),  // setgroups16
    (95, PRETEND),  // fchown16
    (138, PRETEND), // setfsuid16
    (139, PRETEND), // setfsgid16
    (164, PRETEND), // setresuid16
    (170, PRETEND), // setresgid16
    (182, PRETEND), // chown16
    (185, PRETEND), // capset
    (198, PRETEND), // lchown
    (203, PRETEND), // setreuid
    (204, PRETEND), // setregid
    (206, PRETEND), // setgroups
    (207, PRETEND), // fchown
    (208, PRETEND), // setresuid
    (210, PRETEND), // setresgid
    (212, PRETEND), // chown
    (213, PRETEND), // setuid
    (214, PRETEND), // setgid
    (215, PRETEND), // setfsuid
    (216, PRETEND), // setfsgid
    (298, PRETEND), // fchownat
];
