//! Pid 1 of a step, and the command that it starts.
//!
//! Pid 1 makes the jail, starts the command, reaps children, forwards TERM, and reports how the command
//! ended. When it ends, for whatever reason, the kernel kills every process of the step, including daemons,
//! processes that trap signals, and processes in new sessions. It ends when the command ends (after TERM,
//! when the last process ends), when the engine closes the status socket, and when the zygote has ended.

use std::{
    convert::Infallible,
    ffi::{CStr, CString},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
    net::{AddressFamily, RecvFlags, SocketType},
    process::{DumpableBehavior, Pid, Signal},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};

use super::{
    JailSpec, SetupError, apt, caps,
    error::ResultExt,
    groups, landlock, mounts, notify, seccomp,
    spec::{FIRST_FD, JailPlace, Report, UserNamespace, Watch},
    sys::{self, Cloned, Reap},
    trace::{Answered, Tracer},
    tree,
    watch::Watcher,
    wire,
    zygote::Prepared,
};

/// The interval at which limits without cgroups are checked.
const WATCH_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// The same, as a duration.
const WATCH_PERIOD: Duration = Duration::from_millis(50);

/// The descriptors of a step.
#[derive(Debug)]
pub(crate) struct StepFds {
    /// The status socket, to and from the engine.
    pub(crate) status: OwnedFd,
    /// The spec.
    pub(crate) spec: OwnedFd,
    /// The network namespace.
    pub(crate) network: Network,
    /// The file for the trace, if the step is traced.
    pub(crate) trace: Option<OwnedFd>,
    /// The command's standard input, if it has one.
    pub(crate) stdin: Option<OwnedFd>,
    /// The command's standard output.
    pub(crate) stdout: OwnedFd,
    /// The command's standard error.
    pub(crate) stderr: OwnedFd,
    /// The command's additional descriptors.
    pub(crate) more: Vec<OwnedFd>,
    /// The zygote's pidfd.
    pub(crate) zygote: OwnedFd,
}

/// The network namespace of a step.
#[derive(Debug)]
pub(crate) enum Network {
    /// The one that this process was started in, which is not the step's alone.
    Shared,
    /// The one that this process was started in, which is new.
    Loopback,
    /// One to enter.
    Given(OwnedFd),
}

impl Network {
    /// Makes it the network namespace of this process.
    fn enter(&self) -> Result<(), SetupError> {
        match self {
            Self::Shared => Ok(()),
            Self::Loopback => rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
                .and_then(sys::loopback_up)
                .doing(|| "bring up the loopback device".into()),
            Self::Given(given) => move_into_link_name_space(given.as_fd(), Some(LinkNameSpaceType::Network))
                .doing(|| "enter the step's network namespace".into()),
        }
    }
}

/// The command's streams.
#[derive(Debug)]
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
    more: Vec<OwnedFd>,
    /// The socket that the listener of the command's filter is sent to, if the step is traced.
    tracer: Option<OwnedFd>,
}

/// Runs a step as pid 1 of its namespaces. Ends the process.
pub(crate) fn run(fds: StepFds, prepared: &Prepared) -> ! {
    let status = match fds.status.try_clone() {
        Ok(status) => status,
        Err(_) => sys::exit(1),
    };
    if let Err(error) = run_step(fds, prepared) {
        // If the engine has ended, there is no receiver.
        let _ = wire::send_value(&status, &Report::Failed(error), &[]);
        sys::exit(1);
    }
    sys::exit(0)
}

