//! The system calls that rustix does not offer. Every `unsafe` of the crate is in this file, except
//! for those of a tracer, which are in `notify`.
//!
//! Over 500 lines because of that: what is unsafe is read together.

#![allow(unsafe_code, reason = "system calls without a safe wrapper: clone3, execve, seccomp, close_range, signals")]

use std::{
    ffi::{CStr, c_char, c_int, c_long, c_uint},
    mem,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use rustix::{
    io::Errno,
    mount::MountAttrFlags,
    process::Pid,
    thread::{CapabilitySet, capabilities, set_thread_groups},
};

type Result<T> = std::result::Result<T, Errno>;

fn check(ret: c_long) -> Result<c_long> {
    if ret < 0 { Err(last_errno()) } else { Ok(ret) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The side of a clone that is running.
#[derive(Debug)]
pub(crate) enum Cloned {
    /// The new process.
    Child,
    /// The calling process.
    Parent {
        /// The child's id in the caller's pid namespace.
        pid: Pid,
        /// A descriptor of the child.
        pidfd: OwnedFd,
    },
}

/// Calls `clone3` with `flags` and a pidfd, without shared memory: a fork.
///
/// The caller must be single-threaded: the child continues to run Rust code, and must not find a lock that
/// another thread held. Only the zygote and a step's pid 1 call this, and they are single-threaded.
pub(crate) fn clone_process(flags: u64) -> Result<Cloned> {
    let mut pidfd: c_int = -1;
    // SAFETY: all-zero is a valid `clone_args`.
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: the arguments outlive the call; without CLONE_VM the child has its own copy of this stack and
    // memory.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, mem::size_of::<libc::clone_args>()) });
    let pid = match pid {
        // The filters of containers cannot look into the arguments of clone3, so they deny it.
        Err(Errno::NOSYS) => clone_without_arguments(args.flags, &mut pidfd)?,
        pid => pid?,
    };
    match Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::OVERFLOW)?) {
        None => Ok(Cloned::Child),
        // SAFETY: the kernel stored a new descriptor that has no other owner.
        Some(pid) => Ok(Cloned::Parent { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Calls `clone`, with which a fork can have a pidfd, too.
fn clone_without_arguments(flags: u64, pidfd: &mut c_int) -> Result<c_long> {
    let flags = c_long::try_from(flags).map_err(|_| Errno::INVAL)? | c_long::from(libc::SIGCHLD);
    let none = ptr::null_mut::<c_int>();
    // SAFETY: as for clone3: no stack means the caller's, of which the child has its own copy. The first
    // three arguments have this order on all supported architectures, and the rest is null.
    check(unsafe { libc::syscall(libc::SYS_clone, flags, none, ptr::from_mut(pidfd), none, none) })
}

/// Runs `child` in a new process that shares this one's memory until it executes a program or returns, and
/// waits for that. This is a `vfork`, which copies no page tables, on a stack of its own.
///
/// Whatever `child` allocates stays allocated here. It must not change anything that this process uses
/// afterwards. Descriptors are the exception, because it has its own copies. The caller must have one thread.
pub(crate) fn start_sharing_memory<F: FnMut()>(mut child: F) -> Result<Pid> {
    const STACK_BYTES: usize = 256 << 10;
    extern "C" fn run<F: FnMut()>(child: *mut libc::c_void) -> c_int {
        // SAFETY: the pointer is to the caller's `child`, which outlives the shared memory, and which nothing
        // else uses meanwhile.
        let child = unsafe { &mut *child.cast::<F>() };
        child();
        exit(127)
    }
    // `u128` for the alignment that a stack needs.
    let mut stack = vec![0_u128; STACK_BYTES / mem::size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: only the child uses the stack, which grows down from its end. It is freed after the child has
    // released this memory, for which CLONE_VFORK waits. No signal handler of this crate runs.
    let pid =
        check(c_long::from(unsafe { libc::clone(run::<F>, top.cast(), flags, ptr::from_mut(&mut child).cast()) }))?;
    drop(stack);
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::OVERFLOW)
}

/// Calls `execve`. Returns only on failure.
pub(crate) fn execve(path: &CStr, argv: &[&CStr], envp: &[&CStr]) -> Errno {
    let pointers =
        |strings: &[&CStr]| -> Vec<*const c_char> { strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect() };
    let (argv, envp) = (pointers(argv), pointers(envp));
    // SAFETY: both arrays end in null and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    last_errno()
}

/// Closes every descriptor from `first` on: those that the zygote inherited by mistake, before it opens its
/// own.
pub fn close_from(first: c_uint) -> Result<()> {
    // SAFETY: takes no pointers, and no `OwnedFd` exists yet.
    let closed = check(unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, 0) });
    // SAFETY: no `OwnedFd` exists yet.
    closed.map(drop).or_else(|_| for_each_from(first, |fd| check(c_long::from(unsafe { libc::close(fd) })).map(drop)))
}

/// Marks every descriptor from `first` on as close-on-exec.
pub(crate) fn close_on_exec_from(first: c_uint) -> Result<()> {
    // SAFETY: takes no pointers, and closes nothing here.
    let marked = check(unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) });
    marked.map(drop).or_else(|_| {
        for_each_from(first, |fd| {
            // SAFETY: takes no pointers, and closes nothing here.
            check(c_long::from(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })).map(drop)
        })
    })
}

