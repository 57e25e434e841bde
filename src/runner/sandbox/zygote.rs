//! The engine's side of the zygote: starting it, and sending it requests.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use rustix::{io::Errno, net::RecvFlags};
use tokio::io::Interest;

use super::{
    attempt,
    helper::NoHelper,
    idmap::{IdRanges, id_map_of},
    jail::{MARKER, MountApi, MountedOverlay, Report, Request, SetupError, TreeOp, UserNamespace, wire},
};
use crate::store::IdMap;

/// A running zygote. Dropped, it ends, and every step of it.
#[derive(Debug)]
pub(super) struct Zygote {
    socket: Option<OwnedFd>,
    child: Mutex<Child>,
    user_namespace: UserNamespace,
}

/// Why there is no zygote.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    NoHelper(#[from] NoHelper),
    #[error("failed to start the sandbox's helper {}", path.display())]
    Spawn { path: PathBuf, source: io::Error },
    #[error("the sandbox's helper {} ended before it was ready; is it an `hm` of this version?", path.display())]
    Ended { path: PathBuf },
    #[error("failed to talk to the sandbox's helper")]
    Talk(#[source] io::Error),
    #[error("the sandbox's helper failed to {0}")]
    Setup(SetupError),
    #[error("found no subordinate ids: {0}")]
    NoRange(String),
    #[error("failed to map ids by {command}: {reason}")]
    MapIds { command: &'static str, reason: String },
}

impl Zygote {
    /// Starts one, and waits until it is ready. Blocks for a few milliseconds; some twenty with [`UserNamespace::Range`].
    pub(super) fn start(
        helper: &Path,
        user_namespace: UserNamespace,
        ranges: Option<&IdRanges>,
    ) -> Result<Self, StartError> {
        let (ours, theirs) = wire::pair().map_err(|errno| StartError::Talk(errno.into()))?;
        let mode = match user_namespace {
            UserNamespace::None => "none",
            UserNamespace::Range => "range",
            UserNamespace::Single => "single",
        };
        let child = Command::new(helper)
            .arg0("hm-sandbox")
            .args([MARKER, mode])
            // What the engine's environment holds is none of a step's business.
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A terminal's Ctrl-C is for the engine, which ends steps with grace.
            .process_group(0)
            .spawn()
            .map_err(|source| StartError::Spawn { path: helper.into(), source })?;
        let zygote = Self { socket: Some(ours), child: Mutex::new(child), user_namespace };
        loop {
            match receive_report(zygote.socket()).map_err(|errno| StartError::Talk(errno.into()))? {
                Some(Report::Done) => return Ok(zygote),
                Some(Report::NeedsIdMap) => {
                    let pid = zygote.child.lock().unwrap_or_else(PoisonError::into_inner).id();
                    ranges
                        .map_or(Ok(()), |ranges| ranges.map(pid))
                        .map_err(|(command, reason)| StartError::MapIds { command, reason })?;
                    wire::send(zygote.socket(), b"m", &[]).map_err(|errno| StartError::Talk(errno.into()))?;
                }
                Some(Report::Failed(error)) => return Err(StartError::Setup(error)),
                Some(_) => {}
                None => return Err(StartError::Ended { path: helper.into() }),
            }
        }
    }

    /// Whether it still runs.
    pub(super) fn is_alive(&self) -> bool {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(child.try_wait(), Ok(None))
    }

    /// How ids are mapped in its steps.
    pub(super) fn user_namespace(&self) -> UserNamespace {
        self.user_namespace
    }

    /// The same for the store.
    pub(super) fn id_map(&self) -> IdMap {
        id_map_of(self.user_namespace)
    }

    /// Sends a request. Waits only where hundreds are under way.
    ///
    /// # Errors
    /// `EPIPE` where the zygote is gone.
    pub(super) async fn request(&self, request: Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let message = postcard::to_stdvec(&request).map_err(io::Error::other)?;
        match wire::try_send(self.socket(), &message, fds) {
            Err(Errno::AGAIN) => {}
            sent => return Ok(sent?),
        }
        // Made when it is needed, so that a zygote is bound to no runtime.
        let socket = attempt::register(self.socket().try_clone_to_owned()?, Interest::WRITABLE)?;
        loop {
            let mut ready = socket.writable().await?;
            match ready.try_io(|socket| Ok(wire::try_send(socket, &message, fds)?)) {
                Ok(sent) => return sent,
                Err(_would_block) => {}
            }
        }
    }

    /// Does `op`, which may read `file`, in the steps' user namespace, and waits for it. Blocks.
    pub(super) fn tree_op(&self, op: &TreeOp, file: Option<BorrowedFd<'_>>) -> io::Result<Report> {
        match self.ask(op, file)? {
            Report::Failed(error) => Err(io::Error::from_raw_os_error(error.errno)),
            report => Ok(report),
        }
    }

    /// Mounts overlays where the steps that are asked for afterwards find them, and waits for that. Blocks: a millisecond
    /// for each.
    pub(super) fn mount(
        &self,
        overlays: Vec<MountedOverlay>,
        mount_api: MountApi,
    ) -> io::Result<Result<(), SetupError>> {
        match self.ask(&TreeOp::Mount { overlays, user_namespace: self.user_namespace, mount_api }, None)? {
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
        receive_report(ours.as_fd())?.ok_or_else(|| io::Error::other("the sandbox's helper ended"))
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
        // The end of the stream is the zygote's end.
        drop(self.socket.take());
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = child.wait() {
            tracing::debug!(%error, "failed to reap the sandbox's helper");
        }
    }
}

fn receive_report(socket: BorrowedFd<'_>) -> Result<Option<Report>, Errno> {
    match wire::receive(socket, RecvFlags::empty())? {
        Some((message, _)) => postcard::from_bytes(&message).map(Some).map_err(|_| Errno::PROTO),
        None => Ok(None),
    }
}
