//! Capabilities: what root may do inside a step.

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
    error::Doing,
    spec::{Place, UserNamespace},
};

/// What a command may hold: enough to install packages and to serve a port, as container engines grant by default.
/// Nothing that mounts, loads modules, or reaches into other processes.
///
/// Engines grant MKNOD as well, because a control group keeps what is made from being opened. Here every file
/// system of a step is `nodev`, so that a device node would be of no use: the kernel refuses to make one, by
/// any system call. Whiteouts (0:0), which tools for images make, take no capability.
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

/// Pid 1 forwards signals, also to processes that changed their user; nothing else.
const INIT: CapabilitySet = CapabilitySet::KILL;

/// Pid 1 that counts memory by looking reads which files the step's processes have open, also those of other
/// users.
const WATCHING_INIT: CapabilitySet = INIT.union(CapabilitySet::SYS_PTRACE).union(CapabilitySet::DAC_READ_SEARCH);

/// Returns what a command may hold. Raw sockets, which read what others send, are for a network of the
/// step's own.
///
/// A command beside the step's files is a program of the machine that serves these files to a virtual
/// machine. It does not start without MKNOD. The file systems that it serves are `nodev`, too.
fn of_command(shares_network: bool, place: Place) -> CapabilitySet {
    let granted = if shares_network { COMMAND.difference(CapabilitySet::NET_RAW) } else { COMMAND };
    match place {
        Place::Root => granted,
        Place::Beside => granted.union(CapabilitySet::MKNOD),
    }
}

/// Leaves the calling thread, which is about to run the command, with what a command may hold.
pub(crate) fn limit_command(shares_network: bool, place: Place) -> Result<(), SetupError> {
    limit_to(of_command(shares_network, place))
}

/// Leaves the calling thread, which is about to run a command that only reads, without capabilities. `run_as`
/// is the user and the group that it becomes before.
pub(crate) fn limit_reader(user_namespace: UserNamespace, run_as: Option<(u32, u32)>) -> Result<(), SetupError> {
    let doing = || "become the owner of the files".to_owned();
    if user_namespace != UserNamespace::Single {
        set_thread_groups(&[]).doing(doing)?;
    }
    // The bounding set can no longer be changed once this is another user.
    limit_to(if run_as.is_some() { CapabilitySet::SETUID | CapabilitySet::SETGID } else { CapabilitySet::empty() })?;
    if let Some((user, group)) = run_as {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        set_thread_res_gid(group, group, group).doing(doing)?;
        set_thread_res_uid(user, user, user).doing(doing)?;
    }
    set(CapabilitySet::empty())
}

fn limit_to(granted: CapabilitySet) -> Result<(), SetupError> {
    let doing = || "drop capabilities".to_owned();
    for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match remove_unless(granted.contains(capability), capability) {
            Ok(()) => {}
            // The first that this kernel does not know: there are no more.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(SetupError::new(doing(), errno)),
        }
    }
    clear_ambient_capability_set().doing(doing)?;
    set(granted)
}

fn remove_unless(granted: bool, capability: CapabilitySet) -> Result<(), Errno> {
    if granted { Ok(()) } else { remove_capability_from_bounding_set(capability) }
}

/// Leaves pid 1 with what it needs.
pub(crate) fn limit_init(counts_memory: bool) -> Result<(), SetupError> {
    set(if counts_memory { WATCHING_INIT } else { INIT })
}

fn set(held: CapabilitySet) -> Result<(), SetupError> {
    let current = rustix::thread::capabilities(None).doing(|| "read capabilities".into())?;
    let held = held.intersection(current.permitted);
    set_capabilities(None, CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() })
        .doing(|| "drop capabilities".into())
}
