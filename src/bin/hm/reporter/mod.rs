//! Shows a build: one reader of the event stream, on a thread of its own.
//!
//! Input: an [`EventStream`] and the notices of `hm` itself. Output: text on stdout or stderr. A terminal
//! that is stopped, or a pipe that is not read, blocks only this thread; the build does not notice it.

mod human;
mod json;
mod json_line;
mod progress;
mod published;
pub(crate) mod style;
mod summary;
pub(crate) mod text;
mod writer;

use std::{
    future::ready,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use futures_util::FutureExt;
use hm_exec::{
    BuildEvent, EventStream,
    event::{EventBatch, LogLines},
    plan::BoundPlan,
};
use published::PlanFacts;
use schemars::JsonSchema;
use serde::Deserialize;
use style::Style;
use tokio::{
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
    /// Running steps with their elapsed time, on stderr
    Progress,
    /// Events on stdout, one JSON object per line, as the ecosystem's readers know them
    Json,
    /// All events of hm, and everything about them; a superset of what `json` shows
    JsonFull,
}

impl Format {
    /// Returns the format that the user prefers, unless it suits only programs and stdout is a terminal, or
    /// suits only terminals and there is none. By default, `progress` if both streams are terminals, else
    /// `human`.
    pub(crate) fn preferred_here(preferred: Option<Self>) -> Self {
        let is_shown = io::stdout().is_terminal();
        match preferred {
            Some(Self::Human) => Self::Human,
            Some(format) if format.is_json() && !is_shown => format,
            _ if is_shown && io::stderr().is_terminal() => Self::Progress,
            _ => Self::Human,
        }
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
}

impl View {
    pub(crate) fn new(format: Format, show_logs: bool, plan: &BoundPlan) -> Self {
        Self { format, show_logs, facts: (format == Format::Json).then(|| PlanFacts::of(plan)) }
    }

    /// Returns the view of a build whose plan is not known.
    pub(crate) fn observed(format: Format, show_logs: bool) -> Self {
        Self { format, show_logs, facts: (format == Format::Json).then(PlanFacts::observed) }
    }

    fn reporter(self) -> Box<dyn Reporter> {
        match self.format {
            Format::Human => Box::new(human::Human::new(StdWriter::new(io::stdout()), Style::of(&io::stdout()))),
            Format::Progress => Box::new(progress::Progress::new(Style::of(&io::stderr()), self.show_logs)),
            Format::Json | Format::JsonFull => Box::new(json::Json::new(StdWriter::new(io::stdout()), self.facts)),
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
    /// Writes the buffered text. Returns an error if not everything could be written.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// A build that is being shown.
#[derive(Debug)]
pub(crate) struct Screen {
    // Unbounded: holds one text per signal that `hm` handles, and the library's few warnings.
    notices: mpsc::UnboundedSender<String>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl Screen {
    /// Starts to show `events`.
    pub(crate) fn open(events: EventStream, view: View) -> io::Result<Self> {
        let (notices, inbox) = mpsc::unbounded_channel();
        let (ended, done) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("reporter".into()).spawn(move || {
            // It is alone on its thread, so it need not yield to other tasks.
            let shown = runtime.block_on(unconstrained(show(events, inbox, view.reporter())));
            // The receiver has been dropped if `hm` could not wait any longer.
            let _ = ended.send(shown);
        })?;
        crate::logging::send_to(notices.clone());
        Ok(Self { notices, done })
    }

    /// Shows a notice of `hm` itself.
    pub(crate) fn notice(&self, text: impl Into<String>) {
        // After the reporter has ended, direct output disturbs nothing.
        if let Err(mpsc::error::SendError(text)) = self.notices.send(text.into()) {
            to_stderr(&text);
        }
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
) -> io::Result<()> {
    let interval = reporter.tick_interval();
    let mut next_tick = Instant::now() + interval;
    loop {
        tokio::select! {
            biased;
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
    reporter.finish()
}
