//! `hm run --watch`: runs the same command again after each edit of the source or the pipelines.
//!
//! Each run is a process of its own, with the same arguments, so that it renders the pipelines anew and
//! leaves nothing behind. The kernel tells that something happened in a directory. What happened follows from
//! two scans of the tree, which also have the rules of what is ignored. So nothing is missed if events are
//! lost.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{self, IsTerminal},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use hm_exec::{source::SourceScan, store::StoreError};
use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
    process::{Pid, Signal, kill_process},
};
use tempfile::NamedTempFile;
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::Args;
use crate::{
    exit_code,
    failure::{Failure, Outcome},
    pipelines::Source,
    reporter::{text, to_stderr},
    runtime::runtime,
    signals::{Interrupt, Interrupts},
    store,
};

/// The option, which the runs do not get.
const OPTION: &str = "--watch";

/// The variable with the name of a file, to which the edit is written that a run is stopped for. The run
/// prints it, because its live lines are in the way of other processes.
const EDIT: &str = "HM_WATCH_EDIT";

/// An edit is complete when nothing has happened for this time. Editors and git write several files.
const QUIET: Duration = Duration::from_millis(100);

/// The longest time that a run waits for quiet.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// The time between two scans, at least. A step may write many ignored files.
const BETWEEN_SCANS: Duration = Duration::from_millis(300);

/// What is watched: the source, and the directory of the pipelines.
struct Watched {
    dirs: Vec<PathBuf>,
    /// What steps and users write to `.hm`.
    results: Option<PathBuf>,
    store: PathBuf,
}

/// Returns the edit for which the watching process stops this run.
pub(super) fn edit() -> Option<String> {
    let edit = fs::read_to_string(env::var_os(EDIT)?).ok()?;
    (!edit.is_empty()).then(|| text::clean(&edit))
}

/// Runs until the user interrupts. The code is that of an interrupt.
pub(super) fn run(args: &Args) -> Outcome<ExitCode> {
    if args.source.file.as_deref() == Some(Path::new("-")) {
        return Err(Failure::input("`--watch` cannot read the pipeline from stdin again").hint("pass `-f FILE`"));
    }
    let source = Source::of(&args.source)?;
    let results = source.hm_dir.as_ref().map(|dir| dir.join("out"));
    let mut dirs = vec![source.dir];
    dirs.extend(source.hm_dir);
    if let Some(file) = &args.source.file
        && let Some(dir) = file.canonicalize().ok().as_deref().and_then(Path::parent)
        && (dir.file_name() == Some(OsStr::new(".hm")) || !dir.starts_with(&dirs[0]))
    {
        // A source is watched without its `.hm`.
        dirs.push(dir.to_owned());
    }
    let watched = Watched { dirs, results, store: store::dir()? };
    let program =
        env::current_exe().map_err(|error| Failure::infrastructure("failed to find the program hm").because(error))?;
    let arguments: Vec<OsString> = env::args_os().skip(1).filter(|argument| argument != OPTION).collect();
    // Without the file, a run that is stopped does not say why.
    let edit = NamedTempFile::new().ok();
    let edit = edit.as_ref().map(NamedTempFile::path);
    runtime()?.block_on(async {
        let mut interrupts = Interrupts::listen()?;
        let mut edits = Edits::new(watched)?;
        loop {
            tell(edit, "");
            let mut command = Command::new(&program);
            command.args(&arguments).envs(edit.map(|edit| (EDIT, edit)));
            let started = command.kill_on_drop(true).spawn();
            let child = started.map_err(|error| Failure::infrastructure("failed to start hm again").because(error))?;
            let edited = match one_run(child, &mut edits, &mut interrupts, edit).await? {
                RunEnd::Interrupted => return Ok(ExitCode::from(exit_code::INTERRUPTED)),
                RunEnd::Outdated(edited) => edited,
                RunEnd::Ended => {
                    to_stderr("watching for edits; Ctrl-C ends");
                    tokio::select! {
                        kind = interrupts.next_kind() => {
                            // The terminal has echoed the key.
                            if matches!(kind, Interrupt::Key) && io::stderr().is_terminal() {
                                to_stderr("");
                            }
                            return Ok(ExitCode::from(exit_code::INTERRUPTED));
                        }
                        edited = edits.next() => edited?,
                    }
                }
            };
            to_stderr(&edits.describe(&edited));
        }
    })
}

/// How a run ended.
enum RunEnd {
    Ended,
    /// The source was edited before the end, and the run was stopped.
    Outdated(Vec<PathBuf>),
    Interrupted,
}

/// Writes the edit to the file for the run.
fn tell(file: Option<&Path>, edit: &str) {
    if let Some(file) = file
        && let Err(error) = fs::write(file, edit)
    {
        tracing::debug!(%error, "the run does not get the edit");
    }
}

/// Waits for a run. Stops it if the source is edited or the user interrupts.
async fn one_run(
    mut child: Child,
    edits: &mut Edits,
    interrupts: &mut Interrupts,
    file: Option<&Path>,
) -> Outcome<RunEnd> {
    let waited = |error| Failure::infrastructure("failed to wait for hm").because(error);
    let end = tokio::select! {
        biased;
        kind = interrupts.next_kind() => {
            forward(&child, kind);
            RunEnd::Interrupted
        }
        ended = child.wait() => {
            ended.map_err(waited)?;
            return Ok(RunEnd::Ended);
        }
        edited = edits.next() => {
            let edited = edited?;
            tell(file, &edits.describe(&edited));
            signal(&child, Signal::TERM);
            RunEnd::Outdated(edited)
        }
    };
    loop {
        tokio::select! {
            ended = child.wait() => {
                ended.map_err(waited)?;
                return Ok(end);
            }
            kind = interrupts.next_kind() => {
                forward(&child, kind);
                if matches!(end, RunEnd::Outdated(_)) {
                    child.wait().await.map_err(waited)?;
                    return Ok(RunEnd::Interrupted);
                }
            }
        }
    }
}

