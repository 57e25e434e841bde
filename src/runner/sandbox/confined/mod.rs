//! Read-only programs on this machine: their output is their only effect.
//!
//! ```text
//! ConfinedCommand::run ─▶ helper (this program again) ─▶ jail: a root in memory, views of the machine
//!      │   ▲                 limits, time, the end of all        read-only, no network, no capabilities
//!      │   └─ stdout, up to a limit
//!      └───── stderr, as it comes
//! ```
//!
//! The input is a command and the files of the machine that it may read. The output is what the command
//! printed, and how it ended. No store, layer or runtime is used, so a run costs only some milliseconds. The
//! code that renders a project's pipelines runs in here.

mod files;
mod helper;
mod kept;

use std::{
    ffi::{CString, OsString},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStringExt, fs::MetadataExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::RecvFlags,
    process::{Pid, Signal, kill_process},
};
use serde::{Deserialize, Serialize};

use self::files::Files;
pub(super) use self::helper::run_if_marked;
pub use self::kept::{KeptOutput, KeptOutputs};
use super::jail::{self, Bind, MemoryRoot, SetupError, user_namespace_hint, wire};
use crate::userns::{NoHelper, locate};

/// How long the helper may take beyond the command's own time before it is ended.
const HELPER_PATIENCE: Duration = Duration::from_secs(10);
/// The size of one read from a pipe in bytes.
const READ_BYTES: usize = 1 << 16;

/// A program to run that can read only the files it is given, and change nothing.
///
/// The program has access to the system's programs and libraries, the paths in [`show`](Self::show), a small
/// filesystem in memory for everything else, and a `/proc` and a loopback device of its own. It has no access
/// to the network, sockets of other programs, home directories, `/etc`, capabilities, or any variables except
/// those in `env`.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_structs, reason = "a caller says all of it")]
pub struct ConfinedCommand {
    /// The absolute path of the program, and its arguments.
    pub argv: Vec<OsString>,
    /// The complete environment of the program.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory: a directory in one of those that are shown.
    pub dir: PathBuf,
    /// Directories and files of the machine that the program may read, including everything mounted in them.
    /// Symlinks on the way to them are shown, too. A missing path is ignored.
    pub show: Vec<PathBuf>,
    /// Files in those directories that appear empty to the program.
    pub hide: Vec<PathBuf>,
    /// The limits at which the program is ended.
    pub limits: ConfinedLimits,
    /// The `hm` to start as the helper, instead of the one found by default.
    pub helper: Option<PathBuf>,
}

/// The limits of a [`ConfinedCommand`], which is ended if it exceeds one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a caller says all of it")]
pub struct ConfinedLimits {
    /// The time that the program may run.
    pub time: Duration,
    /// The memory that its processes may use together, in bytes.
    pub memory_bytes: u64,
    /// The number of processes and threads at a time.
    pub processes: u64,
    /// The output to standard output, in bytes.
    pub stdout_bytes: u64,
    /// The output to standard error, in bytes.
    pub stderr_bytes: u64,
}

/// The result of a [`ConfinedCommand`]. No process of it is left.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfinedOutput {
    /// How the command ended.
    pub end: ConfinedEnd,
    /// The output to standard output, up to the limit.
    pub stdout: Vec<u8>,
}

/// How a [`ConfinedCommand`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ConfinedEnd {
    /// The command ended by itself.
    Exited {
        /// The exit code, or 128+n after signal n.
        code: i32,
    },
    /// The command exceeded its time limit.
    TimedOut,
    /// The command exceeded its memory limit.
    OutOfMemory,
    /// The command exceeded its limit on processes.
    TooManyProcesses,
    /// The command exceeded its output limit.
    TooMuchOutput(OutputStream),
    /// The command was killed from outside.
    Killed,
}

/// An output stream of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "there are no others")]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why a [`ConfinedCommand`] did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfinedError {
    /// This machine does not allow the sandbox.
    #[error("failed to {reason}")]
    NoSandbox {
        /// The failed operation: completes "failed to ...".
        reason: SetupError,
        /// How to fix it.
        hint: String,
    },
    /// There is no program that can become the helper.
    #[error(transparent)]
    NoHelper(#[from] NoHelper),
    /// The program itself cannot be executed.
    #[error("failed to {0}")]
    Program(SetupError),
    /// A path cannot be shown.
    #[error("cannot show {} to a confined program: {reason}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// Another operation failed.
    #[error("failed to {doing}")]
    Io {
        /// The operation.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The request to the helper.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    root: MemoryRoot,
    binds: Vec<Bind>,
    argv: Vec<CString>,
    env: Vec<CString>,
    workdir: CString,
    time: Duration,
    memory_bytes: u64,
    processes: u64,
}

/// The answer of the helper.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Ended(ConfinedEnd),
    /// A program of the command traces others by seccomp, so it must run untraced.
    Untraceable,
    NoSandbox(SetupError),
    Program(SetupError),
}

