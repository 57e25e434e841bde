//! A jail without a zygote: a process of one thread makes it, and attends to it without a runtime.
//!
//! The process that is told what to run enters the steps' namespaces itself and forks pid 1: so the file systems that it
//! makes before (a tmpfs, what it unpacks there) are the step's alone, and go with it.

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
    error::Doing,
    exe,
    init::{self, StepFds},
    mounts::{self, Proc},
    spec::{Report, UserNamespace},
    sys::{self, Cloned},
    wire,
    zygote::{self, Prepared},
};
use crate::awake::Awake;

/// What `/proc/self/uid_map` has where this is no user namespace but the first one.
const ALL_IDS: [&str; 3] = ["0", "0", "4294967295"];

/// A process in namespaces in which it makes one step's file systems, and the step.
#[derive(Debug)]
pub struct Solo {
    user_namespace: UserNamespace,
    prepared: Prepared,
    me: OwnedFd,
}

/// When a command is ended from outside.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// After it ran this long: TERM, grace, KILL.
    pub timeout: Option<Duration>,
    /// How long it may take between TERM and KILL.
    pub grace: Duration,
}

/// How a command ended, when no process of its step was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Exited {
        /// Its exit code, or 128+n after signal n.
        code: i32,
    },
    /// For its memory, as seen by polling.
    OutOfMemory,
    /// For its number of processes, as seen by polling.
    TooManyProcesses,
    /// It was killed together with its pid 1: by the kernel for its memory, or from outside.
    Killed,
    /// Its time was up.
    TimedOut,
    /// This process was asked to end.
    Terminated,
}

impl Solo {
    /// Moves this process into the namespaces of a step: as root with all capabilities a mount namespace, else a user
    /// namespace, too, in which there is a single id. The process must have one thread.
    ///
    /// The step can reach this program's file: enter like this on a machine that is the step's alone.
    ///
    /// # Errors
    /// Returns an error if the kernel refused something. The process must then end.
    pub fn enter() -> Result<Self, SetupError> {
        let user_namespace = user_namespace_of_this_process();
        zygote::isolate(user_namespace)?;
        Self::inside(user_namespace, Proc::OwnOrShared)
    }

    /// Enters as [`Solo::enter`] does, and runs this program again from a file that the step can't change, with
    /// one more argument, unless [`is_again`](super::is_again) says that this was done.
    ///
    /// # Errors
    /// Returns an error if the kernel refused something. The process must then end.
    pub fn enter_protected() -> Result<Self, SetupError> {
        Self::enter_and_protect(Proc::OwnOrShared)
    }

    /// Enters as [`Solo::enter_protected`] does, for a command that must not see the processes around it: it fails
    /// in [`Solo::run`] if the kernel mounts no new `/proc`.
    ///
    /// # Errors
    /// Returns an error if the kernel refused something. The process must then end.
    #[cfg(feature = "sandbox")]
    pub(crate) fn enter_unseeing() -> Result<Self, SetupError> {
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
        Ok(Self { user_namespace, prepared: Prepared::new(proc), me })
    }

    /// How ids are mapped.
    #[must_use]
    pub fn user_namespace(&self) -> UserNamespace {
        self.user_namespace
    }

    /// Mounts a file system in memory over a directory, for this process and its step alone.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn mount_memory_over(&self, dir: &Path) -> Result<(), SetupError> {
        let dir = CString::new(dir.as_os_str().as_bytes());
        mounts::memory_over(
            &dir.map_err(|_| SetupError::new("mount a tmpfs over a path with a zero byte", Errno::INVAL))?,
        )
    }

    /// Runs the command of `spec` on this process' standard output and error. Returns when every process of the step is dead.
    ///
    /// Where this process gets TERM, INT or HUP meanwhile, the command gets TERM, and KILL after its grace; where it is
    /// killed, so is every process of the step.
    ///
    /// # Errors
    /// Why there is no jail, or the command could not be run in it.
    pub fn run(&self, spec: &JailSpec, isolate_network: bool, bounds: Bounds) -> Result<End, SetupError> {
        let signals = sys::end_signals().doing(|| "wait for signals".into())?;
        let ended = self.start(spec, isolate_network).and_then(|running| running.attend(&signals, bounds));
        sys::unblock_signals().doing(|| "take signals again".into())?;
        ended
    }

    fn start(&self, spec: &JailSpec, isolate_network: bool) -> Result<Running, SetupError> {
        let doing = || "start the step".into();
        let (status, theirs) = wire::pair().doing(doing)?;
        let fds = StepFds {
            status: theirs,
            spec: wire::to_memory_file(spec)?,
            stdin: None,
            stdout: std::io::stdout().as_fd().try_clone_to_owned().doing(doing)?,
            stderr: std::io::stderr().as_fd().try_clone_to_owned().doing(doing)?,
            more: Vec::new(),
            zygote: self.me.try_clone().doing(doing)?,
        };
        match sys::clone_process(zygote::clone_flags(isolate_network)).doing(doing)? {
            Cloned::Child => {
                drop(status);
                init::run(fds, isolate_network, &self.prepared)
            }
            Cloned::Parent { pidfd, .. } => Ok(Running { status, pid1: pidfd, end: None, failure: None }),
        }
    }
}

