//! A jail without a zygote: a process of one thread makes it, and supervises it without a runtime.
//!
//! The process enters the step's namespaces itself and forks pid 1. So the file systems that it makes before
//! (a tmpfs, and what it unpacks there) are visible to the step only, and are freed with it.

use std::{
    ffi::CString,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::RecvFlags,
    process::{PidfdFlags, Signal, geteuid, getpid, pidfd_open, pidfd_send_signal},
    thread::CapabilitySet,
};

use super::{
    JailSpec, SetupError,
    error::ResultExt,
    exe,
    init::{self, StepFds},
    mounts::{self, Proc},
    spec::{Report, UserNamespace},
    sys::{self, Cloned},
    wire,
    zygote::{self, Prepared},
};
use crate::awake::Awake;

/// The content of `/proc/self/uid_map` in the initial user namespace.
const ALL_IDS: [&str; 3] = ["0", "0", "4294967295"];

/// A process in namespaces in which it makes one step's file systems, and the step.
#[derive(Debug)]
pub struct OneShot {
    user_namespace: UserNamespace,
    prepared: Prepared,
    me: OwnedFd,
}

/// The conditions for ending a command from outside.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The run time after which the command is ended: TERM, grace, KILL.
    pub timeout: Option<Duration>,
    /// The time between TERM and KILL.
    pub grace: Duration,
}

/// How a command ended, here or as reported by a zygote's step. No process of its step is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The command ended by itself.
    Exited {
        /// Its exit code, or 128+n after signal n.
        code: i32,
    },
    /// Its memory limit was exceeded, as seen by polling.
    OutOfMemory,
    /// Its limit on processes was exceeded, as seen by polling.
    TooManyProcesses,
    /// It was killed together with its pid 1: by the kernel for its memory use, or from outside.
    Killed,
    /// A program of it needs seccomp in a way that a traced step cannot have: it must run untraced.
    Untraceable,
    /// Its timeout expired.
    TimedOut,
    /// The caller requested the end: by a signal to this process, or by its own means.
    Interrupted,
}

impl OneShot {
    /// Moves this process into the namespaces of a step: a mount namespace if it is root with all
    /// capabilities. Otherwise it also enters a user namespace with a single id. The process must have one
    /// thread.
    ///
    /// The step can access this program's file, so use this only on a machine that belongs to the step.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses an operation. The process must then end.
    pub fn enter() -> Result<Self, SetupError> {
        let user_namespace = user_namespace_of_this_process();
        zygote::isolate(user_namespace)?;
        Self::inside(user_namespace, Proc::OwnOrShared)
    }

    /// Enters the namespaces as [`OneShot::enter`] does, and executes this program again from a file that the
    /// step cannot change, with an additional argument, unless [`is_again`](super::is_again) returns that
    /// this was done.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses an operation. The process must then end.
    pub fn enter_protected() -> Result<Self, SetupError> {
        Self::enter_and_protect(Proc::OwnOrShared)
    }

    /// Enters the namespaces as [`OneShot::enter_protected`] does, for a command that must not see the
    /// processes around it. [`OneShot::run`] fails if the kernel refuses to mount a new `/proc`.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses an operation. The process must then end.
    pub fn enter_unseeing() -> Result<Self, SetupError> {
        Self::enter_and_protect(Proc::Own)
    }

    fn enter_and_protect(proc: Proc) -> Result<Self, SetupError> {
        let user_namespace = user_namespace_of_this_process();
        if !exe::is_again() {
            zygote::isolate(user_namespace)?;
        }
        exe::protect()?;
        Self::inside(user_namespace, proc)
    }

    fn inside(user_namespace: UserNamespace, proc: Proc) -> Result<Self, SetupError> {
        zygote::leave_groups(user_namespace)?;
        let me = pidfd_open(getpid(), PidfdFlags::empty()).doing(|| "open this process".into())?;
        Ok(Self { user_namespace, prepared: Prepared::new(proc)?, me })
    }

    /// Returns how ids are mapped.
    #[must_use]
    pub fn user_namespace(&self) -> UserNamespace {
        self.user_namespace
    }