impl ConfinedCommand {
    /// Runs the program until its last process is dead. `on_stderr` receives its standard error as it
    /// arrives.
    ///
    /// Blocks. If the calling process dies meanwhile, for any reason, so does every process of the command.
    ///
    /// # Errors
    /// Returns an error if the program did not run. A program that fails or exceeds a limit is not an error.
    pub fn run(&self, on_stderr: &mut dyn FnMut(&[u8])) -> Result<ConfinedOutput, ConfinedError> {
        match self.run_order(&self.order()?, None, on_stderr)? {
            Some(output) => Ok(output),
            None => Err(failed("run a confined program")(io::Error::other("it was traced"))),
        }
    }

    /// Runs the program, and has its trace written to a file, if one is given. Returns `None` if the program
    /// must run without that.
    fn run_order(
        &self,
        order: &Order,
        trace: Option<BorrowedFd<'_>>,
        on_stderr: &mut dyn FnMut(&[u8]),
    ) -> Result<Option<ConfinedOutput>, ConfinedError> {
        let order = wire::to_memory_file(order).map_err(|error| setup_failed(&error))?;
        let (ours, theirs) = wire::pair().map_err(|errno| failed("make a socket")(errno.into()))?;
        let program = locate(self.helper.as_deref())?;
        let child = Command::new(&program)
            .arg0("hm-confined")
            .arg(helper::MARKER)
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir("/")
            // Ctrl-C in a terminal ends the caller, and the helper ends with it.
            .process_group(0)
            .spawn()
            .map_err(failed("start the sandbox's helper"))?;
        let mut running = Running { child, ended: false };
        let fds: Vec<BorrowedFd<'_>> = [order.as_fd()].into_iter().chain(trace).collect();
        wire::send(&ours, b"o", &fds).map_err(|errno| failed("talk to the sandbox's helper")(errno.into()))?;
        drop(order);
        let watched = running.watch(&ours, self.limits, on_stderr)?;
        let answer = receive(&ours)?;
        running.reap()?;
        let end = match (watched.over, answer) {
            (Some(stream), _) => ConfinedEnd::TooMuchOutput(stream),
            (None, Some(Answer::Ended(end))) => end,
            (None, Some(Answer::Untraceable)) => return Ok(None),
            (None, Some(Answer::NoSandbox(reason))) => {
                let hint = if reason.doing.contains("user namespace") || reason.doing.contains("/proc/self/") {
                    user_namespace_hint(&reason)
                } else {
                    "check what the kernel or the container around hm forbids; run `hm doctor` for all checks".into()
                };
                return Err(ConfinedError::NoSandbox { reason, hint });
            }
            (None, Some(Answer::Program(error))) => return Err(ConfinedError::Program(error)),
            (None, None) => ConfinedEnd::Killed,
        };
        Ok(Some(ConfinedOutput { end, stdout: watched.stdout }))
    }

    fn order(&self) -> Result<Order, ConfinedError> {
        let mut files = Files::of_the_system()?;
        for path in &self.show {
            files.show(path)?;
        }
        files.show(&self.dir)?;
        for path in &self.hide {
            files.hide(path)?;
        }
        let (entries, binds, hidden) = files.into_parts()?;
        let owner = std::fs::metadata(&self.dir).map_err(failed("read the owner of the directory"))?;
        // Root without capabilities can do no more than the owner of root's files.
        let run_as = (owner.uid() != 0).then(|| (owner.uid(), owner.gid()));
        let variable = |(name, value): &(OsString, OsString)| {
            let mut text = name.clone().into_vec();
            text.push(b'=');
            text.extend_from_slice(value.as_encoded_bytes());
            c_string(text)
        };
        Ok(Order {
            root: MemoryRoot { max_bytes: files::MAX_BYTES, max_files: files::MAX_FILES, entries, hidden, run_as },
            binds,
            argv: self.argv.iter().map(|arg| c_string(arg.clone().into_vec())).collect::<Result<_, _>>()?,
            env: self.env.iter().map(variable).collect::<Result<_, _>>()?,
            workdir: c_path(&self.dir)?,
            time: self.limits.time,
            memory_bytes: self.limits.memory_bytes,
            processes: self.limits.processes,
        })
    }
}

/// The running helper. Dropping it ends the helper and every process of the command.
#[derive(Debug)]
struct Running {
    child: Child,
    ended: bool,
}

/// The output of the command.
#[derive(Debug, Default)]
struct Watched {
    stdout: Vec<u8>,
    over: Option<OutputStream>,
}

