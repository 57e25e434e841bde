//! The process that forks steps.
//!
//! A fork of the engine would copy its page tables (25 to 160 ms for a gigabyte), and is unsafe because the
//! engine has several threads. The zygote is small, has one thread, and only waits for requests. It ends with
//! the engine: its standard input is the request socket, and it ends at the end of that stream. When it ends,
//! every step's pid 1 ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::Gid,
    mount::{MountPropagationFlags, mount_change},
    net::RecvFlags,
    process::{PidfdFlags, Resource, Rlimit, getegid, geteuid, getpid, getrlimit, pidfd_open, setrlimit},
    thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::{
    SetupError, caps,
    error::ResultExt,
    exe,
    init::{self, StepFds},
    landlock,
    mounts::{Proc, SpecialPaths},
    network, seccomp,
    spec::{Report, Request, StepNetwork, UserNamespace, greeting},
    supervisor::{self, SupervisorFds},
    sys::{self, Cloned},
    tree, wire,
};

/// The first argument of a program that is started as a zygote. The second is the [`UserNamespace`] by name,
/// or [`UNISOLATED`].
pub const MARKER: &str = "__hm-sandbox";

/// The second argument of a zygote without namespaces, which starts steps without isolation.
pub const UNISOLATED: &str = "unisolated";

/// Returns the clone flags of a step's pid 1.
pub(super) fn clone_flags(network: &init::Network) -> u64 {
    let network = match network {
        init::Network::Loopback => libc::CLONE_NEWNET,
        init::Network::Shared | init::Network::Given(_) => 0,
    };
    u64::from((NAMESPACES | network).cast_unsigned())
}

const NAMESPACES: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWCGROUP;

/// The data that is the same for every step, computed once.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) special_paths: SpecialPaths,
    pub(super) proc: Proc,
    /// Whether connections and signals can be restricted to a step.
    pub(super) has_landlock_scopes: bool,
    /// The signals that commands would inherit ignored.
    pub(super) ignored_signals: Vec<libc::c_int>,
    denied: Vec<libc::sock_filter>,
    denied_on_shared_network: Vec<libc::sock_filter>,
    pretended: Vec<libc::sock_filter>,
    /// The filter of traced steps, made for the first of them.
    traced: std::cell::OnceCell<Vec<libc::sock_filter>>,
}

impl Prepared {
    /// Prepares this process, which executes no program any more itself, for steps.
    pub(super) fn new(proc: Proc) -> Result<Self, SetupError> {
        caps::limit_children()?;
        Ok(Self {
            proc,
            special_paths: SpecialPaths::of_this_kernel(),
            has_landlock_scopes: landlock::has_scopes(),
            ignored_signals: ignored_signals()?,
            denied: seccomp::denied(false),
            denied_on_shared_network: seccomp::denied(true),
            pretended: seccomp::pretended(),
            traced: std::cell::OnceCell::new(),
        })
    }

    /// Returns the filter that reports the calls of a traced step.
    pub(super) fn traced(&self) -> &[libc::sock_filter] {
        self.traced.get_or_init(seccomp::traced)
    }

    /// Returns the filters of a step, in the order in which they are installed.
    pub(super) fn filters(
        &self,
        user_namespace: UserNamespace,
        shares_network: bool,
    ) -> impl Iterator<Item = &[libc::sock_filter]> {
        let pretended = (user_namespace == UserNamespace::Single).then_some(&self.pretended[..]);
        let denied = if shares_network { &self.denied_on_shared_network } else { &self.denied };
        pretended.into_iter().chain([&denied[..]]).filter(|filter| !filter.is_empty())
    }
}

/// Runs the zygote and never returns, if the process was started as one. Otherwise returns at once.
pub fn run_if_marked() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|arg| arg == MARKER) {
        let name = args.next();
        let name = name.as_deref().and_then(std::ffi::OsStr::to_str);
        let open_files = args.next().and_then(|limit| limit.to_str()?.parse().ok());
        if name == Some(UNISOLATED) {
            run_unisolated(open_files);
        }
        run(name.and_then(UserNamespace::named).unwrap_or(UserNamespace::None), open_files);
    }
}