/// Does what `close_range` does, which some kernels and filters do not know, to one open descriptor after the
/// other.
fn for_each_from(first: c_uint, change: impl Fn(c_int) -> Result<()>) -> Result<()> {
    let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        open.extend(name.to_str().and_then(|name| name.parse::<c_int>().ok()));
    }
    for fd in open.into_iter().filter(|fd| c_uint::try_from(*fd).is_ok_and(|fd| fd >= first)) {
        match change(fd) {
            // The directory itself, which was closed meanwhile.
            Ok(()) | Err(Errno::BADF) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Moves the calling thread out of shared namespaces.
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> Result<()> {
    // SAFETY: only CLONE_FILES with several threads may break memory safety; the callers are single-threaded.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Makes `fd` the descriptor `target`, which stays open across `execve`.
pub(crate) fn move_to(fd: impl AsFd, target: c_int) -> Result<()> {
    // SAFETY: takes no pointers. `target` is one of the three standard descriptors, or above all descriptors
    // that this process has opened, so no `OwnedFd` owns it.
    check(c_long::from(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), target) })).map(drop)
}

/// Returns the descriptor that the engine gave the zygote as its standard input.
pub(crate) fn stdin() -> BorrowedFd<'static> {
    // SAFETY: descriptor 0 stays open as long as the zygote lives.
    unsafe { BorrowedFd::borrow_raw(0) }
}

/// Ends the process at once, without running destructors or exit handlers.
pub(crate) fn exit(code: c_int) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Installs a seccomp filter on the calling thread. The thread must hold CAP_SYS_ADMIN in its user namespace,
/// or have `no_new_privs` set.
pub(crate) fn install_seccomp(program: &[libc::sock_filter]) -> Result<()> {
    const SET_MODE_FILTER: c_uint = 1;
    let prog = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut(),
    };
    // Leaves the mitigation of speculative store bypass as the system set it, as container engines do.
    for flags in [libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW, 0] {
        // SAFETY: `prog` points to `len` instructions that outlive the call; the kernel copies and checks
        // them.
        match check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const prog) }) {
            Err(Errno::INVAL) if flags != 0 => {}
            done => return done.map(drop),
        }
    }
    Err(Errno::INVAL)
}

/// Runs `act` as a user and a group who own no files, without the capabilities that override file modes. The
/// caller must be root, and have a single thread.
pub(crate) fn as_owner_of_nothing<T>(act: impl FnOnce() -> T) -> Result<T> {
    /// The largest valid id, which no account has.
    const NONE: libc::uid_t = libc::uid_t::MAX - 2;
    // This user must not get root's access by group, either. The groups are not restored.
    set_thread_groups(&[])?;
    // SAFETY: takes no pointers, and changes the calling thread alone, the only one.
    let set = |id: libc::uid_t| unsafe { (libc::setfsgid(id), libc::setfsuid(id)) };
    set(NONE);
    // These calls return only the previous value, so a second call checks the first.
    let is_set = set(NONE) == (NONE.cast_signed(), NONE.cast_signed());
    let passes_by = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    let done = match capabilities(None) {
        Ok(sets) if is_set && !sets.effective.intersects(passes_by) => Ok(act()),
        Ok(_) => Err(Errno::PERM),
        Err(error) => Err(error),
    };
    set(0);
    done
}

