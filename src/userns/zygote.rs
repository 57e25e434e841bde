//! The engine's side of the zygote: starting it, and sending it requests.

use std::{
    borrow::Borrow,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    pin::pin,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::RecvFlags,
    process::{Pid, Signal, kill_process},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{id_ranges::IdRanges, program::NoHelper};
use crate::{
    awake::Awake,
    jail::{
        GREETING, MARKER, MountApi, MountedOverlay, Report, Request, Screen, SetupError, TreeOp, UNISOLATED,
        UserNamespace, greeting, wire,
    },
    open_files,
    store::IdMap,
    sync::Mutex,
};

/// How long a helper may take to send each message until it is ready, and later to start a step.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A running zygote. Dropping it ends the zygote and every step of it.
#[derive(Debug)]
pub(crate) struct Zygote {
    socket: Option<OwnedFd>,
    child: Mutex<Child>,
    user_namespace: UserNamespace,
    /// Whether it has stopped answering.
    is_silent: AtomicBool,
}

/// Why the zygote could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    NoHelper(#[from] NoHelper),
    #[error("failed to start the sandbox's helper {}", path.display())]
    Spawn { path: PathBuf, source: io::Error },
    #[error("the sandbox's helper {} ended before it was ready; is it an `hm` of this version?", path.display())]
    Ended { path: PathBuf },
    #[error(
        "the sandbox's helper {} did not answer within {} s; is it an `hm` of this version?",
        path.display(), patience.as_secs_f64()
    )]
    Silent { path: PathBuf, patience: Duration },
    #[error(
        "the sandbox's helper {} is {theirs}, but this program is {}: use the same version",
        path.display(), version(&greeting())
    )]
    OtherVersion { path: PathBuf, theirs: String },
    #[error("failed to talk to the sandbox's helper")]
    Talk(#[source] io::Error),
    #[error("the sandbox's helper failed to {0}")]
    Setup(SetupError),
    #[error("no subordinate ids: {0}")]
    NoRange(String),
    #[error("failed to map ids by {command}: {reason}")]
    MapIds { command: &'static str, reason: String },
}

impl Zygote {
    /// Starts a zygote, and waits until it is ready. Blocks for a few milliseconds, or some twenty with
    /// [`UserNamespace::Range`].
    pub(super) fn start(
        helper: &Path,
        user_namespace: UserNamespace,
        ranges: Option<&IdRanges>,
    ) -> Result<Self, StartError> {
        Self::start_within(PATIENCE, helper, user_namespace, user_namespace.as_str(), ranges)
    }

    /// Starts a zygote without namespaces, which starts steps without isolation. Blocks for a few
    /// milliseconds.
    pub(crate) fn start_unisolated(helper: &Path) -> Result<Self, StartError> {
        Self::start_within(PATIENCE, helper, UserNamespace::None, UNISOLATED, None)
    }

    fn start_within(
        patience: Duration,
        helper: &Path,
        user_namespace: UserNamespace,
        mode: &str,
        ranges: Option<&IdRanges>,
    ) -> Result<Self, StartError> {
        let (ours, theirs) = wire::pair().map_err(|errno| StartError::Talk(errno.into()))?;
        let child = Command::new(helper)
            .arg0("hm-sandbox")
            .args([MARKER, mode])
            .args(open_files::for_steps().map(|limit| limit.to_string()))
            // Steps must not see the engine's environment.
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal is for the engine, which ends steps with grace.
            .process_group(0)
            .spawn()
            .map_err(|source| StartError::Spawn { path: helper.into(), source })?;
        let zygote =
            Self { socket: Some(ours), child: Mutex::new(child), user_namespace, is_silent: AtomicBool::new(false) };
        if let Err(error) = zygote.prepare(patience, helper, ranges) {
            // A helper that does not answer may not notice the end of the stream, either.
            if let Err(error) = zygote.child.lock().kill() {
                tracing::debug!(%error, "failed to kill what is not the sandbox's helper");
            }
            return Err(error);
        }
        Ok(zygote)
    }

    /// Waits until the helper is ready, and maps its ids when it asks for that.
    fn prepare(&self, patience: Duration, helper: &Path, ranges: Option<&IdRanges>) -> Result<(), StartError> {
        let talk = |errno: Errno| StartError::Talk(errno.into());
        let next = || -> Result<Vec<u8>, StartError> {
            if !is_readable_within(self.socket(), patience).map_err(talk)? {
                return Err(StartError::Silent { path: helper.into(), patience });
            }
            let received = wire::receive(self.socket(), RecvFlags::empty()).map_err(talk)?;
            received.map(|(message, _)| message).ok_or_else(|| StartError::Ended { path: helper.into() })
        };
        let theirs = next()?;
        if theirs != greeting().as_bytes() {
            let theirs = version(&String::from_utf8_lossy(&theirs));
            return Err(StartError::OtherVersion { path: helper.into(), theirs });
        }
        loop {
            match postcard::from_bytes(&next()?).map_err(|_| talk(Errno::PROTO))? {
                Report::Done => return Ok(()),
                Report::NeedsIdMap => {
                    let pid = self.child.lock().id();
                    ranges
                        .map_or(Ok(()), |ranges| ranges.map(pid))
                        .map_err(|(command, reason)| StartError::MapIds { command, reason })?;
                    wire::send(self.socket(), b"m", &[]).map_err(talk)?;
                }
                Report::Failed(error) => return Err(StartError::Setup(error)),
                _ => {}
            }
        }
    }

    /// Returns whether the zygote is still running, and has not stopped answering.
    pub(crate) fn is_alive(&self) -> bool {
        if self.is_silent.load(Ordering::Relaxed) {
            return false;
        }
        let mut child = self.child.lock();
        matches!(child.try_wait(), Ok(None))
    }

    /// Asks for no more steps of a zygote that has not answered within [`PATIENCE`], and returns the error of
    /// the step that it did not start. The steps that it has started go on; it is killed after the last.
    pub(crate) fn give_up(&self) -> io::Error {
        if !self.is_silent.swap(true, Ordering::Relaxed) {
            tracing::warn!("the sandbox's helper process has stopped answering; the next step starts another");
        }
        io::Error::new(io::ErrorKind::TimedOut, format!("it did not answer within {} s", PATIENCE.as_secs()))
    }

    /// Returns how ids are mapped in its steps.
    pub(crate) fn user_namespace(&self) -> UserNamespace {
        self.user_namespace
    }

    /// Returns how ids are mapped in its steps, for the store.
    pub(crate) fn id_map(&self) -> IdMap {
        self.user_namespace.id_map()
    }

    /// Sends a request. Waits only if hundreds of requests are pending.
    ///
    /// # Errors
    /// Returns `EPIPE` if the zygote is gone, and an error if it does not receive requests any more.
    pub(crate) async fn request(&self, request: Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let message = postcard::to_stdvec(&request).map_err(io::Error::other)?;
        match wire::try_send(self.socket(), &message, fds) {
            Err(Errno::AGAIN) => {}
            sent => return Ok(sent?),
        }
        // Registered only when it is needed, so that a zygote is not bound to a runtime.
        let socket = register(self.socket().try_clone_to_owned()?, Interest::WRITABLE)?;
        let sending = pin!(async {
            loop {
                let mut ready = socket.writable().await?;
                match ready.try_io(|socket| Ok(wire::try_send(socket, &message, fds)?)) {
                    Ok(sent) => return sent,
                    Err(_would_block) => {}
                }
            }
        });
        crate::awake::timeout(PATIENCE, sending).await.unwrap_or_else(|| Err(self.give_up()))
    }

    /// Performs `op`, which may read `file`, in the steps' user namespace, and waits for it. Blocks.
    pub(super) fn tree_op(&self, op: &TreeOp, file: Option<BorrowedFd<'_>>) -> io::Result<Report> {
        match self.ask(op, file)? {
            Report::Failed(error) => Err(io::Error::from_raw_os_error(error.errno)),
            report => Ok(report),
        }
    }

    /// Mounts overlays where steps that are requested afterwards find them, and waits for that. Blocks for a
    /// millisecond per overlay.
    pub(crate) fn mount(
        &self,
        screens: Vec<Screen>,
        overlays: Vec<MountedOverlay>,
        mount_api: MountApi,
    ) -> io::Result<Result<(), SetupError>> {
        match self.ask(&TreeOp::Mount { screens, overlays, user_namespace: self.user_namespace, mount_api }, None)? {
            Report::Failed(error) => Ok(Err(error)),
            _ => Ok(Ok(())),
        }
    }

    fn ask(&self, op: &TreeOp, file: Option<BorrowedFd<'_>>) -> io::Result<Report> {
        let message = postcard::to_stdvec(&Request::Tree).map_err(io::Error::other)?;
        let spec = wire::to_memory_file(op).map_err(io::Error::other)?;
        let (ours, theirs) = wire::pair()?;
        let fds: Vec<_> = [theirs.as_fd(), spec.as_fd()].into_iter().chain(file).collect();
        wire::send(self.socket(), &message, &fds)?;
        drop(theirs);
        // The operation itself may take any time.
        while !is_readable_within(ours.as_fd(), PATIENCE)? {
            if !self.responds()? {
                return Err(self.give_up());
            }
        }
        receive_report(ours.as_fd())?.ok_or_else(|| io::Error::other("the sandbox's helper ended"))
    }

    /// Returns whether the zygote still receives requests. It drops one that is invalid, with its
    /// descriptors.
    fn responds(&self) -> io::Result<bool> {
        let (ours, theirs) = wire::pair()?;
        match wire::try_send(self.socket(), b"\xff", &[theirs.as_fd()]) {
            Err(Errno::AGAIN) => return Ok(false),
            sent => sent?,
        }
        drop(theirs);
        Ok(is_readable_within(ours.as_fd(), PATIENCE)?)
    }

    fn socket(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Some(socket) => socket.as_fd(),
            None => unreachable!("the socket is taken by `drop` alone"),
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // Closing the stream ends the zygote.
        drop(self.socket.take());
        let child = self.child.get_mut();
        if *self.is_silent.get_mut()
            && let Err(error) = child.kill()
        {
            tracing::debug!(%error, "failed to kill a helper that does not answer");
        }
        // A step without isolation may have stopped it.
        let _ = kill_process(Pid::from_child(child), Signal::CONT);
        if *self.is_silent.get_mut() {
            // It may be stuck in the kernel, where no signal reaches it: it is not waited for.
            let pid = Pid::from_child(child);
            let reap = move || rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            let _ = std::thread::Builder::new().name("hm-reaper".into()).spawn(reap);
            return;
        }
        if let Err(error) = child.wait() {
            tracing::debug!(%error, "failed to reap the sandbox's helper");
        }
    }
}

/// Registers an [`OwnedFd`], which may be shared, with the runtime.
#[allow(deprecated, reason = "tokio's successor is unsafe, for descriptors that change; an `OwnedFd` does not")]
pub(crate) fn register<T: Borrow<OwnedFd> + AsRawFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(fd, interest)
}