    /// Mounts a tmpfs over a directory, visible to this process and its step only.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses the mount.
    pub fn mount_memory_over(&self, dir: &Path) -> Result<(), SetupError> {
        let dir = CString::new(dir.as_os_str().as_bytes());
        mounts::memory_over(
            &dir.map_err(|_| SetupError::new("mount a tmpfs over a path with a NUL byte", Errno::INVAL))?,
        )
    }

    /// Runs the command of `spec` on this process' standard output and error. Returns when every process of
    /// the step is dead.
    ///
    /// If this process receives TERM, INT or HUP meanwhile, the command gets TERM, and KILL after the grace
    /// period. If this process is killed, every process of the step is killed too.
    ///
    /// # Errors
    /// Returns an error if the jail cannot be made, or if the command cannot be run in it.
    pub fn run(&self, spec: &JailSpec, isolate_network: bool, bounds: Bounds) -> Result<End, SetupError> {
        self.run_traced(spec, isolate_network, bounds, None)
    }

    /// Does what [`OneShot::run`] does, and writes the trace of the command to a file, if `spec` asks for
    /// one.
    ///
    /// # Errors
    /// Returns an error if the jail cannot be made, or if the command cannot be run in it.
    pub fn run_traced(
        &self,
        spec: &JailSpec,
        isolate_network: bool,
        bounds: Bounds,
        trace: Option<OwnedFd>,
    ) -> Result<End, SetupError> {
        let signals = sys::end_signals().doing(|| "wait for signals".into())?;
        let ended = self.start(spec, isolate_network, trace).and_then(|running| running.attend(&signals, bounds));
        sys::unblock_signals().doing(|| "take signals again".into())?;
        ended
    }

    fn start(&self, spec: &JailSpec, isolate_network: bool, trace: Option<OwnedFd>) -> Result<Running, SetupError> {
        let doing = || "start the step".into();
        let (status, theirs) = wire::pair().doing(doing)?;
        let fds = StepFds {
            status: theirs,
            spec: wire::to_memory_file(spec)?,
            network: if isolate_network { init::Network::Loopback } else { init::Network::Shared },
            trace,
            stdin: None,
            stdout: std::io::stdout().as_fd().try_clone_to_owned().doing(doing)?,
            stderr: std::io::stderr().as_fd().try_clone_to_owned().doing(doing)?,
            more: Vec::new(),
            zygote: self.me.try_clone().doing(doing)?,
        };
        match sys::clone_process(zygote::clone_flags(&fds.network)).doing(doing)? {
            Cloned::Child => {
                drop(status);
                init::run(fds, &self.prepared)
            }
            Cloned::Parent { pidfd, .. } => Ok(Running { status, pid1: pidfd, end: None, failure: None }),
        }
    }
}

/// Returns the user namespace of this process' steps. The result is the same before and after this process
/// enters their namespaces.
fn user_namespace_of_this_process() -> UserNamespace {
    if is_root_of_the_machine() { UserNamespace::None } else { UserNamespace::Single }
}

/// Returns whether this process is root of the machine with all ids and capabilities, and not just of a
/// container.
fn is_root_of_the_machine() -> bool {
    let all_ids = std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.split_whitespace().eq(ALL_IDS));
    all_ids && may_mount()
}

/// Returns whether this process is root with the capabilities that are needed to make jails.
pub fn may_mount() -> bool {
    geteuid().is_root()
        && rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN | CapabilitySet::MKNOD))
}

/// A running step. It is killed on drop.
struct Running {
    status: OwnedFd,
    pid1: OwnedFd,
    end: Option<End>,
    failure: Option<SetupError>,
}

/// The progress of ending the command.
enum Stop {
    No,
    /// TERM was sent, for this reason.
    Asked(End),
    Killed(End),
}