impl Running {
    /// Reads both streams until the helper has answered and both have ended, or until the output exceeds a
    /// limit.
    fn watch(
        &mut self,
        status: &OwnedFd,
        limits: ConfinedLimits,
        on_stderr: &mut dyn FnMut(&[u8]),
    ) -> Result<Watched, ConfinedError> {
        let doing = "read the output of a confined program";
        let (mut stdout, mut stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let mut watched = Watched::default();
        let mut stderr_bytes = 0;
        let mut buffer = vec![0; READ_BYTES];
        let deadline = Instant::now() + limits.time + HELPER_PATIENCE;
        let mut answered = false;
        // Once the helper has answered, no process of the command is left, so no further output can arrive in
        // the pipes.
        while stdout.is_some() || stderr.is_some() || !answered {
            let none = PollFlags::empty();
            let mut fds = [
                PollFd::from_borrowed_fd(stdout.as_ref().map_or(status.as_fd(), AsFd::as_fd), flag(stdout.is_some())),
                PollFd::from_borrowed_fd(stderr.as_ref().map_or(status.as_fd(), AsFd::as_fd), flag(stderr.is_some())),
                PollFd::from_borrowed_fd(status.as_fd(), if answered { none } else { PollFlags::IN }),
            ];
            let left = if answered { Duration::ZERO } else { deadline.saturating_duration_since(Instant::now()) };
            if left.is_zero() && !answered {
                self.end()?;
                return Err(failed("wait for the sandbox's helper")(io::ErrorKind::TimedOut.into()));
            }
            let timeout = Timespec::try_from(left).unwrap_or_default();
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(doing)(errno.into())),
            }
            let [from_stdout, from_stderr, from_helper] = fds.map(|fd| !fd.revents().is_empty());
            // The slot of a stream that has ended polls the socket instead.
            let (from_stdout, from_stderr) = (from_stdout && stdout.is_some(), from_stderr && stderr.is_some());
            if let Some(pipe) = stdout.as_mut().filter(|_| from_stdout) {
                let length = read(pipe, &mut buffer).map_err(failed(doing))?;
                if watched.stdout.len() as u64 + length as u64 > limits.stdout_bytes {
                    watched.over = Some(OutputStream::Stdout);
                }
                watched.stdout.extend_from_slice(&buffer[..length]);
                if length == 0 {
                    stdout = None;
                }
            }
            if let Some(pipe) = stderr.as_mut().filter(|_| from_stderr) {
                let length = read(pipe, &mut buffer).map_err(failed(doing))?;
                on_stderr(&buffer[..length]);
                stderr_bytes += length as u64;
                if stderr_bytes > limits.stderr_bytes {
                    watched.over = watched.over.or(Some(OutputStream::Stderr));
                }
                if length == 0 {
                    stderr = None;
                }
            }
            if watched.over.is_some() {
                self.end()?;
                watched.stdout.truncate(usize::try_from(limits.stdout_bytes).unwrap_or(usize::MAX));
                return Ok(watched);
            }
            if answered && !from_stdout && !from_stderr {
                break;
            }
            answered |= from_helper;
        }
        Ok(watched)
    }

    /// Ends the command, and returns when none of its processes is left.
    fn end(&mut self) -> Result<(), ConfinedError> {
        if !self.ended
            && let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
        {
            // The helper kills the command, and waits for its end. The helper is not reaped yet, so the
            // process id is still its own.
            match kill_process(pid, Signal::TERM) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(failed("end the sandbox's helper")(errno.into())),
            }
        }
        self.reap()
    }

    fn reap(&mut self) -> Result<(), ConfinedError> {
        if !self.ended {
            self.child.wait().map_err(failed("wait for the sandbox's helper"))?;
            self.ended = true;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(error = &error as &dyn std::error::Error, "a confined program may still run");
        }
    }
}

fn flag(wanted: bool) -> PollFlags {
    if wanted { PollFlags::IN } else { PollFlags::empty() }
}

fn read(pipe: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match pipe.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Receives the helper's answer. Returns `None` if the helper ended without one.
fn receive(status: &OwnedFd) -> Result<Option<Answer>, ConfinedError> {
    let doing = "read the answer of the sandbox's helper";
    match wire::receive(status, RecvFlags::DONTWAIT) {
        Ok(Some((message, _))) => match postcard::from_bytes(&message) {
            Ok(answer) => Ok(Some(answer)),
            Err(_) => Err(failed(doing)(io::Error::other("is it an `hm` of this version?"))),
        },
        Ok(None) | Err(Errno::AGAIN | Errno::CONNRESET) => Ok(None),
        Err(errno) => Err(failed(doing)(errno.into())),
    }
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> ConfinedError {
    move |source| ConfinedError::Io { doing, source }
}

fn setup_failed(error: &jail::SetupError) -> ConfinedError {
    ConfinedError::Io {
        doing: "send the command to the sandbox's helper",
        source: io::Error::from_raw_os_error(error.errno),
    }
}

fn c_path(path: &Path) -> Result<CString, ConfinedError> {
    c_string(path.as_os_str().to_owned().into_vec())
}

fn c_string(text: Vec<u8>) -> Result<CString, ConfinedError> {
    CString::new(text)
        .map_err(|_| failed("send the command to the sandbox's helper")(io::Error::other("it contains a NUL byte")))
}
