//! The capabilities of a step's processes.

use rustix::{
    io::Errno,
    process::{Gid, Uid},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};

use super::{
    SetupError,
    error::ResultExt,
    spec::{JailPlace, UserNamespace},
};

/// The capabilities of a command: enough to install packages and to serve a port, as container engines grant
/// by default. None of them allows mounting, loading modules, or reaching into other processes.
///
/// Container engines grant MKNOD as well, because a device control group prevents device nodes from being
/// opened. Here every file system of a step is `nodev`, so a device node would be useless: without MKNOD the
/// kernel refuses to make one, by any system call. Whiteouts (0:0), which image tools make, need no
/// capability.
const COMMAND: CapabilitySet = CapabilitySet::AUDIT_WRITE
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SYS_CHROOT);

/// The capabilities that some command gets.
const ANY_COMMAND: CapabilitySet = COMMAND.union(CapabilitySet::MKNOD);

/// The capabilities of pid 1: it forwards signals, also to processes that changed their user, and does
/// nothing else.
const INIT: CapabilitySet = CapabilitySet::KILL;

/// The capabilities of a pid 1 that measures memory by polling, or traces: it reads which files the step's
/// processes have open, also those of other users, and their memory.
const WATCHING_INIT: CapabilitySet = INIT.union(CapabilitySet::SYS_PTRACE).union(CapabilitySet::DAC_READ_SEARCH);

/// Returns the capabilities of a command. Raw sockets, which can read other processes' traffic, are granted
/// only if the step has its own network.
///
/// A command with [`JailPlace::Beside`] is a program of the host that serves the step's files to a virtual
/// machine. It does not start without MKNOD. The file systems that it serves are `nodev`, too.
fn of_command(shares_network: bool, place: JailPlace) -> CapabilitySet {
    let granted = if shares_network { COMMAND.difference(CapabilitySet::NET_RAW) } else { COMMAND };
    match place {
        JailPlace::Root => granted,
        JailPlace::Beside => granted.union(CapabilitySet::MKNOD),
    }
}

/// Limits the calling thread, which is about to run the command, to the capabilities of a command.
pub(crate) fn limit_command(shares_network: bool, place: JailPlace) -> Result<(), SetupError> {
    limit_to(of_command(shares_network, place))
}

/// Drops all capabilities of the calling thread, which is about to run a command that only reads. `run_as` is
/// the user and the group that the thread changes to first.
pub(crate) fn limit_reader(user_namespace: UserNamespace, run_as: Option<(u32, u32)>) -> Result<(), SetupError> {
    let doing = || "become the owner of the files".to_owned();
    if user_namespace != UserNamespace::Single {
        set_thread_groups(&[]).doing(doing)?;
    }
    // The bounding set can no longer be changed after the change of user.
    limit_to(if run_as.is_some() { CapabilitySet::SETUID | CapabilitySet::SETGID } else { CapabilitySet::empty() })?;
    if let Some((user, group)) = run_as {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        set_thread_res_gid(group, group, group).doing(doing)?;
        set_thread_res_uid(user, user, user).doing(doing)?;
    }
    set(CapabilitySet::empty())
}

/// Removes the capabilities that no command gets from the bounding set of this process and its children. It
/// keeps those that it has until it executes a program.
pub(crate) fn limit_children() -> Result<(), SetupError> {
    limit_bounding_set(CapabilitySet::from_bits_retain(!0), ANY_COMMAND)
}

fn limit_to(granted: CapabilitySet) -> Result<(), SetupError> {
    // The others were removed by `limit_children`.
    limit_bounding_set(ANY_COMMAND, granted)?;
    clear_ambient_capability_set().doing(|| "drop capabilities".into())?;
    set(granted)
}

/// Removes the capabilities of `from` that are not in `granted` from the bounding set.
fn limit_bounding_set(from: CapabilitySet, granted: CapabilitySet) -> Result<(), SetupError> {
    let all = (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
    for capability in all.filter(|one| from.contains(*one) && !granted.contains(*one)) {
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first capability that this kernel does not know: there are no more.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(SetupError::new("drop capabilities", errno)),
        }
    }
    Ok(())
}

/// Limits pid 1 to the capabilities that it needs.
pub(crate) fn limit_init(reads_processes: bool) -> Result<(), SetupError> {
    set(if reads_processes { WATCHING_INIT } else { INIT })
}

fn set(held: CapabilitySet) -> Result<(), SetupError> {
    let current = rustix::thread::capabilities(None).doing(|| "read capabilities".into())?;
    let held = held.intersection(current.permitted);
    set_capabilities(None, CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() })
        .doing(|| "drop capabilities".into())
}
