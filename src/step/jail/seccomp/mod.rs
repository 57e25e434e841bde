//! System call filters.
//!
//! The policy is the default of container engines, minus the creation of namespaces. Calls that affect the
//! machine rather than the step's own files and processes fail with EPERM. Calls that this list does not know
//! yet fail with ENOSYS, so that programs fall back. `clone3` fails with ENOSYS too, because a filter cannot
//! see its flags.

mod filter;

use libc::{c_long, sock_filter};

use self::filter::{Verdict, program};
use super::trace;

const PERM: Verdict = Verdict::Errno(libc::EPERM as u16);
const NOSYS: Verdict = Verdict::Errno(libc::ENOSYS as u16);
const PRETEND: Verdict = Verdict::Errno(0);

/// Every flag of `clone` that makes a namespace. CLONE_NEWTIME is missing, because `clone` takes its bit as
/// part of a signal number.
const NAMESPACE_BITS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();
const NEWTIME: u32 = 0x80;
/// Linux, 32 bits, uname 2.6, and no address randomisation (which sanitizers request); all ones is a query
/// without a change.
const PERSONALITIES: &[u32] = &[0, 8, 0x2_0000, 0x2_0008, 0x4_0000, u32::MAX];

const CLONE: Verdict = Verdict::DenyBits { argument: 0, bits: NAMESPACE_BITS };
const UNSHARE: Verdict = Verdict::DenyBits { argument: 0, bits: NAMESPACE_BITS | NEWTIME };
/// Sockets to the hypervisor, which network namespaces do not isolate.
const SOCKET: Verdict = Verdict::DenyValues(&[libc::AF_VSOCK.cast_unsigned()]);
/// On a shared network, also sockets that read other processes' traffic. They need CAP_NET_RAW, which the
/// step does not have there: this is a second line of defence.
const SHARED_SOCKET: Verdict = Verdict::DenyValues(&[
    libc::AF_VSOCK.cast_unsigned(),
    libc::AF_PACKET.cast_unsigned(),
    libc::AF_XDP.cast_unsigned(),
]);
const UNIX_SOCKET: Verdict = Verdict::DenyValues(&[libc::AF_UNIX.cast_unsigned()]);

/// The first number that this list does not cover (after `listns`).
const FIRST_UNKNOWN: u32 = 471;

/// The calls from number 424 on, which have the same number on every architecture.
const COMMON: &[(u32, Verdict)] = &[
    (425, PERM),  // io_uring_setup
    (426, PERM),  // io_uring_enter
    (427, PERM),  // io_uring_register
    (428, PERM),  // open_tree
    (429, PERM),  // move_mount
    (430, PERM),  // fsopen
    (431, PERM),  // fsconfig
    (432, PERM),  // fsmount
    (433, PERM),  // fspick
    (435, NOSYS), // clone3
    (438, PERM),  // pidfd_getfd
    (440, PERM),  // process_madvise
    (442, PERM),  // mount_setattr
    (443, PERM),  // quotactl_fd
    (450, PERM),  // set_mempolicy_home_node
    (467, PERM),  // open_tree_attr
];

macro_rules! numbers {
    ($($name:ident),* $(,)?) => { &[$(libc::$name),*] };
}

const DENIED: &[c_long] = numbers![
    SYS_acct,
    SYS_add_key,
    SYS_bpf,
    SYS_clock_adjtime,
    SYS_clock_settime,
    SYS_delete_module,
    SYS_fanotify_init,
    SYS_finit_module,
    SYS_get_mempolicy,
    SYS_init_module,
    SYS_kcmp,
    SYS_kexec_file_load,
    SYS_kexec_load,
    SYS_keyctl,
    SYS_lookup_dcookie,
    SYS_mbind,
    SYS_migrate_pages,
    SYS_mount,
    SYS_move_pages,
    SYS_nfsservctl,
    SYS_open_by_handle_at,
    SYS_perf_event_open,
    SYS_pivot_root,
    SYS_quotactl,
    SYS_reboot,
    SYS_request_key,
    SYS_set_mempolicy,
    SYS_setns,
    SYS_settimeofday,
    SYS_swapoff,
    SYS_swapon,
    SYS_syslog,
    SYS_umount2,
    SYS_userfaultfd,
    SYS_vhangup,
];

const PRETENDED: &[c_long] = numbers![
    SYS_capset,
    SYS_fchown,
    SYS_fchownat,
    SYS_setfsgid,
    SYS_setfsuid,
    SYS_setgid,
    SYS_setgroups,
    SYS_setregid,
    SYS_setresgid,
    SYS_setresuid,
    SYS_setreuid,
    SYS_setuid,
];

#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod arch;

#[cfg(not(target_arch = "x86_64"))]
#[path = "aarch64.rs"]
mod arch;