/// Makes the kernel reap children itself.
pub(crate) fn ignore_children() -> Result<()> {
    set_disposition(libc::SIGCHLD, libc::SIG_IGN)
}

/// Returns the signals that this process ignores, and that programs executed by it and its children would
/// ignore, too. Handlers are not inherited.
pub(crate) fn ignored_signals() -> Result<Vec<c_int>> {
    let mut ignored = Vec::new();
    for signal in 1..=64 {
        let mut action = DEFAULT_ACTION;
        rt_sigaction(signal, None, Some(&mut action))?;
        // The first field is the handler.
        if action[0] == libc::SIG_IGN as u64 {
            ignored.push(signal);
        }
    }
    Ok(ignored)
}

/// Gives ignored signals their default action and blocks none, as a command expects.
pub(crate) fn reset_signals(ignored: &[c_int]) -> Result<()> {
    ignored.iter().try_for_each(|signal| rt_sigaction(*signal, Some(&DEFAULT_ACTION), None))?;
    set_blocked(&[])
}

/// The kernel's `sigaction`, all zero: SIG_DFL, no flags, an empty mask.
const DEFAULT_ACTION: [u64; 4] = [0; 4];

/// Calls `rt_sigaction`, because the C library reserves signals 32 and 33. No new action has a handler.
fn rt_sigaction(signal: c_int, new: Option<&[u64; 4]>, old: Option<&mut [u64; 4]>) -> Result<()> {
    /// The size of the kernel's signal set, in bytes.
    const SET_BYTES: usize = 8;
    let (new, old) = (new.map_or(ptr::null(), ptr::from_ref), old.map_or(ptr::null_mut(), ptr::from_mut));
    // SAFETY: both are null or as long as the structure on every architecture, and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, old, SET_BYTES) }).map(drop)
}

fn set_disposition(signal: c_int, handler: libc::sighandler_t) -> Result<()> {
    // SAFETY: all-zero is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler;
    // SAFETY: `action` outlives the call, and its handler is SIG_DFL or SIG_IGN: no code of this crate runs
    // on a signal.
    check(c_long::from(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) })).map(drop)
}

fn signal_set(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: `sigemptyset` makes the zeroed set a valid one, `sigaddset` adds known signals to it.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

/// Blocks exactly `signals`.
fn set_blocked(signals: &[c_int]) -> Result<()> {
    let set = signal_set(signals);
    // SAFETY: `set` outlives the call.
    check(c_long::from(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut()) })).map(drop)
}

/// Blocks SIGCHLD alone and returns a descriptor that becomes readable with it.
pub(crate) fn child_signals() -> Result<OwnedFd> {
    set_disposition(libc::SIGCHLD, libc::SIG_DFL)?;
    signals(&[libc::SIGCHLD])
}

/// Blocks all signals and returns a descriptor that becomes readable with SIGCHLD.
pub(crate) fn only_child_signals() -> Result<OwnedFd> {
    set_disposition(libc::SIGCHLD, libc::SIG_DFL)?;
    set_blocked(&(1..=libc::SIGRTMAX()).collect::<Vec<_>>())?;
    signal_descriptor(&[libc::SIGCHLD])
}

/// Blocks exactly the signals that request the process to end, and returns a descriptor that becomes readable
/// with them. A hang-up that is ignored, as under `nohup`, stays ignored.
pub(crate) fn end_signals() -> Result<OwnedFd> {
    let all = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
    signals(if is_ignored(libc::SIGHUP)? { &all[..2] } else { &all })
}

fn is_ignored(signal: c_int) -> Result<bool> {
    // SAFETY: all-zero is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: `action` outlives the call, which changes nothing else.
    check(c_long::from(unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) }))?;
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

/// Blocks no signal.
pub(crate) fn unblock_signals() -> Result<()> {
    set_blocked(&[])
}

/// Blocks exactly `signals` and returns a descriptor that becomes readable with them.
fn signals(signals: &[c_int]) -> Result<OwnedFd> {
    set_blocked(signals)?;
    signal_descriptor(signals)
}

