//! Shows a build: one reader of the event stream, on a thread of its own.
//!
//! Input: an [`EventStream`] and the notices of `hm` itself. Output: text on stdout or stderr. A terminal
//! that is stopped, or a pipe that is not read, blocks only this thread; the build does not notice it.

mod activities;
mod ci;
mod human;
mod json;
mod json_line;
mod last_screen;
mod live_lines;
mod plan_view;
mod progress;
mod published;
mod reports;
mod steps;
pub(crate) mod style;
mod tail;
pub(crate) mod text;
mod writer;

use std::{
    future::ready,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ci::Service;
use clap::ValueEnum;
use futures_util::FutureExt;
use hm_exec::{
    BuildEvent, EventStream, Plan, RunRequest,
    event::{EventBatch, LogLines},
    plan::BoundPlan,
};
use indicatif::{ProgressBar, ProgressStyle};
use last_screen::Canvas;
use live_lines::BeginAnew;
use plan_view::PlanView;
use published::PlanFacts;
use rustix::{process::Signal, termios::tcgetwinsize};
use schemars::JsonSchema;
use serde::Deserialize;
use style::Style;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    task::unconstrained,
};
pub(crate) use writer::BufferedWriter;
use writer::StdWriter;

/// The maximum number of events, or batches of lines, that are shown in one go, if so many are available.
const BURST: usize = 256;

/// How to show a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    /// Plain lines on stdout, each prefixed with its step's key
    Human,
    /// Nothing but what failed, on stdout
    Quiet,
    /// Running steps with their elapsed time, on stderr
    Progress,
    /// Groups of lines, one for each step that has ended, with annotations, for GitHub Actions
    Github,
    /// Sections of lines, one for each step that has ended, for GitLab CI
    Gitlab,
    /// Events on stdout, one JSON object per line, as the ecosystem's readers know them
    Json,
    /// All events of hm, and everything about them; a superset of what `json` shows
    JsonFull,
}

impl Format {
    /// Returns the format that the user prefers, unless it suits only programs and stdout is a terminal, or
    /// suits only terminals and there is none. By default, `progress` if both streams are terminals that can
    /// redraw lines, else that of the CI service in whose job this runs, else `human`.
    pub(crate) fn preferred_here(preferred: Option<Self>) -> Self {
        let is_shown = io::stdout().is_terminal();
        let is_true = |name| std::env::var_os(name).is_some_and(|value| value == "true");
        match preferred {
            Some(format @ (Self::Human | Self::Quiet | Self::Github | Self::Gitlab)) => format,
            Some(format) if format.is_json() && !is_shown => format,
            _ if is_shown && io::stderr().is_terminal() && !style::is_dumb() => Self::Progress,
            _ if is_true("GITHUB_ACTIONS") => Self::Github,
            _ if is_true("GITLAB_CI") => Self::Gitlab,
            _ => Self::Human,
        }
    }

    /// Returns whether the output for people is on stdout.
    pub(crate) fn is_on_stdout(self) -> bool {
        matches!(self, Self::Human | Self::Quiet | Self::Github | Self::Gitlab)
    }

    /// Returns whether it shows what a run waits for.
    pub(crate) fn shows_progress(self) -> bool {
        matches!(self, Self::Progress | Self::JsonFull)
    }

    /// Returns whether the output is for programs.
    pub(crate) fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::JsonFull)
    }
}

/// What to show of a build, and how.
#[derive(Debug)]
pub(crate) struct View {
    format: Format,
    /// Whether to show all output, also in `progress`.
    show_logs: bool,
    /// For `json` only.
    facts: Option<PlanFacts>,
    /// For people only.
    plan: PlanView,
}

impl View {
    /// Returns the view of a build on this machine.
    pub(crate) fn new(format: Format, show_logs: bool, plan: &BoundPlan, request: &RunRequest) -> Self {
        let facts = (format == Format::Json).then(|| PlanFacts::of(plan));
        let plan = if format.is_json() { PlanView::default() } else { PlanView::of(plan, request) };
        Self { format, show_logs, facts, plan }
    }