fn run(user_namespace: UserNamespace, open_files: Option<u64>) -> ! {
    let is_again = exe::is_again();
    if !is_again && wire::send(sys::stdin(), greeting().as_bytes(), &[]).is_err() {
        sys::exit(0);
    }
    let started = if is_again { Ok(()) } else { limit_open_files(open_files).and_then(|()| start(user_namespace)) };
    let started = started.and_then(|()| exe::protect()).and_then(|()| leave_groups(user_namespace));
    let prepared = match started.and_then(|()| Prepared::new(Proc::Own)) {
        Ok(prepared) => prepared,
        Err(error) => {
            let _ = wire::send_value(sys::stdin(), &Report::Failed(error), &[]);
            sys::exit(1);
        }
    };
    let Ok(me) = pidfd_open(getpid(), PidfdFlags::empty()) else { sys::exit(1) };
    if wire::send_value(sys::stdin(), &Report::Done, &[]).is_err() {
        sys::exit(0);
    }
    loop {
        match wire::receive(sys::stdin(), RecvFlags::empty()) {
            Ok(Some((message, fds))) => serve(&message, fds, &me, &prepared),
            Ok(None) | Err(_) => sys::exit(0),
        }
    }
}

/// Runs a zygote without namespaces.
fn run_unisolated(open_files: Option<u64>) -> ! {
    if wire::send(sys::stdin(), greeting().as_bytes(), &[]).is_err() {
        sys::exit(0);
    }
    let started = limit_open_files(open_files).and_then(|()| detach()).and_then(|()| ignore_children());
    let ignored = match started.and_then(|()| ignored_signals()) {
        Ok(ignored) => ignored,
        Err(error) => {
            let _ = wire::send_value(sys::stdin(), &Report::Failed(error), &[]);
            sys::exit(1);
        }
    };
    if wire::send_value(sys::stdin(), &Report::Done, &[]).is_err() {
        sys::exit(0);
    }
    while let Ok(Some((message, fds))) = wire::receive(sys::stdin(), RecvFlags::empty()) {
        if let Ok(Request::Process) = postcard::from_bytes(&message) {
            supervise(fds, &ignored);
        }
    }
    sys::exit(0)
}

/// Gives the steps the soft limit on open files that the engine had before it raised its own.
fn limit_open_files(limit: Option<u64>) -> Result<(), SetupError> {
    let Some(limit) = limit else { return Ok(()) };
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum }).doing(|| "limit open files".into())
}

fn start(user_namespace: UserNamespace) -> Result<(), SetupError> {
    detach()?;
    isolate(user_namespace)
}

/// Closes and leaves what belongs to the program that started this one.
fn detach() -> Result<(), SetupError> {
    sys::close_from(3).doing(|| "close inherited descriptors".into())?;
    rustix::process::chdir(c"/").doing(|| "enter /".into())
}

fn ignored_signals() -> Result<Vec<libc::c_int>, SetupError> {
    sys::ignored_signals().doing(|| "look up ignored signals".into())
}

fn ignore_children() -> Result<(), SetupError> {
    sys::ignore_children().doing(|| "ignore the ends of children".into())
}

/// Enters the namespaces that all steps share. With [`UserNamespace::Range`], the process at the other end of
/// standard input maps the ids.
pub(super) fn isolate(user_namespace: UserNamespace) -> Result<(), SetupError> {
    ignore_children()?;
    match user_namespace {
        UserNamespace::None => {}
        UserNamespace::Single => {
            let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
            unshare_users()?;
            for (file, content) in
                [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))]
            {
                let path = format!("/proc/self/{file}");
                std::fs::write(&path, content).doing(|| format!("write {path}"))?;
            }
            become_root()?;
        }
        UserNamespace::Range => {
            unshare_users()?;
            let doing = || "have the ids mapped".into();
            wire::send_value(sys::stdin(), &Report::NeedsIdMap, &[]).doing(doing)?;
            if wire::receive(sys::stdin(), RecvFlags::empty()).doing(doing)?.is_none() {
                sys::exit(0);
            }
            become_root()?;
        }
    }
    sys::unshare(UnshareFlags::NEWNS).doing(|| "make a mount namespace".into())?;
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .doing(|| "make mounts private".into())
}

/// Leaves the groups of the user, if that is allowed. They are no longer needed here. Until now, the
/// permission to read this program may have depended on one of them.
pub(super) fn leave_groups(user_namespace: UserNamespace) -> Result<(), SetupError> {
    match user_namespace {
        UserNamespace::Single => Ok(()),
        UserNamespace::None | UserNamespace::Range => {
            set_thread_groups(&[Gid::ROOT]).doing(|| "leave the user's groups".into())
        }
    }
}

fn unshare_users() -> Result<(), SetupError> {
    sys::unshare(UnshareFlags::NEWUSER).doing(|| "make a user namespace".into())
}