fn run_step(fds: StepFds, prepared: &Prepared) -> Result<(), SetupError> {
    let StepFds { status, spec, network, trace, stdin, stdout, stderr, more, zygote } = fds;
    // Requests are for the zygote. If a step kept the request socket open, the engine would not see the
    // zygote's end.
    sys::move_to(&zygote, 0).doing(|| "let go of the request socket".into())?;
    die_with(&zygote)?;
    let children = sys::child_signals().doing(|| "watch for children".into())?;
    let spec: JailSpec = wire::from_memory_file(spec)?;
    let cgroups = spec.cgroups.iter().map(|procs| open_cgroup(procs)).collect::<Result<Vec<_>, _>>()?;
    let mut tracer = match (&spec.trace, trace) {
        (Some(trace), Some(file)) => Some(Tracer::prepare(&spec, trace, file)?),
        _ => None,
    };
    network.enter()?;
    drop(network);
    rustix::process::umask(Mode::empty());
    mounts::enter(&spec, &prepared.special_paths, prepared.proc)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));

    if spec.argv.is_empty() && spec.pack.is_none() {
        return wire::send_value(&status, &Report::Exited { code: 0, cpu_micros: 0, max_rss_bytes: 0 }, &[])
            .doing(|| "report".into());
    }
    // The command is root of the same namespace. It must not attach to this process, which holds the status
    // socket.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).doing(|| "close pid 1 to tracers".into())?;
    let (from_command, to_tracer) = match tracer {
        Some(_) => wire::pair().map(|(ours, theirs)| (Some(ours), Some(theirs))).doing(|| "make a socket".into())?,
        None => (None, None),
    };
    let streams = Streams { stdin, stdout, stderr, more, tracer: to_tracer };
    let become_command = || {
        // Executes the command, or reports why that failed.
        let Err(error) = exec(&spec, &streams, &cgroups, prepared);
        let _ = wire::send_value(&status, &Report::Failed(error), &[]);
    };
    let doing = || "start the command".into();
    let command = if spec.pack.is_none() && tracer.is_none() {
        // A copy of this process, which the command would replace at once, would be a tenth of the cost of a
        // short step.
        sys::start_sharing_memory(become_command).doing(doing)?
    } else {
        match sys::clone_process(0).doing(doing)? {
            Cloned::Child => {
                become_command();
                sys::exit(127)
            }
            Cloned::Parent { pid, .. } => pid,
        }
    };
    drop((streams, cgroups));
    if let (Some(tracer), Some(socket)) = (&mut tracer, from_command) {
        // If the command failed before it was confined, it has reported that.
        if let Some((_, fds)) = wire::receive(&socket, RecvFlags::empty()).doing(|| "receive the listener".into())? {
            tracer.start(fds.into_iter().next())?;
        }
    }
    let counts_memory = spec.watch.is_some_and(|watch| watch.memory_bytes.is_some());
    caps::limit_init(counts_memory || tracer.is_some())?;
    attend(command, &Observed { status: &status, children: &children, zygote: &zygote }, spec.watch, tracer)
}

/// The descriptors that pid 1 waits for.
struct Observed<'a> {
    status: &'a OwnedFd,
    children: &'a OwnedFd,
    zygote: &'a OwnedFd,
}

/// Ends this process when the zygote ends, or if it has already ended.
fn die_with(zygote: &OwnedFd) -> Result<(), SetupError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).doing(|| "tie pid 1 to the zygote".into())?;
    let mut poll_fds = [PollFd::new(zygote, PollFlags::IN)];
    match poll(&mut poll_fds, Some(&Timespec::default())) {
        Ok(0) => Ok(()),
        _ => sys::exit(1),
    }
}

fn open_cgroup(procs: &CStr) -> Result<OwnedFd, SetupError> {
    rustix::fs::openat(CWD, procs, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("open {}", procs.to_string_lossy()))
}