/// Returns a descriptor that becomes readable with `signals`, which must be blocked.
fn signal_descriptor(signals: &[c_int]) -> Result<OwnedFd> {
    let set = signal_set(signals);
    // SAFETY: `set` outlives the call.
    let fd =
        check(c_long::from(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) }))?;
    // SAFETY: the kernel made a new descriptor that has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(|_| Errno::OVERFLOW)?) })
}

/// A child that ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reaped {
    /// Its process id.
    pub(crate) pid: Pid,
    /// Its exit code, or 128+n after signal n.
    pub(crate) code: i32,
    /// The processor time of the child and of the children it waited for, user and system, in microseconds.
    pub(crate) cpu_micros: u64,
    /// The largest resident set among them, in bytes.
    pub(crate) max_rss_bytes: u64,
}

/// The result of looking for an ended child.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reap {
    /// This child ended, and was reaped.
    Ended(Reaped),
    /// There are children, but none has ended.
    NoneYet,
    /// There is no child.
    NoChild,
}

/// Reaps one ended child, if there is one.
pub(crate) fn reap() -> Result<Reap> {
    let mut status: c_int = 0;
    // SAFETY: all-zero is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: both pointers outlive the call.
    let pid = match check(c_long::from(unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) })) {
        Err(Errno::CHILD) => return Ok(Reap::NoChild),
        pid => pid?,
    };
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(Reap::NoneYet) };
    let code = if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
    let micros = |t: libc::timeval| u64::try_from(t.tv_sec * 1_000_000 + t.tv_usec).unwrap_or(0);
    Ok(Reap::Ended(Reaped {
        pid,
        code,
        cpu_micros: micros(usage.ru_utime) + micros(usage.ru_stime),
        max_rss_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    }))
}

/// Sends `signal` to every process of the caller's pid namespace but the caller.
pub(crate) fn signal_all(signal: c_int) {
    // SAFETY: takes no pointers. Only pid 1 of a step calls this, and -1 reaches only its namespace. If no
    // process is left, this fails with ESRCH.
    unsafe { libc::kill(-1, signal) };
}

/// Adds `attributes` to the mount at the root of `tree`, and to the mounts below it.
pub(crate) fn restrict_mounts(tree: impl AsFd, attributes: MountAttrFlags) -> Result<()> {
    set_mount_attributes(tree, c"", libc::AT_RECURSIVE, attributes)
}

/// Adds `attributes` to the mount at the root of `tree` only.
pub(crate) fn restrict_mount(tree: impl AsFd, attributes: MountAttrFlags) -> Result<()> {
    set_mount_attributes(tree, c"", 0, attributes)
}

/// Adds `attributes` to the mount at `path`, and to the mounts below it.
pub(crate) fn restrict_mounts_at(path: &CStr, attributes: MountAttrFlags) -> Result<()> {
    set_mount_attributes(rustix::fs::CWD, path, libc::AT_RECURSIVE, attributes)
}

fn set_mount_attributes(dir: impl AsFd, path: &CStr, flags: c_int, attributes: MountAttrFlags) -> Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attr = MountAttr { set: attributes.bits().into(), clear: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: `path` is a C string, and `attr` has the size given; both outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_fd().as_raw_fd(),
            path.as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const attr,
            mem::size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Returns the version of the kernel's Landlock interface, or an error if the kernel has none or it is
/// disabled.
pub(crate) fn landlock_version() -> Result<u32> {
    const VERSION: c_uint = 1;
    // SAFETY: with this flag the kernel takes a null pointer and a size of zero, and reads neither.
    let version = check(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<LandlockRuleset>(), 0_usize, VERSION)
    })?;
    u32::try_from(version).map_err(|_| Errno::OVERFLOW)
}

/// The kernel's `landlock_ruleset_attr`, as of version 6 of the interface.
#[repr(C)]
struct LandlockRuleset {
    access_fs: u64,
    access_net: u64,
    scoped: u64,
}

