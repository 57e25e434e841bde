//! The output of a service: lines of the step's log, with the service's name before each.

use std::{borrow::Cow, collections::VecDeque, fmt, time::Duration};

use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    awake,
    event::{EventBus, Held},
    model::{Activity, StdStream},
    sync::Mutex,
};

/// The number of lines that are repeated when a service has failed.
const LAST_LINES: usize = 10;

/// How much of a line is repeated, in bytes.
const LAST_LINE_BYTES: usize = 1000;

/// A longer line is cut into pieces.
const MAX_LINE_BYTES: usize = 64 << 10;

/// How much of a service's output is recorded, in bytes.
const MAX_LOG_BYTES: usize = 8 << 20;

/// The pause after each piece of output that is not recorded.
const PAUSE: Duration = Duration::from_millis(10);

/// The output of one service.
pub(in crate::runner) struct ServiceOutput<'a> {
    name: &'a str,
    bus: &'a EventBus,
    step_id: Uuid,
    state: Mutex<State>,
    has_started: Notify,
    is_ready: Notify,
}

#[derive(Default)]
struct State {
    mark: Option<Mark>,
    streams: [OpenLine; 2],
    last: VecDeque<Vec<u8>>,
    recorded: usize,
}

/// The unfinished line of a stream.
#[derive(Default)]
struct OpenLine {
    held: Held,
    line: Vec<u8>,
}

impl fmt::Debug for ServiceOutput<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceOutput").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<'a> ServiceOutput<'a> {
    /// Creates the output of a service that prints `mark` when it is ready, or that is ready when it has
    /// [started](Self::started).
    pub(in crate::runner) fn new(name: &'a str, mark: Option<&str>, bus: &'a EventBus, step_id: Uuid) -> Self {
        let state = State { mark: mark.map(Mark::new), ..State::default() };
        let is_ready = Notify::new();
        if mark.is_none() {
            is_ready.notify_one();
        }
        Self { name, bus, step_id, state: Mutex::new(state), has_started: Notify::new(), is_ready }
    }

    pub(in crate::runner) fn name(&self) -> &'a str {
        self.name
    }

    /// Notes that the service has started. The time in which it has to become ready counts from here.
    pub(in crate::runner) fn started(&self) {
        self.has_started.notify_one();
    }

    /// Waits until the service has started, and reports that. Completes once.
    pub(super) async fn until_started(&self) {
        self.starting(self.has_started.notified()).await;
    }

    /// Waits until the service is ready, and reports that. Completes once.
    pub(super) async fn ready(&self) {
        self.starting(self.is_ready.notified()).await;
    }

    async fn starting(&self, work: impl Future<Output = ()>) {
        let activity = || Some((Activity::StartingServices, None));
        self.bus.reporting(Some(self.step_id), activity, work).await;
    }

    /// Returns the last lines.
    pub(super) fn last(&self) -> Vec<String> {
        self.state.lock().last.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    /// Takes a piece of output. While this is pending, the service blocks once its pipe is full.
    ///
    /// # Cancel safety
    /// The piece is recorded before this waits.
    pub(in crate::runner) async fn write(&self, stream: StdStream, bytes: &[u8]) {
        if self.take(stream, bytes, false) {
            awake::sleep(PAUSE).await;
        }
    }

    /// Records unfinished lines. No more output follows.
    pub(in crate::runner) fn finish(&self) {
        for stream in [StdStream::Stdout, StdStream::Stderr] {
            self.take(stream, b"", true);
        }
    }

    /// Records the lines that are finished, and with `is_over` the rest. Returns whether nothing more will be
    /// recorded.
    fn take(&self, stream: StdStream, bytes: &[u8], is_over: bool) -> bool {
        let mut state = self.state.lock();
        let State { mark, streams, last, recorded } = &mut *state;
        let OpenLine { held, line } = &mut streams[usize::from(stream == StdStream::Stderr)];
        // First, because the mark may be in the middle of a secret, which the service prints.
        let bytes = match mark {
            Some(open) if stream == StdStream::Stdout => {
                let (bytes, is_found) = open.remove(bytes, is_over);
                if is_found {
                    *mark = None;
                    self.is_ready.notify_one();
                }
                Cow::Owned(bytes)
            }
            _ => Cow::Borrowed(bytes),
        };
        // Before it is cut: a piece of a secret is not recognized.
        let bytes = self.bus.masked(held, &bytes, is_over);
        let mut lines = Lines { name: self.name, last, recorded, out: Vec::new() };
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(piece);
            if let Some(whole) = line.strip_suffix(b"\n") {
                lines.add(whole);
                line.clear();
            }
            while line.len() >= MAX_LINE_BYTES {
                lines.add(&line[..MAX_LINE_BYTES]);
                line.drain(..MAX_LINE_BYTES);
            }
        }
        if is_over && !line.is_empty() {
            lines.add(line);
            line.clear();
        }
        let out = lines.out;
        let is_full = state.recorded > MAX_LOG_BYTES;
        // With the lock, so that the lines of both streams keep their order.
        if !out.is_empty() {
            self.bus.lines_beside(self.step_id, stream, &out);
        }
        is_full
    }
}