/// Returns what steps of this process have: the same before and after it entered their namespaces.
fn user_namespace_of_this_process() -> UserNamespace {
    if is_root_of_the_machine() { UserNamespace::None } else { UserNamespace::Single }
}

/// Whether this process is root of the machine with all that takes, and not just of a container.
fn is_root_of_the_machine() -> bool {
    let all_ids = std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.split_whitespace().eq(ALL_IDS));
    all_ids && may_mount()
}

/// Whether this process is root with the capabilities that making jails takes.
pub(crate) fn may_mount() -> bool {
    geteuid().is_root()
        && rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN | CapabilitySet::MKNOD))
}

/// A step that runs. Dropped, it is killed.
struct Running {
    status: OwnedFd,
    pid1: OwnedFd,
    end: Option<End>,
    failure: Option<SetupError>,
}

/// How far ending the command has come.
enum Stop {
    No,
    /// It was asked to end, for this reason.
    Asked(End),
    Killed(End),
}

impl Running {
    fn attend(mut self, signals: &OwnedFd, bounds: Bounds) -> Result<End, SetupError> {
        // Until TERM, then until KILL.
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
                // It has ended by itself, and pid 1 is about to.
                limit = None;
                continue;
            }
            let is_over = limit.is_some_and(|limit| limit.next().is_none());
            let reason = if signalled { Some(End::Terminated) } else { is_over.then_some(End::TimedOut) };
            stop = match (stop, reason) {
                (Stop::No, Some(reason)) => {
                    self.terminate();
                    limit = Some(Awake::new(bounds.grace));
                    Stop::Asked(reason)
                }
                // Being asked once more changes nothing: grace is what the caller set.
                (Stop::Asked(reason), _) if is_over => {
                    self.kill();
                    limit = None;
                    Stop::Killed(reason)
                }
                (stop, _) => stop,
            };
        }
        // No process of the step is left: what the socket holds is all there is.
        while self.absorb() {}
        match (stop, self.failure.take(), self.end) {
            (Stop::Asked(reason) | Stop::Killed(reason), ..) => Ok(reason),
            (Stop::No, Some(error), _) => Err(error),
            (Stop::No, None, Some(end)) => Ok(end),
            (Stop::No, None, None) => Ok(End::Killed),
        }
    }

    /// Waits for a report, the end of the step, or a signal: which of them there is.
    fn wait(&self, signals: &OwnedFd, hung_up: bool, limit: Option<Duration>) -> Result<[bool; 3], SetupError> {
        let doing = || "wait for the step".to_owned();
        let since = Instant::now();
        // The end of the socket would be told for ever.
        let status = if hung_up { PollFlags::empty() } else { PollFlags::IN };
        let mut fds = [(&self.status, status), (&self.pid1, PollFlags::IN), (signals, PollFlags::IN)]
            .map(|(fd, flags)| PollFd::from_borrowed_fd(fd.as_fd(), flags));
        loop {
            let left = limit.map(|limit| limit.saturating_sub(since.elapsed()));
            let left = left.map(Timespec::try_from).transpose().map_err(|_| SetupError::new(doing(), Errno::INVAL))?;
            match poll(&mut fds, left.as_ref()) {
                Ok(_) => break,
                // Also after this process was stopped for a while: the clock alone would not tell what
                // happened meanwhile.
                Err(Errno::INTR) => {}
                Err(errno) => return Err(SetupError::new(doing(), errno)),
            }
        }
        let [status, dead, signalled] = fds.map(|fd| !fd.revents().is_empty());
        Ok([status && !hung_up, dead, signalled])
    }

    /// Takes one report that is there. False where there is none, and at the end of the socket.
    fn absorb(&mut self) -> bool {
        let Ok(Some((message, _))) = wire::receive(&self.status, RecvFlags::DONTWAIT) else { return false };
        match postcard::from_bytes(&message) {
            Ok(Report::Exited { code, .. }) => self.end = Some(End::Exited { code }),
            Ok(Report::OutOfMemory) => self.end = Some(End::OutOfMemory),
            Ok(Report::TooManyProcesses) => self.end = Some(End::TooManyProcesses),
            Ok(Report::Failed(error)) => self.failure = Some(error),
            // Nobody sends these here.
            Ok(Report::Started | Report::Done | Report::NeedsIdMap | Report::Unpacked(_)) | Err(_) => {}
        }
        true
    }

    /// Asks every process of the step to end: pid 1 passes the signal on. Where it can't, grace ends in a kill that needs
    /// nobody's help.
    fn terminate(&self) {
        let _ = wire::try_send(&self.status, &[Signal::TERM.as_raw().unsigned_abs() as u8], &[]);
    }

    fn kill(&self) {
        // Dead already: a pidfd never names another process.
        let _ = pidfd_send_signal(&self.pid1, Signal::KILL);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Takes the signals that came.
fn take(signals: &OwnedFd) {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    while rustix::io::read(signals, &mut info[..]).is_ok() {}
}