/// Puts the calling thread, and all that it will start, into a Landlock domain. Accesses of the kinds in
/// `scoped` cannot leave the domain. `no_new_privs` must be set, or CAP_SYS_ADMIN held.
pub(crate) fn landlock_scope(scoped: u64) -> Result<()> {
    let ruleset = LandlockRuleset { access_fs: 0, access_net: 0, scoped };
    let size = mem::size_of::<LandlockRuleset>();
    // SAFETY: `ruleset` has the size given and outlives the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, size, 0) })?;
    // SAFETY: the kernel made a new descriptor that has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(|_| Errno::OVERFLOW)?) };
    // SAFETY: takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd.as_raw_fd(), 0) }).map(drop)
}

/// Brings up the loopback device of the caller's network namespace.
pub(crate) fn loopback_up(socket: impl AsFd) -> Result<()> {
    link_up(socket, b"lo")
}

fn link_up(socket: impl AsFd, name: &[u8]) -> Result<()> {
    let mut request = interface(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    interface_ioctl(socket, libc::SIOCSIFFLAGS, &request)
}

/// Sets the address of a network interface, and brings it up.
pub(crate) fn interface_up(socket: impl AsFd, name: &[u8], address: Ipv4Addr, netmask: Ipv4Addr) -> Result<()> {
    for (number, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, netmask)] {
        let mut request = interface(name);
        request.ifr_ifru.ifru_addr = socket_address(value);
        interface_ioctl(&socket, number, &request)?;
    }
    link_up(socket, name)
}

/// Makes `gateway` the default route.
pub(crate) fn default_route(socket: impl AsFd, gateway: Ipv4Addr) -> Result<()> {
    // SAFETY: all-zero is a valid `rtentry`.
    let mut route: libc::rtentry = unsafe { mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `route` is an `rtentry` without a device name that outlives the call.
    check(c_long::from(unsafe { libc::ioctl(fd, libc::SIOCADDRT as _, &raw const route) })).map(drop)
}

/// Sets the largest packet of a network interface, in bytes.
pub(crate) fn set_mtu(socket: impl AsFd, name: &[u8], bytes: c_int) -> Result<()> {
    let mut request = interface(name);
    request.ifr_ifru.ifru_mtu = bytes;
    interface_ioctl(socket, libc::SIOCSIFMTU, &request)
}

/// Makes `file`, an open `/dev/net/tun`, a device of the caller's network namespace that passes IP packets
/// and leaves checksums and segmentation to its user. The device lives as long as the namespace.
pub(crate) fn make_tun(file: impl AsFd, name: &[u8]) -> Result<()> {
    const PERSIST: c_int = 1;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let mut request = interface(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    interface_ioctl(&file, libc::c_ulong::from(libc::TUNSETIFF), &request)?;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: takes a number instead of a pointer.
    check(c_long::from(unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD as _, offloads) }))?;
    // SAFETY: takes a number instead of a pointer.
    check(c_long::from(unsafe { libc::ioctl(fd, libc::TUNSETPERSIST as _, PERSIST) })).map(drop)
}

fn interface(name: &[u8]) -> libc::ifreq {
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays zero.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name) {
        *to = from.cast_signed() as c_char;
    }
    request
}

fn interface_ioctl(socket: impl AsFd, number: libc::c_ulong, request: &libc::ifreq) -> Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: every `number` that this is called with takes an `ifreq`, which outlives the call.
    check(c_long::from(unsafe { libc::ioctl(fd, number as _, ptr::from_ref(request)) })).map(drop)
}

/// Converts an address to the form that the kernel's older interfaces take.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    // The first two bytes are the port.
    for (to, from) in data[2..6].iter_mut().zip(address.octets()) {
        *to = from.cast_signed() as c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

/// Loads a kernel module. If it is `compressed`, the kernel decompresses it.
pub(crate) fn load_module(file: impl AsFd, compressed: bool) -> Result<()> {
    const COMPRESSED_FILE: c_int = 4;
    let flags = if compressed { COMPRESSED_FILE } else { 0 };
    // SAFETY: the parameters are an empty C string; the kernel reads the file itself.
    check(unsafe { libc::syscall(libc::SYS_finit_module, file.as_fd().as_raw_fd(), c"".as_ptr(), flags) }).map(drop)
}

/// Makes the random generator, which `file` is, use at once the data that was written to it.
pub(crate) fn reseed(file: impl AsFd) -> Result<()> {
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    // SAFETY: takes no argument.
    check(c_long::from(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), RNDRESEEDCRNG as _) })).map(drop)
}
