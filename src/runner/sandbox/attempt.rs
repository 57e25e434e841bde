//! One attempt: a command from its start to the death of the last process of its step.

use std::{
    fs::File,
    future::pending,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::pin,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::RecvFlags,
    pipe::PipeFlags,
    process::{Signal, pidfd_send_signal},
};
use tokio::io::{Interest, unix::AsyncFd};
use tokio_util::sync::CancellationToken;

use super::{
    jail::{End, JailSpec, ProcessSpec, Report, Request, SetupError, wire},
    own_network::StepNamespace,
};
use crate::{
    awake,
    model::{StdStream, StepUsage},
    runner::{RunnerError, pipes::Pipes},
    streams::Piece,
    userns::{PATIENCE, Zygote, register},
};

/// The capacity of a pipe in bytes; less if the system allows less.
const PIPE_BYTES: usize = 1 << 20;
/// The size of one read in bytes.
const READ_BYTES: usize = 1 << 17;

/// The destination of a command's output.
pub(crate) trait OutputSink: Sync {
    /// Takes output of the command. While this is pending, the command blocks once its pipe is full.
    fn output(&self, stream: StdStream, bytes: &[u8]) -> impl Future<Output = ()> + Send;
}

/// The means to end a running command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Control<'a> {
    /// Fires when the command must end: TERM, grace, KILL.
    pub(crate) cancel: &'a CancellationToken,
    /// The time that the command has between TERM and KILL.
    pub(crate) grace: Duration,
}

/// What a helper is asked for.
struct Asked<'a> {
    request: Request,
    spec: OwnedFd,
    /// The network namespace, if one is given.
    network: Option<BorrowedFd<'a>>,
    /// The file for the trace, if the step is traced.
    trace: Option<BorrowedFd<'a>>,
}

/// A step to run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order<'a> {
    pub(super) spec: &'a JailSpec,
    pub(super) network: StepNamespace<'a>,
    /// The file for the trace, if the step is traced.
    pub(super) trace: Option<BorrowedFd<'a>>,
}

/// Runs the command of an order. Returns when every process of the step is dead, and all of its output has
/// been passed on.
///
/// # Cancel safety
/// If the future is dropped, every process of the step gets SIGKILL.
pub(super) async fn run(
    zygote: &Zygote,
    order: Order<'_>,
    control: Control<'_>,
    sink: &impl OutputSink,
) -> Result<Supervised, RunnerError> {
    let Order { spec, network, trace } = order;
    let spec = wire::to_memory_file(spec).map_err(setup_error)?;
    let request = Request::Step { network: network.kind(), traced: trace.is_some() };
    let asked = Asked { request, spec, network: network.given(), trace };
    run_as(zygote, asked, Ending::ByKernel, control, sink).await
}

/// The end of a step.
#[derive(Debug)]
pub(crate) struct Supervised {
    pub(crate) end: End,
    /// What the step used, if its command ended by itself.
    pub(crate) usage: Option<StepUsage>,
    /// Whether the supervisor ended all processes of the step. If not, it was killed before, and processes of
    /// the step may be left.
    pub(crate) ended_all: bool,
}

/// Runs the command of `spec` without isolation, on a zygote without namespaces. Returns when the supervisor
/// of the step has ended, and all of its output has been passed on.
///
/// # Cancel safety
/// If the future is dropped, every process of the step gets SIGKILL.
pub(crate) async fn supervise(
    zygote: &Zygote,
    spec: &ProcessSpec,
    control: Control<'_>,
    sink: &impl OutputSink,
) -> Result<Supervised, RunnerError> {
    let spec = wire::to_memory_file(spec).map_err(setup_error)?;
    let asked = Asked { request: Request::Process, spec, network: None, trace: None };
    run_as(zygote, asked, Ending::BySupervisor, control, sink).await
}

async fn run_as(
    zygote: &Zygote,
    asked: Asked<'_>,
    ending: Ending,
    control: Control<'_>,
    sink: &impl OutputSink,
) -> Result<Supervised, RunnerError> {
    let failed = |doing: &'static str| move |error: io::Error| RunnerError::infrastructure(doing, error);
    let (step, theirs) = Step::new(ending).map_err(failed("make the step's pipes"))?;
    let Asked { request, spec, network, trace } = asked;
    let first = [theirs.status.as_fd(), spec.as_fd()].into_iter().chain(network).chain(trace);
    let fds: Vec<_> = first.chain([theirs.stdout.as_fd(), theirs.stderr.as_fd()]).collect();
    zygote.request(request, &fds).await.map_err(failed("ask the helper process for a step"))?;
    drop(fds);
    drop((theirs, spec));
    step.attend(zygote, control, sink).await
}