    /// Returns the view of a build on another machine, of which at most the plan is known.
    pub(crate) fn observed(format: Format, show_logs: bool, plan: Option<&Plan>) -> Self {
        let facts = (format == Format::Json).then(PlanFacts::observed);
        Self { format, show_logs, facts, plan: plan.map(PlanView::observed).unwrap_or_default() }
    }

    fn reporter(self) -> Box<dyn Reporter> {
        match self.format {
            Format::Human | Format::Quiet => {
                let canvas =
                    Canvas { style: Style::of(&io::stdout()), columns: terminal_size(io::stdout()).map(|size| size.1) };
                let human = human::Human::new(StdWriter::new(io::stdout()), canvas, self.plan);
                Box::new(if self.format == Format::Quiet { human.quiet() } else { human })
            }
            Format::Github | Format::Gitlab => {
                let service = if self.format == Format::Github { Service::GitHub } else { Service::GitLab };
                // Both services show colours.
                let canvas = Canvas { style: Style::or(true), columns: None };
                Box::new(ci::Ci::new(service, StdWriter::new(io::stdout()), canvas, self.plan))
            }
            Format::Progress => Box::new(progress::Progress::new(Style::of(&io::stderr()), self.show_logs, self.plan)),
            Format::Json | Format::JsonFull => Box::new(json::Json::new(StdWriter::new(io::stdout()), self.facts)),
        }
    }
}

/// Returns the numbers of rows and columns of a terminal. Returns `None` if the stream is none, or if its
/// size is unknown.
pub(crate) fn terminal_size(stream: impl AsFd) -> Option<(usize, usize)> {
    let size = tcgetwinsize(stream).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then(|| (size.ws_row.into(), size.ws_col.into()))
}

/// Shows on a terminal that `hm` waits for something, until it is dropped. Shows nothing elsewhere.
#[derive(Debug)]
pub(crate) struct Waiting(Option<ProgressBar>);

impl Waiting {
    pub(crate) fn on(what: &'static str) -> Self {
        if !(io::stdout().is_terminal() && io::stderr().is_terminal()) {
            return Self(None);
        }
        let spinner = ProgressBar::with_draw_target(None, live_lines::draw_target(&BeginAnew::default()));
        spinner.set_style(live_lines::with_ticks(ProgressStyle::default_spinner()));
        spinner.set_message(what);
        spinner.enable_steady_tick(Duration::from_millis(80));
        Self(Some(spinner))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(spinner) = &self.0 {
            spinner.finish_and_clear();
        }
    }
}