/// Returns the filter of denied calls for every step. `shares_network` adds the sockets denied on a shared
/// network.
pub(crate) fn denied(shares_network: bool) -> Vec<sock_filter> {
    let socket = if shares_network { SHARED_SOCKET } else { SOCKET };
    let native = natives(DENIED.iter().chain(arch::DENIED), PERM).chain([
        (number(libc::SYS_clone), CLONE),
        (number(libc::SYS_unshare), UNSHARE),
        (number(libc::SYS_personality), Verdict::AllowValues(PERSONALITIES)),
        (number(libc::SYS_socket), socket),
        (FIRST_UNKNOWN, NOSYS),
    ]);
    let compat = arch::COMPAT_DENIED.iter().copied().chain([(arch::COMPAT_SOCKET, socket), (FIRST_UNKNOWN, NOSYS)]);
    let common = || COMMON.iter().copied();
    program(native.chain(common()).collect(), compat.chain(common()).collect(), NOSYS)
}

/// Returns the filter of calls that succeed without effect if there is a single id: its user owns every
/// file, so a change of owner has no meaning.
pub(crate) fn pretended() -> Vec<sock_filter> {
    let native = natives(PRETENDED.iter(), PRETEND)
        .chain(arch::PRETENDED.iter().map(|&(call, verdict)| (number(call), verdict)));
    program(native.collect(), arch::COMPAT_PRETENDED.to_vec(), Verdict::Allow)
}

/// Returns the additional filter of a command that only reads. Unix sockets are denied because the sockets
/// among the files that it is shown lead to programs outside, in every network namespace.
pub(crate) fn for_readers() -> Vec<sock_filter> {
    program(vec![(number(libc::SYS_socket), UNIX_SOCKET)], arch::COMPAT_SOCKETS.to_vec(), Verdict::Allow)
}

/// Returns the additional filter of a traced step, which reports every call that names a path. Calls that
/// another filter denies are not reported.
pub(crate) fn traced() -> Vec<sock_filter> {
    const SET_MODE_FILTER: u32 = 1;
    let native = trace::reported().map(|call| (call, Verdict::Notify)).chain([
        (number(libc::SYS_seccomp), Verdict::NotifyValue(SET_MODE_FILTER)),
        (number(libc::SYS_prctl), Verdict::NotifyValue(libc::PR_SET_SECCOMP.cast_unsigned())),
    ]);
    let compat = trace::FOREIGN.iter().map(|&call| (call, Verdict::Notify));
    program(native.collect(), compat.collect(), Verdict::Allow)
}

fn natives<'a>(calls: impl Iterator<Item = &'a c_long>, verdict: Verdict) -> impl Iterator<Item = (u32, Verdict)> {
    calls.map(move |&call| (number(call), verdict))
}