/// Sets up the jail of a `spec` without a command, and tears it down.
pub(super) async fn trial(zygote: &Zygote, spec: &JailSpec) -> io::Result<Result<(), SetupError>> {
    let null = File::open("/dev/null")?;
    let ended = run_on(zygote, spec, StepNamespace::Shared, &[null.as_fd(), null.as_fd()]).await?;
    Ok(ended.map(drop))
}

/// Runs the command of `spec` on the caller's streams: standard output, standard error, and optionally
/// standard input. Returns when every process of the step is dead.
///
/// # Cancel safety
/// If the future is dropped, every process of the step gets SIGKILL.
pub(super) async fn run_on(
    zygote: &Zygote,
    spec: &JailSpec,
    network: StepNamespace<'_>,
    streams: &[BorrowedFd<'_>],
) -> io::Result<Result<End, SetupError>> {
    match start_on(zygote, spec, network, streams).await? {
        Ok(mut step) => step.ended().await,
        Err(error) => Ok(Err(error)),
    }
}

/// Starts the command of `spec` with the caller's descriptors: standard output, standard error, optionally
/// standard input, and optionally further descriptors for the command.
///
/// # Cancel safety
/// If the future is dropped, every process of the step gets SIGKILL.
pub(super) async fn start_on(
    zygote: &Zygote,
    spec: &JailSpec,
    network: StepNamespace<'_>,
    streams: &[BorrowedFd<'_>],
) -> io::Result<Result<Step, SetupError>> {
    let (status, theirs) = wire::pair()?;
    let mut step = Step::over(status, None, Ending::ByKernel)?;
    let spec = match wire::to_memory_file(spec) {
        Ok(spec) => spec,
        Err(error) => return Ok(Err(error)),
    };
    let first = [theirs.as_fd(), spec.as_fd()].into_iter().chain(network.given());
    let fds: Vec<BorrowedFd<'_>> = first.chain(streams.iter().copied()).collect();
    zygote.request(Request::Step { network: network.kind(), traced: false }, &fds).await?;
    drop((theirs, spec));
    let answered = awake::timeout(PATIENCE, pin!(step.answered())).await;
    answered.unwrap_or_else(|| Err(zygote.give_up()))?;
    Ok(Ok(step))
}

/// Converts an error of the jail's setup. A retry may help if the kernel was short of a resource.
pub(super) fn setup_error(error: SetupError) -> RunnerError {
    RunnerError::infrastructure("make the step's sandbox", error)
}

/// The engine's ends of a step's descriptors. Dropping it kills the step: pid 1 ends when its status socket
/// is closed.
#[derive(Debug)]
pub(super) struct Step {
    status: AsyncFd<OwnedFd>,
    /// The output pipes; `None` if the step prints to the caller's streams.
    output: Option<Pipes>,
    /// The pidfd of the step's pid 1, once it is known.
    pid1: Option<AsyncFd<OwnedFd>>,
    ending: Ending,
    progress: Progress,
}

/// What kills the processes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The kernel, when pid 1 is dead.
    ByKernel,
    /// The supervisor, which takes the place of pid 1.
    BySupervisor,
}

/// The step's ends of the descriptors.
#[derive(Debug)]
struct Theirs {
    status: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// What the status socket has reported so far.
#[derive(Debug, Default)]
struct Progress {
    end: Option<End>,
    usage: Option<StepUsage>,
    failure: Option<SetupError>,
    /// Whether the supervisor has ended all processes of the step.
    ended_all: bool,
    hung_up: bool,
}

/// The progress of ending the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    Terminated,
    Killed,
}

/// The event that woke the attempt.
enum Event {
    Output(Piece),
    Report(Option<(Report, Option<OwnedFd>)>),
    Dead,
    Interrupted,
    GraceOver,
    Silence,
}

impl Step {
    fn new(ending: Ending) -> io::Result<(Self, Theirs)> {
        let (status, their_status) = wire::pair()?;
        let (stdout, their_stdout) = pipe()?;
        let (stderr, their_stderr) = pipe()?;
        let step = Self::over(status, Some(Pipes::new(stdout, stderr, READ_BYTES)?), ending)?;
        Ok((step, Theirs { status: their_status, stdout: their_stdout, stderr: their_stderr }))
    }

    fn over(status: OwnedFd, output: Option<Pipes>, ending: Ending) -> io::Result<Self> {
        Ok(Self { status: watched(status)?, output, pid1: None, ending, progress: Progress::default() })
    }

    /// Waits until the zygote has started the step, or has failed to. Cancel-safe.
    async fn answered(&mut self) -> io::Result<()> {
        while self.is_unanswered() {
            let report = next_report(&self.status).await?;
            self.absorb(report)?;
        }
        Ok(())
    }

    /// Returns whether nothing is known yet of what became of the request.
    fn is_unanswered(&self) -> bool {
        self.pid1.is_none() && self.progress.failure.is_none() && !self.progress.hung_up
    }

    /// Waits until every process of the step is dead. For steps that print to the caller's streams.
    /// Cancel-safe.
    pub(super) async fn ended(&mut self) -> io::Result<Result<End, SetupError>> {
        while !self.progress.hung_up {
            let report = next_report(&self.status).await?;
            self.absorb(report)?;
        }
        if self.pid1.is_some() {
            dead(self.pid1.as_ref()).await;
        }
        match (self.progress.failure.take(), self.progress.end.take()) {
            (Some(error), _) => Ok(Err(error)),
            (None, Some(end)) => Ok(Ok(end)),
            (None, None) => Err(io::Error::other("it or the sandbox's helper was killed by another process")),
        }
    }

    async fn attend(
        mut self,
        zygote: &Zygote,
        control: Control<'_>,
        sink: &impl OutputSink,
    ) -> Result<Supervised, RunnerError> {
        let failed = |error: io::Error| RunnerError::infrastructure("watch the step", error);
        let mut stop = Stop::No;
        // The times count from the first poll.
        let (grace, patience) = (awake::sleep(control.grace), awake::sleep(PATIENCE));
        tokio::pin!(grace, patience);
        loop {
            let event = tokio::select! {
                () = dead(self.pid1.as_ref()) => Event::Dead,
                report = next_report(&self.status), if !self.progress.hung_up => Event::Report(report.map_err(failed)?),
                piece = printed(&mut self.output) => Event::Output(piece.map_err(failed)?),
                // A command whose end was reported ended by itself.
                () = control.cancel.cancelled(), if stop == Stop::No && self.progress.end.is_none() => Event::Interrupted,
                () = &mut grace, if stop == Stop::Terminated => Event::GraceOver,
                () = &mut patience, if self.is_unanswered() => Event::Silence,
            };
            match event {
                Event::Output(piece) => self.hand_on(piece, sink).await,
                Event::Report(report) => {
                    self.absorb(report).map_err(failed)?;
                    if self.progress.hung_up && self.pid1.is_none() {
                        // There never was a pid 1, so there is no process to wait for.
                        break;
                    }
                }
                Event::Dead => break,
                Event::Interrupted => {
                    stop = Stop::Terminated;
                    self.terminate();
                }
                Event::Silence => {
                    let error = zygote.give_up();
                    if stop != Stop::No {
                        break;
                    }
                    return Err(RunnerError::infrastructure("start the step by the helper process", error));
                }
                Event::GraceOver => {
                    stop = Stop::Killed;
                    self.kill();
                }
            }
        }
        // No process of the step is left, so no output or report can follow what the pipes and the socket
        // hold now. A process that outlived its supervisor can fill them without end.
        let mut most = match self.ending {
            Ending::ByKernel => usize::MAX,
            Ending::BySupervisor => 2 * PIPE_BYTES,
        };
        while most > 0
            && let Some(output) = &mut self.output
            && let Some(piece) = output.next_now().map_err(failed)?
        {
            most = most.saturating_sub(output.bytes(piece).1.len());
            self.hand_on(piece, sink).await;
        }
        while let Some(report) = take_report(self.status.get_ref()).map_err(failed)? {
            self.absorb(Some(report)).map_err(failed)?;
        }
        let Progress { end, usage, failure, ended_all, .. } = std::mem::take(&mut self.progress);
        let end = match (failure, end) {
            _ if stop != Stop::No => End::Interrupted,
            (Some(error), _) => return Err(setup_error(error)),
            (None, Some(end)) => end,
            (None, None) => End::Killed,
        };
        Ok(Supervised { end, usage, ended_all })
    }

    async fn hand_on(&self, piece: Piece, sink: &impl OutputSink) {
        if let Some(output) = &self.output {
            let (stream, bytes) = output.bytes(piece);
            sink.output(stream, bytes).await;
        }
    }

    /// Records a report; `None` is the end of the socket.
    fn absorb(&mut self, report: Option<(Report, Option<OwnedFd>)>) -> io::Result<()> {
        match report {
            None => self.progress.hung_up = true,
            Some((Report::Started, pidfd)) => self.pid1 = pidfd.map(watched).transpose()?,
            Some((Report::Failed(error), _)) => self.progress.failure = Some(error),
            Some((Report::Exited { code, cpu_micros, max_rss_bytes }, _)) => {
                self.progress.end = Some(End::Exited { code });
                self.progress.usage = Some(StepUsage::new(max_rss_bytes, cpu_micros / 1000));
            }
            Some((Report::OutOfMemory, _)) => self.progress.end = Some(End::OutOfMemory),
            Some((Report::TooManyProcesses, _)) => self.progress.end = Some(End::TooManyProcesses),
            Some((Report::Untraceable, _)) => self.progress.end = Some(End::Untraceable),
            Some((Report::Done, _)) => self.progress.ended_all = true,
            Some((Report::StillRunning, _)) => {
                self.progress.ended_all = true;
                tracing::warn!("processes of a step are still running after being killed");
            }
            Some((Report::NeedsIdMap | Report::Network { .. } | Report::Unpacked(_) | Report::Retimed(_), _)) => {}
        }
        Ok(())
    }

    /// Asks every process of the step to end: pid 1 forwards the signal. If pid 1 is not ready yet, it does
    /// so when it is.
    fn terminate(&self) {
        if let Err(error) = self.pass_on(Signal::TERM) {
            // When the grace period is over, the step is killed, which needs no help from pid 1.
            tracing::debug!(%error, "failed to pass TERM on to a step");
        }
    }

    /// Sends a signal to every process of the step, by a message to pid 1.
    fn pass_on(&self, signal: Signal) -> Result<(), Errno> {
        wire::try_send(self.status.get_ref(), &[signal.as_raw().unsigned_abs() as u8], &[])
    }

    pub(super) fn kill(&self) {
        let signal = match self.ending {
            Ending::ByKernel => Signal::KILL,
            Ending::BySupervisor => {
                // Fails if the supervisor is dead.
                let _ = self.pass_on(Signal::KILL);
                // The step may have stopped it.
                Signal::CONT
            }
        };
        if let Some(pid1) = &self.pid1
            && let Err(error) = pidfd_send_signal(pid1.get_ref(), signal)
            && error != Errno::SRCH
        {
            tracing::warn!(%error, "failed to kill a step");
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        // This is harmless if pid 1 is dead: a pidfd never refers to another process.
        self.kill();
    }
}

/// Waits for a piece of the step's output. Never completes if the step prints to the caller's streams, or at
/// the end of the output. Cancel-safe.
async fn printed(output: &mut Option<Pipes>) -> io::Result<Piece> {
    if let Some(output) = output
        && let Some(piece) = output.next().await?
    {
        return Ok(piece);
    }
    pending().await
}

/// Creates a pipe. Returns the engine's end and the step's end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    // A user's pipes may be limited to less. The size then stays unchanged.
    let _ = rustix::pipe::fcntl_setpipe_size(&ours, PIPE_BYTES);
    Ok((ours, theirs))
}

fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd, Interest::READABLE)
}

/// Completes when pid 1, and with it every process of the step, is dead. Never completes if there is no pid 1
/// yet.
async fn dead(pid1: Option<&AsyncFd<OwnedFd>>) {
    match pid1 {
        Some(pid1) => drop(pid1.readable().await),
        None => pending().await,
    }
}

/// Waits for a report; returns `None` at the end of the socket. Cancel-safe.
async fn next_report(status: &AsyncFd<OwnedFd>) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
    loop {
        let mut ready = status.readable().await?;
        match receive(status.get_ref()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            report => return report,
        }
    }
}

/// Returns a report that has already arrived.
fn take_report(status: &OwnedFd) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
    match receive(status) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        report => report,
    }
}

fn receive(status: &OwnedFd) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
    match wire::receive(status, RecvFlags::DONTWAIT) {
        Ok(Some((message, fds))) => {
            let report = postcard::from_bytes(&message).map_err(io::Error::other)?;
            Ok(Some((report, fds.into_iter().next())))
        }
        // Reset means that the zygote died with a request unread.
        Ok(None) | Err(Errno::CONNRESET) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