/// Passes an interrupt on to a run. A terminal has sent its own to both.
fn forward(child: &Child, kind: Interrupt) {
    match kind {
        Interrupt::Key | Interrupt::Hangup if io::stdin().is_terminal() => {}
        Interrupt::Key => signal(child, Signal::INT),
        Interrupt::Request | Interrupt::Hangup => signal(child, Signal::TERM),
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    // A process that is not waited for keeps its id, so this cannot reach another one.
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::debug!(%error, "the run could not be signalled");
    }
}

fn unreadable(error: StoreError) -> Failure {
    Failure::infrastructure("failed to read the source directory").because(error)
}

/// Notices edits.
struct Edits {
    watched: Watched,
    events: AsyncFd<OwnedFd>,
    /// What there was when the last run began.
    seen: SourceScan,
    last_scan: Instant,
    /// Whether something has happened since the last scan.
    is_stale: bool,
}

impl Edits {
    fn new(watched: Watched) -> Outcome<Self> {
        let failed = |error: io::Error| Failure::infrastructure("failed to watch files").because(error);
        let events =
            inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        #[allow(deprecated, reason = "tokio's successor is unsafe, for descriptors that change; an `OwnedFd` does not")]
        let events = AsyncFd::with_interest(events, Interest::READABLE).map_err(failed)?;
        let mut edits =
            Self { watched, events, seen: SourceScan::default(), last_scan: Instant::now(), is_stale: false };
        edits.seen = edits.scan().map_err(unreadable)?;
        edits.watch()?;
        // What was written before it was watched.
        edits.seen = edits.scan().map_err(unreadable)?;
        edits.watch()?;
        Ok(edits)
    }

    /// Waits for an edit. Returns the paths.
    ///
    /// # Cancel safety
    /// If the future is dropped, the next call returns the same edits.
    async fn next(&mut self) -> Outcome<Vec<PathBuf>> {
        loop {
            if !self.is_stale {
                self.happening().await?;
                self.is_stale = true;
            }
            let until = Instant::now() + MAX_WAIT;
            while Instant::now() < until
                && let Ok(more) = timeout(QUIET, self.happening()).await
            {
                more?;
            }
            let pause = (self.last_scan + BETWEEN_SCANS).saturating_duration_since(Instant::now());
            sleep(pause).await;
            self.last_scan = Instant::now();
            let scan = match self.scan() {
                // It changes at this moment.
                Err(StoreError::SourceChanged { .. }) => continue,
                scan => scan.map_err(unreadable)?,
            };
            self.is_stale = false;
            let mut edited = scan.edits_since(&self.seen);
            edited.retain(|path| self.watched.results.as_ref().is_none_or(|results| !path.starts_with(results)));
            if !edited.is_empty() {
                self.seen = scan;
                self.watch()?;
                return Ok(edited);
            }
        }
    }

    /// Waits until something happens in a watched directory, and forgets the events.
    async fn happening(&self) -> Outcome<()> {
        let failed = |error: io::Error| Failure::infrastructure("failed to watch files").because(error);
        let mut buffer = [0; 16 << 10];
        let mut ready = self.events.readable().await.map_err(failed)?;
        loop {
            match rustix::io::read(self.events.get_ref(), &mut buffer) {
                Ok(_) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(failed(error.into())),
            }
        }
        ready.clear_ready();
        Ok(())
    }

    fn scan(&self) -> Result<SourceScan, StoreError> {
        let mut all = SourceScan::default();
        for dir in &self.watched.dirs {
            all.extend(SourceScan::of(dir, &self.watched.store)?);
        }
        Ok(all)
    }

    /// Watches all directories. Those that are watched already stay so.
    fn watch(&self) -> Outcome<()> {
        let what = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::MOVE
            | WatchFlags::ONLYDIR;
        for dir in self.seen.dirs() {
            match inotify::add_watch(self.events.get_ref(), dir, what) {
                // It was removed after the scan, which is an event of the directory above it.
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => {
                    let failure = Failure::infrastructure(format_args!("failed to watch {}", dir.display()));
                    let failure = failure.because(io::Error::from(error));
                    return Err(match error {
                        Errno::NOSPC => failure.hint("raise the limit: sysctl fs.inotify.max_user_watches=524288"),
                        _ => failure,
                    });
                }
            }
        }
        Ok(())
    }

    fn describe(&self, edited: &[PathBuf]) -> String {
        let Some(first) = edited.first() else { return "running again".into() };
        let dir = self.watched.dirs.iter().find_map(|dir| first.strip_prefix(dir.parent()?).ok());
        let name = self.watched.dirs.first().and_then(|dir| first.strip_prefix(dir).ok()).or(dir).unwrap_or(first);
        let name = text::clean(&name.to_string_lossy());
        match edited.len() {
            1 => format!("{name} changed"),
            count => format!("{name} and {} changed", text::count(count - 1, "other")),
        }
    }
}