/// The line by which a service tells that it is ready.
struct Mark {
    line: Vec<u8>,
    /// The end of the output so far, if the mark may begin there.
    held: Vec<u8>,
}

impl Mark {
    fn new(mark: &str) -> Self {
        Self { line: format!("{mark}\n").into_bytes(), held: Vec::new() }
    }

    /// Returns the next bytes of the output without the mark, and whether it was among them. Holds back what
    /// may become the mark, unless the output `is_over`.
    fn remove(&mut self, bytes: &[u8], is_over: bool) -> (Vec<u8>, bool) {
        let mut text = std::mem::take(&mut self.held);
        text.extend_from_slice(bytes);
        let is_mark = |window: &[u8]| window[0] == self.line[0] && *window == *self.line;
        if let Some(at) = text.windows(self.line.len()).position(is_mark) {
            text.drain(at..at + self.line.len());
            return (text, true);
        }
        let open = (1..self.line.len()).rev().find(|&len| text.ends_with(&self.line[..len]));
        if let Some(open) = open.filter(|_| !is_over) {
            self.held = text.split_off(text.len() - open);
        }
        (text, false)
    }
}

/// Finished lines on their way to the log.
struct Lines<'s> {
    name: &'s str,
    last: &'s mut VecDeque<Vec<u8>>,
    recorded: &'s mut usize,
    out: Vec<u8>,
}

impl Lines<'_> {
    fn add(&mut self, line: &[u8]) {
        let mut kept = if self.last.len() < LAST_LINES { None } else { self.last.pop_front() }.unwrap_or_default();
        kept.clear();
        kept.extend_from_slice(&line[..line.len().min(LAST_LINE_BYTES)]);
        self.last.push_back(kept);
        if *self.recorded > MAX_LOG_BYTES {
            return;
        }
        *self.recorded += self.name.len() + line.len() + "[] \n".len();
        if *self.recorded > MAX_LOG_BYTES {
            let limit = MAX_LOG_BYTES >> 20;
            self.push(format!("(more than {limit} MiB: the rest of its output is not recorded)").as_bytes());
            return;
        }
        self.push(line);
    }

    fn push(&mut self, line: &[u8]) {
        self.out.extend_from_slice(format!("[{}] ", self.name).as_bytes());
        self.out.extend_from_slice(line);
        self.out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_found_wherever_it_is_cut_and_leaves_the_rest_as_it_is() {
        let text = b"hunr: readr: ready\nter2";
        for cut in 0..=text.len() {
            let mut mark = Mark::new("r: ready");
            let (mut out, mut found) = mark.remove(&text[..cut], false);
            let rest = if found { (text[cut..].to_vec(), true) } else { mark.remove(&text[cut..], true) };
            out.extend_from_slice(&rest.0);
            found |= rest.1;
            assert!(found && out == b"hunr: readter2", "cut at {cut}: {}", String::from_utf8_lossy(&out));
        }
        let mut mark = Mark::new("ready");
        assert_eq!(mark.remove(b"a rea", false), (b"a ".to_vec(), false));
        assert_eq!(mark.remove(b"", true), (b"rea".to_vec(), false), "nothing is lost at the end");
    }
}