fn become_root() -> Result<(), SetupError> {
    let (uid, gid) = (rustix::process::Uid::ROOT, Gid::ROOT);
    set_thread_res_gid(gid, gid, gid)
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .doing(|| "become root of the user namespace".into())
}

/// Answers one request. An invalid message is dropped together with its descriptors, which the sender can
/// detect.
fn serve(message: &[u8], fds: Vec<OwnedFd>, me: &OwnedFd, prepared: &Prepared) {
    let Ok(request) = postcard::from_bytes(message) else { return };
    let mut fds = fds.into_iter();
    let Some(status) = fds.next() else { return };
    let served = match request {
        Request::Step { network, traced } => {
            let Some(spec) = fds.next() else { return };
            let network = match network {
                StepNetwork::Shared => init::Network::Shared,
                StepNetwork::Loopback => init::Network::Loopback,
                StepNetwork::Given => match fds.next() {
                    Some(given) => init::Network::Given(given),
                    None => return,
                },
            };
            let trace = if traced {
                // Here, so that it is made once, and not by each step.
                prepared.traced();
                fds.next()
            } else {
                None
            };
            let (Some(stdout), Some(stderr)) = (fds.next(), fds.next()) else { return };
            let doing = || "start a step".into();
            let (stdin, more) = (fds.next(), fds.collect());
            let own = status.try_clone().and_then(|status| Ok((status, me.try_clone()?))).doing(doing);
            own.and_then(|(status, zygote)| {
                step(StepFds { status, spec, network, trace, stdin, stdout, stderr, more, zygote }, prepared)
            })
        }
        Request::Network => make_network(status.as_fd()),
        // Only a zygote without namespaces starts such steps.
        Request::Process => return,
        Request::Tree => {
            let Some(op) = fds.next() else { return };
            tree_op(status.as_fd(), op, fds.next())
        }
    };
    if let Err(error) = served {
        let _ = wire::send_value(&status, &Report::Failed(error), &[]);
    }
}

fn step(fds: StepFds, prepared: &Prepared) -> Result<(), SetupError> {
    match sys::clone_process(clone_flags(&fds.network)).doing(|| "start a step".into())? {
        Cloned::Child => init::run(fds, prepared),
        Cloned::Parent { pidfd, .. } => {
            // If the engine has closed the socket, pid 1 sees that, too.
            let _ = wire::send_value(&fds.status, &Report::Started, &[pidfd.as_fd()]);
            Ok(())
        }
    }
}

/// Starts a step without isolation.
fn supervise(fds: Vec<OwnedFd>, ignored: &[libc::c_int]) {
    let Ok([status, spec, stdout, stderr]) = <[OwnedFd; 4]>::try_from(fds) else { return };
    // If the engine has closed the socket, the supervisor sees that, too.
    let _ = match sys::clone_process(0) {
        Ok(Cloned::Child) => supervisor::run(SupervisorFds { status, spec, stdout, stderr }, ignored),
        Ok(Cloned::Parent { pidfd, .. }) => wire::send_value(&status, &Report::Started, &[pidfd.as_fd()]),
        Err(errno) => wire::send_value(&status, &Report::Failed(SetupError::new("start a step", errno)), &[]),
    };
}

/// Makes a network namespace in a child: an ordinary user could not come back from it.
fn make_network(status: BorrowedFd<'_>) -> Result<(), SetupError> {
    let flags = u64::from(libc::CLONE_NEWNET.cast_unsigned());
    match sys::clone_process(flags).doing(|| "make a network namespace".into())? {
        Cloned::Parent { .. } => Ok(()),
        Cloned::Child => {
            let sent = network::make().and_then(|made| {
                let fds: Vec<_> = made.descriptors().collect();
                wire::send_value(status, &Report::Network { reusable: made.reusable }, &fds)
                    .doing(|| "hand over a network namespace".into())
            });
            if let Err(error) = sent {
                let _ = wire::send_value(status, &Report::Failed(error), &[]);
            }
            sys::exit(0)
        }
    }
}

/// Executes a tree operation in a child, because a large tree takes seconds.
fn tree_op(status: BorrowedFd<'_>, op: OwnedFd, file: Option<OwnedFd>) -> Result<(), SetupError> {
    match sys::clone_process(0).doing(|| "start a tree operation".into())? {
        Cloned::Parent { .. } => Ok(()),
        Cloned::Child => {
            let done = wire::from_memory_file(op).and_then(|op| tree::run(&op, file));
            let report = done.unwrap_or_else(Report::Failed);
            let _ = wire::send_value(status, &report, &[]);
            sys::exit(0)
        }
    }
}