fn number(call: c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::{
        filter::{ARCHITECTURE, JUMP, JUMP_ANY_BIT, JUMP_EQUAL, JUMP_GREATER_OR_EQUAL, LOAD, NUMBER, RETURN},
        *,
    };

    /// Returns the filter's result, executed as the kernel does.
    fn run(program: &[sock_filter], arch: u32, nr: u32, args: [u32; 3]) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let it = program[at];
            at += 1;
            let mut jump = |yes: bool| at += usize::from(if yes { it.jt } else { it.jf });
            match it.code {
                LOAD => {
                    accumulator = match it.k {
                        NUMBER => nr,
                        ARCHITECTURE => arch,
                        offset => args[(offset as usize - 16) / 8],
                    }
                }
                JUMP => at += it.k as usize,
                JUMP_EQUAL => jump(accumulator == it.k),
                JUMP_GREATER_OR_EQUAL => jump(accumulator >= it.k),
                JUMP_ANY_BIT => jump(accumulator & it.k != 0),
                RETURN => return it.k,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    const SUCCESS: u32 = libc::SECCOMP_RET_ERRNO;

    #[test]
    fn every_number_gets_the_verdict_of_its_rule() {
        let program = denied(true);
        let native = |call| run(&program, arch::NATIVE, call, [0; 3]);
        for call in 0..FIRST_UNKNOWN {
            let denied = DENIED.iter().chain(arch::DENIED).any(|&nr| number(nr) == call);
            let common = COMMON.iter().find(|(nr, _)| *nr == call);
            let expected = match common {
                Some((_, verdict)) if *verdict == NOSYS => ENOSYS,
                Some(_) => EPERM,
                None if denied => EPERM,
                None => ALLOW,
            };
            assert_eq!(native(call), expected, "call {call}");
        }
        for call in [FIRST_UNKNOWN, 1000, 0x4000_0000, 0x4000_0001, u32::MAX] {
            assert_eq!(native(call), ENOSYS, "call {call}");
        }
    }

    #[test]
    fn namespaces_can_not_be_made() {
        let program = denied(false);
        let native = |call, argument| run(&program, arch::NATIVE, number(call), [argument, 0, 0]);
        assert_eq!(native(libc::SYS_clone, libc::SIGCHLD.cast_unsigned()), ALLOW);
        assert_eq!(native(libc::SYS_clone, libc::CLONE_NEWUSER.cast_unsigned()), EPERM);
        assert_eq!(native(libc::SYS_unshare, libc::CLONE_FS.cast_unsigned()), ALLOW);
        assert_eq!(native(libc::SYS_unshare, NEWTIME), EPERM);
        assert_eq!(native(libc::SYS_personality, 0x0400_0000), EPERM);
    }

    #[test]
    fn sockets_that_read_what_others_send_are_for_a_network_of_ones_own() {
        let socket = |shares_network, family: i32| {
            run(&denied(shares_network), arch::NATIVE, number(libc::SYS_socket), [family.cast_unsigned(), 0, 0])
        };
        for (family, own, shared) in [
            (libc::AF_INET, ALLOW, ALLOW),
            (libc::AF_UNIX, ALLOW, ALLOW),
            (libc::AF_NETLINK, ALLOW, ALLOW),
            (libc::AF_PACKET, ALLOW, EPERM),
            (libc::AF_XDP, ALLOW, EPERM),
            (libc::AF_VSOCK, EPERM, EPERM),
        ] {
            assert_eq!((socket(false, family), socket(true, family)), (own, shared), "family {family}");
        }
    }

    #[test]
    fn readers_get_pairs_of_unix_sockets_but_none_that_connects() {
        let program = for_readers();
        let native = |call, argument| run(&program, arch::NATIVE, number(call), [argument, 0, 0]);
        assert_eq!(native(libc::SYS_socket, libc::AF_UNIX.cast_unsigned()), EPERM);
        assert_eq!(native(libc::SYS_socket, libc::AF_INET.cast_unsigned()), ALLOW);
        assert_eq!(native(libc::SYS_socketpair, libc::AF_UNIX.cast_unsigned()), ALLOW);
        if let Some(compat) = arch::COMPAT {
            assert_eq!(run(&program, compat, 359, [libc::AF_UNIX.cast_unsigned(), 0, 0]), EPERM);
            assert_eq!(run(&program, compat, 102, [0; 3]), EPERM);
        }
    }

    #[test]
    fn calls_that_name_paths_are_reported() {
        let program = traced();
        let native = |call, argument| run(&program, arch::NATIVE, number(call), [argument, 0, 0]);
        for call in [libc::SYS_openat, libc::SYS_execve, libc::SYS_renameat2, libc::SYS_getdents64, libc::SYS_statx] {
            assert_eq!(native(call, 0), libc::SECCOMP_RET_USER_NOTIF, "call {call}");
        }
        for call in [libc::SYS_read, libc::SYS_write, libc::SYS_close, libc::SYS_fstat, libc::SYS_mmap] {
            assert_eq!(native(call, 0), ALLOW, "call {call}");
        }
        assert_eq!(native(libc::SYS_prctl, libc::PR_SET_NAME.cast_unsigned()), ALLOW);
        assert_eq!(native(libc::SYS_prctl, libc::PR_SET_SECCOMP.cast_unsigned()), libc::SECCOMP_RET_USER_NOTIF);
        if let Some(compat) = arch::COMPAT {
            assert_eq!(run(&program, compat, 5, [0; 3]), libc::SECCOMP_RET_USER_NOTIF);
        }
    }

    #[test]
    fn what_can_open_files_without_a_reported_call_is_denied() {
        let program = denied(false);
        for call in [libc::SYS_io_uring_setup, libc::SYS_open_by_handle_at, libc::SYS_open_tree, libc::SYS_mount] {
            assert_eq!(run(&program, arch::NATIVE, number(call), [0; 3]), EPERM, "call {call}");
        }
        // x32.
        assert_eq!(run(&program, arch::NATIVE, 0x4000_0002, [0; 3]), ENOSYS);
    }

    #[test]
    fn another_architecture_gets_no_calls() {
        assert_eq!(run(&denied(false), 0x1234, 0, [0; 3]), ENOSYS);
    }

    #[test]
    fn programs_of_32_bits_have_a_list_of_their_own() {
        let Some(compat) = arch::COMPAT else { return };
        let compat = |call, argument| run(&denied(true), compat, call, [argument, 0, 0]);
        assert_eq!(compat(21, 0), EPERM);
        assert_eq!(compat(120, libc::CLONE_NEWNET.cast_unsigned()), EPERM);
        assert_eq!(compat(4, 0), ALLOW);
        assert_eq!(compat(359, libc::AF_INET.cast_unsigned()), ALLOW);
        assert_eq!(compat(359, libc::AF_PACKET.cast_unsigned()), EPERM);
        assert_eq!(compat(435, 0), ENOSYS);
    }

    #[test]
    fn owners_are_pretended_and_nothing_that_can_be_looked_at() {
        let program = pretended();
        assert_eq!(run(&program, arch::NATIVE, number(libc::SYS_mknodat), [0, 0, libc::S_IFCHR]), ALLOW);
        assert_eq!(run(&program, arch::NATIVE, number(libc::SYS_fchownat), [0; 3]), SUCCESS);
        assert_eq!(run(&program, arch::NATIVE, number(libc::SYS_write), [0; 3]), ALLOW);
        assert_eq!(run(&program, arch::NATIVE, 5000, [0; 3]), ALLOW);
    }
}