/// A way to show a build. Text may be buffered until [`flush`](Self::flush), which is called as soon as there
/// is nothing else to do.
trait Reporter {
    /// Shows an event.
    fn event(&mut self, event: &BuildEvent);
    /// Shows lines of output.
    fn lines(&mut self, lines: &LogLines<'_>);
    /// Shows a notice of `hm` itself.
    fn notice(&mut self, text: &str);
    /// Called every [`tick_interval`](Self::tick_interval), for what changes with time.
    fn tick(&mut self) {}
    /// Returns how often to tick.
    fn tick_interval(&self) -> Duration {
        Duration::from_secs(3600)
    }
    /// Returns whether text is buffered.
    fn is_dirty(&self) -> bool;
    /// Writes the buffered text.
    fn flush(&mut self);
    /// Called when the process continues after it was stopped, and the shell has used the terminal.
    fn continued(&mut self) {}
    /// Shows the end of a build whose end is not among its events, because the user killed it.
    fn killed(&mut self) {}
    /// Writes the buffered text. Returns an error if not everything could be written.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// A build that is being shown.
#[derive(Debug)]
pub(crate) struct Screen {
    // Unbounded: holds one text per signal that `hm` handles, and the library's few warnings.
    notices: mpsc::UnboundedSender<String>,
    is_killed: Arc<AtomicBool>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl Screen {
    /// Starts to show `events`.
    pub(crate) fn open(events: EventStream, view: View) -> io::Result<Self> {
        let (notices, inbox) = mpsc::unbounded_channel();
        let (ended, done) = oneshot::channel();
        let is_killed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_killed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("reporter".into()).spawn(move || {
            // It is alone on its thread, so it need not yield to other tasks.
            let shown = runtime.block_on(unconstrained(show(events, inbox, view.reporter(), &flag)));
            // The receiver has been dropped if `hm` could not wait any longer.
            let _ = ended.send(shown);
        })?;
        crate::logging::send_to(notices.clone());
        Ok(Self { notices, is_killed, done })
    }

    /// Shows a notice of `hm` itself.
    pub(crate) fn notice(&self, text: impl Into<String>) {
        // After the reporter has ended, direct output disturbs nothing.
        if let Err(mpsc::error::SendError(text)) = self.notices.send(text.into()) {
            to_stderr(&text);
        }
    }

    /// Shows a notice. The build is killed next, so its end will not be among its events.
    pub(crate) fn killing(&self, text: impl Into<String>) {
        self.is_killed.store(true, Ordering::Release);
        self.notice(text);
    }

    /// Waits until every event has been shown. Cancel-safe.
    pub(crate) async fn done(&mut self) -> io::Result<()> {
        (&mut self.done).await.unwrap_or_else(|_| Err(io::Error::other("the output thread panicked")))
    }

    /// Lets the reporter restore the terminal, but waits no longer than `limit`.
    pub(crate) fn close(mut self, limit: Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        // The process ends next, whether or not the reporter could show everything.
        let _ = runtime.map(|runtime| runtime.block_on(async { tokio::time::timeout(limit, self.done()).await }));
    }
}

/// Prints a line on stderr, bypassing any reporter.
pub(crate) fn to_stderr(text: &str) {
    // Best effort: if stderr is closed, there is nowhere to report it.
    let _ = writeln!(io::stderr(), "{text}");
}

fn show_batch(reporter: &mut dyn Reporter, batch: &EventBatch<'_>) {
    match batch {
        EventBatch::Event(event) => reporter.event(event),
        EventBatch::Lines(lines) => reporter.lines(lines),
        _ => {}
    }
}

async fn show(
    mut events: EventStream,
    mut notices: mpsc::UnboundedReceiver<String>,
    mut reporter: Box<dyn Reporter>,
    is_killed: &AtomicBool,
) -> io::Result<()> {
    let mut continued = signal(SignalKind::from_raw(Signal::CONT.as_raw()))?;
    let interval = reporter.tick_interval();
    let mut next_tick = Instant::now() + interval;
    loop {
        tokio::select! {
            biased;
            Some(()) = continued.recv() => reporter.continued(),
            Some(text) = notices.recv() => reporter.notice(&text),
            batch = events.next_batch() => {
                let Some(batch) = batch else { break };
                show_batch(&mut *reporter, &batch);
                // Polling the clock and the other branches before each event would cost as much as showing
                // it.
                for _ in 0..BURST {
                    let Some(Some(batch)) = events.next_batch().now_or_never() else { break };
                    show_batch(&mut *reporter, &batch);
                }
            }
            // Nothing has happened since, so this is a good time to write before waiting.
            () = ready(()), if reporter.is_dirty() => reporter.flush(),
            () = tokio::time::sleep_until(next_tick.into()) => {}
        }
        let now = Instant::now();
        if now >= next_tick {
            reporter.tick();
            next_tick = now + interval;
        }
    }
    // From now on, notices go to stderr directly.
    notices.close();
    while let Some(text) = notices.recv().await {
        reporter.notice(&text);
    }
    if is_killed.load(Ordering::Acquire) {
        reporter.killed();
    }
    reporter.finish()
}