/// Waits for the end of the command, and reports it. After TERM it waits for the last process of the step,
/// because each process has the grace period to clean up. A step that ends by itself does not wait for the
/// other processes that it started.
fn attend(
    command: Pid,
    observed: &Observed<'_>,
    watch: Option<Watch>,
    mut tracer: Option<Tracer>,
) -> Result<(), SetupError> {
    let Observed { status, children, zygote } = *observed;
    let timeout = watch.map(|_| WATCH_INTERVAL);
    let mut watcher = watch.map(Watcher::new);
    let (mut reaped, mut asked_to_end) = (Reaped::default(), false);
    let mut looked: Option<Instant> = None;
    loop {
        let first = [status, children, zygote].map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
        let listener = tracer.as_ref().and_then(Tracer::listener);
        let ready = match listener {
            None => wait(first, timeout.as_ref())
                .map(|[engine, children, zygote]| [engine, children, zygote, PollFlags::empty()]),
            Some(listener) => {
                let [status, children, zygote] = first;
                let listener = PollFd::from_borrowed_fd(listener, PollFlags::IN);
                wait([status, children, zygote, listener], timeout.as_ref())
            }
        };
        let Some([from_engine, from_children, from_zygote, from_command]) = ready else { return Ok(()) };
        let [from_engine, from_children, from_zygote] =
            [from_engine, from_children, from_zygote].map(|events| !events.is_empty());
        if from_zygote {
            return Ok(());
        }
        if let Some(tracer) = tracer.as_mut().filter(|_| !from_command.is_empty()) {
            let answered = if from_command.contains(PollFlags::IN) { tracer.answer() } else { Answered::Ended };
            match answered {
                Answered::Yes => {}
                Answered::Ended => tracer.stop(),
                Answered::Broken(error) => return Err(SetupError::new("trace the step's system calls", error)),
                Answered::Untraceable => {
                    let _ = wire::send_value(status, &Report::Untraceable, &[]);
                    return Ok(());
                }
            }
        }
        // Checked before the engine's messages: a command that has ended by now ended by itself.
        if from_children {
            let left = reap(command, children, &mut reaped);
            if let Some(report) = reaped.report.as_ref().filter(|_| !asked_to_end || left == Left::Nothing) {
                if let Some(tracer) = tracer {
                    end_all(command, observed)?;
                    tracer.finish()?;
                }
                let _ = wire::send_value(status, report, &[]);
                return Ok(());
            }
        }
        if from_engine {
            match receive(status) {
                Forwarded::HungUp => return Ok(()),
                Forwarded::Signal(signal) => {
                    sys::signal_all(signal);
                    asked_to_end |= signal == Signal::TERM.as_raw();
                }
                Forwarded::Nothing => {}
            }
        }
        // Each call of a traced step wakes this process, and a look takes as long as many calls.
        let is_due = from_command.is_empty() || looked.is_none_or(|looked| looked.elapsed() >= WATCH_PERIOD);
        if let Some(watcher) = watcher.as_mut().filter(|_| is_due) {
            looked = tracer.is_some().then(Instant::now);
            if let Some(report) = watcher.exceeded() {
                let _ = wire::send_value(status, &report, &[]);
                return Ok(());
            }
        }
    }
}

/// Waits for events. Returns `None` if that fails.
fn wait<const N: usize>(mut fds: [PollFd<'_>; N], timeout: Option<&Timespec>) -> Option<[PollFlags; N]> {
    match poll(&mut fds, timeout) {
        Ok(_) => Some(fds.map(|fd| fd.revents())),
        Err(Errno::INTR) => Some([PollFlags::empty(); N]),
        Err(_) => None,
    }
}

/// Kills what is left of a step, and waits for it, so that what it wrote can be examined.
fn end_all(command: Pid, observed: &Observed<'_>) -> Result<(), SetupError> {
    let Observed { status, children, zygote } = *observed;
    sys::signal_all(libc::SIGKILL);
    while reap(command, children, &mut Reaped::default()) == Left::Some {
        let fds = [status, children, zygote].map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
        let Some([from_engine, _, from_zygote]) = wait(fds, None) else { break };
        let is_left_alone =
            !from_zygote.is_empty() || !from_engine.is_empty() && matches!(receive(status), Forwarded::HungUp);
        if is_left_alone {
            return Err(SetupError::new("wait for the step's processes", Errno::CANCELED));
        }
    }
    Ok(())
}

/// A message of the engine.
pub(super) enum Forwarded {
    /// An invalid message.
    Nothing,
    /// This signal is for every process of the step.
    Signal(i32),
    /// The engine closed the socket: the step is to end.
    HungUp,
}

/// Receives a message of the engine.
pub(super) fn receive(status: &OwnedFd) -> Forwarded {
    match wire::receive(status, RecvFlags::DONTWAIT) {
        Ok(Some((message, _))) => match message[..] {
            [signal] => Forwarded::Signal(i32::from(signal)),
            _ => Forwarded::Nothing,
        },
        Err(Errno::AGAIN) => Forwarded::Nothing,
        Ok(None) | Err(_) => Forwarded::HungUp,
    }
}

/// Whether any processes of the step are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Some,
    Nothing,
}

