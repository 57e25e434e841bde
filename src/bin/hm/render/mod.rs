//! Shows a build: one reader of the event stream, on a thread of its own.
//!
//! In: an [`EventStream`] and what `hm` itself wants to say. Out: text on stdout or stderr. A terminal that stands still,
//! or a pipe that nobody reads, holds up this thread and nothing else; the build does not know it.

mod human;
mod json;
mod json_line;
mod out;
mod progress;
mod steps;
pub(crate) mod style;
pub(crate) mod text;

use std::{
    future::ready,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use futures_util::FutureExt;
use hm_exec::{BuildEvent, EventStream};
pub(crate) use out::Out;
use out::Stream;
use style::Style;
use tokio::{
    sync::{mpsc, oneshot},
    task::unconstrained,
};

/// How many events are shown in one go, where so many are there.
const BURST: usize = 256;

/// How to show a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Plain lines on stdout, each with its step's key in front
    Human,
    /// Running steps with their elapsed time, on stderr
    Progress,
    /// The event stream on stdout, one JSON object a line
    Json,
}

impl Format {
    /// `progress` where a person watches both streams, `human` where either goes somewhere else.
    pub(crate) fn default_here() -> Self {
        if io::stdout().is_terminal() && io::stderr().is_terminal() { Self::Progress } else { Self::Human }
    }

    fn renderer(self, show_logs: bool) -> Box<dyn Render> {
        match self {
            Self::Human => Box::new(human::Human::new(Stream::new(io::stdout()), Style::of(&io::stdout()))),
            Self::Progress => Box::new(progress::Progress::new(Style::of(&io::stderr()), show_logs)),
            Self::Json => Box::new(json::Json::new(Stream::new(io::stdout()))),
        }
    }
}

/// One way to show a build. Text may wait until [`flush`](Self::flush), which comes as soon as there is nothing else to do.
trait Render {
    /// Shows an event.
    fn event(&mut self, event: &BuildEvent);
    /// Shows what `hm` itself has to say.
    fn notice(&mut self, text: &str);
    /// Called every [`tick_interval`](Self::tick_interval), for what changes with time.
    fn tick(&mut self) {}
    /// How often to tick.
    fn tick_interval(&self) -> Duration {
        Duration::from_secs(3600)
    }
    /// Whether text waits.
    fn is_dirty(&self) -> bool;
    /// Writes what waits.
    fn flush(&mut self);
    /// Writes what waits, and tells whether everything could be written.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// A build being shown.
#[derive(Debug)]
pub(crate) struct Screen {
    // Unbounded: holds a text per signal that `hm` reacts to, and the library's few warnings.
    notices: mpsc::UnboundedSender<String>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl Screen {
    /// Starts to show `events`.
    pub(crate) fn open(events: EventStream, format: Format, show_logs: bool) -> io::Result<Self> {
        let (notices, inbox) = mpsc::unbounded_channel();
        let (ended, done) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("render".into()).spawn(move || {
            // Alone on its thread, it need not make way for anybody.
            let shown = runtime.block_on(unconstrained(show(events, inbox, format.renderer(show_logs))));
            // The receiver is gone where `hm` could not wait any longer.
            let _ = ended.send(shown);
        })?;
        crate::log::send_to(notices.clone());
        Ok(Self { notices, done })
    }

    /// Shows what `hm` itself has to say.
    pub(crate) fn notice(&self, text: impl Into<String>) {
        // A renderer that has ended has nothing left to disturb.
        if let Err(mpsc::error::SendError(text)) = self.notices.send(text.into()) {
            to_stderr(&text);
        }
    }

    /// Waits until every event was shown. Cancel-safe.
    pub(crate) async fn done(&mut self) -> io::Result<()> {
        (&mut self.done).await.unwrap_or_else(|_| Err(io::Error::other("the renderer broke off")))
    }

    /// Lets the renderer leave the terminal in order, but waits no longer than `limit`.
    pub(crate) fn close(mut self, limit: Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        // The process ends next, whether the renderer could show everything or not.
        let _ = runtime.map(|runtime| runtime.block_on(async { tokio::time::timeout(limit, self.done()).await }));
    }
}

/// Says something on stderr, past any renderer.
pub(crate) fn to_stderr(text: &str) {
    // Nobody is left to tell where stderr is gone.
    let _ = writeln!(io::stderr(), "{text}");
}

async fn show(
    mut events: EventStream,
    mut notices: mpsc::UnboundedReceiver<String>,
    mut renderer: Box<dyn Render>,
) -> io::Result<()> {
    let interval = renderer.tick_interval();
    let mut next_tick = Instant::now() + interval;
    loop {
        tokio::select! {
            biased;
            Some(text) = notices.recv() => renderer.notice(&text),
            event = events.next() => {
                let Some(event) = event else { break };
                renderer.event(&event);
                // To ask the clock and everybody else before each would cost as much as to show it.
                let there = std::iter::from_fn(|| events.next().now_or_never().flatten());
                there.take(BURST).for_each(|event| renderer.event(&event));
            }
            // Nothing has happened since: a good time to write, then to wait.
            () = ready(()), if renderer.is_dirty() => renderer.flush(),
            () = tokio::time::sleep_until(next_tick.into()) => {}
        }
        let now = Instant::now();
        if now >= next_tick {
            renderer.tick();
            next_tick = now + interval;
        }
    }
    // What is said from now on goes to stderr directly.
    notices.close();
    while let Some(text) = notices.recv().await {
        renderer.notice(&text);
    }
    renderer.finish()
}