impl Running {
    fn attend(mut self, signals: &OwnedFd, bounds: Bounds) -> Result<End, SetupError> {
        // The time left until TERM, then until KILL.
        let mut limit = bounds.timeout.map(Awake::new);
        let mut stop = Stop::No;
        let mut hung_up = false;
        loop {
            let since = Instant::now();
            let slice = limit.map(|limit| limit.next().unwrap_or_default());
            let [from_status, dead, signalled] = self.wait(signals, hung_up, slice)?;
            if let Some(limit) = &mut limit {
                limit.pass(since.elapsed());
            }
            if from_status {
                hung_up = !self.absorb();
            }
            if dead {
                break;
            }
            if signalled {
                take(signals);
            }
            if self.end.is_some() {
                // The command ended by itself, and pid 1 is about to end.
                limit = None;
                continue;
            }
            let is_over = limit.is_some_and(|limit| limit.next().is_none());
            let reason = if signalled { Some(End::Interrupted) } else { is_over.then_some(End::TimedOut) };
            stop = match (stop, reason) {
                (Stop::No, Some(reason)) => {
                    self.terminate();
                    limit = Some(Awake::new(bounds.grace));
                    Stop::Asked(reason)
                }
                // Another request changes nothing: the caller set the grace period.
                (Stop::Asked(reason), _) if is_over => {
                    self.kill();
                    limit = None;
                    Stop::Killed(reason)
                }
                (stop, _) => stop,
            };
        }
        // No process of the step is left: nothing more will be written to the socket.
        while self.absorb() {}
        match (stop, self.failure.take(), self.end) {
            (Stop::Asked(reason) | Stop::Killed(reason), ..) => Ok(reason),
            (Stop::No, Some(error), _) => Err(error),
            (Stop::No, None, Some(end)) => Ok(end),
            (Stop::No, None, None) => Ok(End::Killed),
        }
    }

    /// Waits for a report, the end of the step, or a signal, and returns which of them are there.
    fn wait(&self, signals: &OwnedFd, hung_up: bool, limit: Option<Duration>) -> Result<[bool; 3], SetupError> {
        let doing = || "wait for the step".to_owned();
        let since = Instant::now();
        // Otherwise the end of the socket would be reported forever.
        let status = if hung_up { PollFlags::empty() } else { PollFlags::IN };
        let mut fds = [(&self.status, status), (&self.pid1, PollFlags::IN), (signals, PollFlags::IN)]
            .map(|(fd, flags)| PollFd::from_borrowed_fd(fd.as_fd(), flags));
        loop {
            let left = limit.map(|limit| limit.saturating_sub(since.elapsed()));
            let left = left.map(Timespec::try_from).transpose().map_err(|_| SetupError::new(doing(), Errno::INVAL))?;
            match poll(&mut fds, left.as_ref()) {
                Ok(_) => break,
                // Also after this process was stopped for a while: the clock alone would not show what
                // happened meanwhile.
                Err(Errno::INTR) => {}
                Err(errno) => return Err(SetupError::new(doing(), errno)),
            }
        }
        let [status, dead, signalled] = fds.map(|fd| !fd.revents().is_empty());
        Ok([status && !hung_up, dead, signalled])
    }

    /// Takes one available report. Returns false if there is none, and at the end of the socket.
    fn absorb(&mut self) -> bool {
        let Ok(Some((message, _))) = wire::receive(&self.status, RecvFlags::DONTWAIT) else { return false };
        match postcard::from_bytes(&message) {
            Ok(Report::Exited { code, .. }) => self.end = Some(End::Exited { code }),
            Ok(Report::OutOfMemory) => self.end = Some(End::OutOfMemory),
            Ok(Report::TooManyProcesses) => self.end = Some(End::TooManyProcesses),
            Ok(Report::Failed(error)) => self.failure = Some(error),
            Ok(Report::Untraceable) => self.end = Some(End::Untraceable),
            // These reports are never sent here.
            Ok(
                Report::Started
                | Report::StillRunning
                | Report::Done
                | Report::NeedsIdMap
                | Report::Network { .. }
                | Report::Unpacked(_)
                | Report::Retimed(_),
            )
            | Err(_) => {}
        }
        true
    }

    /// Requests every process of the step to end: pid 1 forwards the signal. If it cannot, the grace period
    /// ends in a kill, which does not depend on pid 1.
    fn terminate(&self) {
        let _ = wire::try_send(&self.status, &[Signal::TERM.as_raw().unsigned_abs() as u8], &[]);
    }

    fn kill(&self) {
        // An error means that pid 1 is dead already: a pidfd never refers to another process.
        let _ = pidfd_send_signal(&self.pid1, Signal::KILL);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Drains the pending signals.
fn take(signals: &OwnedFd) {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    while rustix::io::read(signals, &mut info[..]).is_ok() {}
}