/// What is known of the children that ended.
#[derive(Debug, Default)]
pub(super) struct Reaped {
    /// The report of the command, if it has ended.
    pub(super) report: Option<Report>,
    /// The processor time of all of them, in microseconds.
    cpu_micros: u64,
    /// The largest resident set among them, in bytes.
    max_rss_bytes: u64,
}

/// Reaps all children that ended, and stores the command's report if the command is among them.
pub(super) fn reap(command: Pid, children: &OwnedFd, reaped: &mut Reaped) -> Left {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    // Several children may share one signal, so the signal is read first and then the children are reaped one
    // by one.
    let _ = rustix::io::read(children, &mut info[..]);
    loop {
        match sys::reap() {
            Ok(Reap::Ended(child)) => {
                reaped.cpu_micros = reaped.cpu_micros.saturating_add(child.cpu_micros);
                reaped.max_rss_bytes = reaped.max_rss_bytes.max(child.max_rss_bytes);
                if child.pid == command {
                    let (cpu_micros, max_rss_bytes) = (reaped.cpu_micros, reaped.max_rss_bytes);
                    reaped.report = Some(Report::Exited { code: child.code, cpu_micros, max_rss_bytes });
                }
            }
            // Orphans become children of this process, so no child means no process.
            Ok(Reap::NoChild) => return Left::Nothing,
            Ok(Reap::NoneYet) | Err(_) => return Left::Some,
        }
    }
}

/// Confines this process before it executes the command.
///
/// The filters are installed while the process still holds the capability for that. The alternative,
/// `no_new_privs`, would disable setuid programs and file capabilities, and `su`, `sudo` and `ping` would
/// fail. No program can remove a filter, and the bounding set limits the capabilities that a program may
/// gain: a step that runs a setuid program has at most what it started with.
///
/// Three kinds of commands gain nothing from such programs, and get `no_new_privs`. In a user namespace with
/// a single id, no other user exists who could use such a program, and the filters, which pretend that
/// `capset` and `setuid` succeed, must be installed last. A command with [`JailPlace::Beside`] is a program
/// of the host. A command with a root in memory only reads, and has no privileges at all.
fn confine(spec: &JailSpec, prepared: &Prepared, tracer: Option<&OwnedFd>) -> Result<(), SetupError> {
    // The capability for this is still held.
    if spec.shares_network && prepared.has_landlock_scopes {
        landlock::scope()?;
    }
    let filter = || {
        prepared
            .filters(spec.user_namespace, spec.shares_network)
            .try_for_each(|filter| sys::install_seccomp(filter).doing(|| "install the system call filter".into()))
    };
    if gains_rights(spec) {
        filter()?;
        tracer.map_or(Ok(()), |tracer| report_calls(prepared, tracer))?;
        return caps::limit_command(spec.shares_network, spec.place);
    }
    match spec.root.memory() {
        None => caps::limit_command(spec.shares_network, spec.place)?,
        Some(root) => caps::limit_reader(spec.user_namespace, root.run_as)?,
    }
    rustix::thread::set_no_new_privs(true).doing(|| "set no_new_privs".into())?;
    filter()?;
    if spec.root.memory().is_some() {
        sys::install_seccomp(&seccomp::for_readers()).doing(|| "install the system call filter".into())?;
    }
    tracer.map_or(Ok(()), |tracer| report_calls(prepared, tracer))
}