/// Returns the version in a greeting as text for the user. The first versions sent no greeting.
fn version(greeting: &str) -> String {
    let versions = greeting.strip_prefix(GREETING).and_then(|versions| versions.split_once(' '));
    let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    match versions.filter(|(protocol, release)| is_plain(protocol) && is_plain(release)) {
        Some((protocol, release)) => format!("hm {release} (protocol {protocol})"),
        None => "an older hm, or another program".to_owned(),
    }
}

/// Waits until there is something to receive, or the end of the stream. Returns false if neither happens
/// within `limit`.
fn is_readable_within(socket: BorrowedFd<'_>, limit: Duration) -> Result<bool, Errno> {
    let mut awake = Awake::new(limit);
    while let Some(slice) = awake.next() {
        let since = Instant::now();
        let timeout = Timespec::try_from(slice).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => awake.pass(since.elapsed()),
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
    Ok(false)
}

fn receive_report(socket: BorrowedFd<'_>) -> Result<Option<Report>, Errno> {
    match wire::receive(socket, RecvFlags::empty())? {
        Some((message, _)) => postcard::from_bytes(&message).map(Some).map_err(|_| Errno::PROTO),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    /// Returns the error for a program that is not a helper of this version.
    fn start(script: &str) -> StartError {
        let dir = tempfile::tempdir().unwrap();
        let helper = dir.path().join("helper");
        fs::write(&helper, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
        loop {
            match Zygote::start_within(Duration::from_millis(500), &helper, UserNamespace::None, "none", None) {
                // Another test's child still has the script open for writing.
                Err(StartError::Spawn { source, .. }) if source.kind() == io::ErrorKind::ExecutableFileBusy => {}
                started => return started.unwrap_err(),
            }
        }
    }

    #[test]
    fn a_helper_that_does_not_answer_is_given_up_on() {
        // This helper also misses the end of the stream, and ignores signals to end.
        let error = start("trap '' TERM HUP; exec sleep 100");
        assert!(matches!(&error, StartError::Silent { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("/helper did not answer within 0.5 s"), "{text}");
    }

    #[test]
    fn a_helper_of_another_version_is_refused_and_both_versions_are_named() {
        let text = start("printf 'hm-sandbox 1 0.0.7' >&0; exec sleep 100").to_string();
        assert!(text.contains("is hm 0.0.7 (protocol 1)"), "{text}");
        assert!(text.contains(concat!("this program is hm ", env!("CARGO_PKG_VERSION"), " (protocol ")), "{text}");
        // This is the first byte from versions that had no greeting.
        let text = start("printf '\\005' >&0; exec sleep 100").to_string();
        assert!(text.contains("is an older hm, or another program"), "{text}");
        assert!(matches!(start("exit 0"), StartError::Ended { .. }));
    }
}