/// Has the calls of this process reported to pid 1. From here until pid 1 has the listener, this process must
/// make no call that is reported.
fn report_calls(prepared: &Prepared, tracer: &OwnedFd) -> Result<(), SetupError> {
    let sent = match notify::install_listener(prepared.traced()) {
        Ok(listener) => wire::send(tracer, b"listener", &[listener.as_fd()]),
        // Busy: this program itself runs under a listener.
        Err(Errno::INVAL | Errno::BUSY) => wire::send(tracer, b"none", &[]),
        Err(error) => return Err(SetupError::new("install the filter that reports calls", error)),
    };
    sent.doing(|| "hand the listener to pid 1".into())
}

/// Returns whether the command may gain privileges by setuid programs and file capabilities.
fn gains_rights(spec: &JailSpec) -> bool {
    spec.place == JailPlace::Root && spec.user_namespace != UserNamespace::Single && spec.root.memory().is_none()
}

/// Makes `dir` the working directory. Magic links below `/proc` are not followed, because the jail's
/// descriptors are still open.
fn enter(dir: &CStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat2(CWD, dir, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    rustix::process::fchdir(dir)
}

/// Executes the command. Returns only on failure.
fn exec(
    spec: &JailSpec,
    streams: &Streams,
    cgroups: &[OwnedFd],
    prepared: &Prepared,
) -> Result<Infallible, SetupError> {
    let argv: Vec<&CStr> = spec.argv.iter().map(CString::as_c_str).collect();
    let env: Vec<&CStr> = spec.env.iter().map(CString::as_c_str).chain(apt::variable(spec)).collect();
    for procs in cgroups {
        rustix::io::write(procs, b"0").doing(|| "enter the step's cgroup".into())?;
    }
    if !cgroups.is_empty() {
        // From here on, the cgroup of the command can be the root of the cgroups that it sees.
        sys::unshare(UnshareFlags::NEWCGROUP).doing(|| "hide the host's cgroups".into())?;
    }
    let null = rustix::fs::openat(CWD, c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "open /dev/null".into())?;
    let stdin = streams.stdin.as_ref().unwrap_or(&null);
    for (fd, target) in [(stdin, 0), (&streams.stdout, 1), (&streams.stderr, 2)] {
        sys::move_to(fd, target).doing(|| "set up the command's streams".into())?;
    }
    rustix::process::setsid().doing(|| "start a session".into())?;
    if spec.terminal {
        rustix::process::ioctl_tiocsctty(stdin).doing(|| "take the terminal".into())?;
    }
    enter(&spec.workdir).doing(|| format!("enter {}", spec.workdir.to_string_lossy()))?;
    sys::reset_signals(&prepared.ignored_signals).doing(|| "reset signals".into())?;
    sys::close_on_exec_from(3).doing(|| "close the jail's descriptors".into())?;
    for (fd, target) in streams.more.iter().zip(FIRST_FD..) {
        sys::move_to(fd, target.cast_signed()).doing(|| "hand over descriptors".into())?;
    }
    if gains_rights(spec) {
        groups::join_those_of_root()?;
    }
    confine(spec, prepared, streams.tracer.as_ref())?;
    if let Some(files) = &spec.pack {
        let packed = tree::pack(files, &streams.stdout);
        return packed.and_then(|()| sys::exit(0));
    }
    let Some(program) = argv.first() else { return Err(SetupError::new("run the command", Errno::INVAL)) };
    let errno = sys::execve(program, &argv, &env);
    Err(SetupError::new(format!("run {}", program.to_string_lossy()), errno))
}
