//! Reads a log stream: server-sent events, and the parts of output in them.
//!
//! A line is searched for its end once, however many pieces it arrives in: the history of a long log is one
//! line.

use chrono::{DateTime, Utc};
use reqwest::Response;
use serde::Deserialize;

use super::refusal::cause;
use crate::model::StdStream;

/// The maximum size of one event, in bytes.
const MAX_EVENT_BYTES: usize = 256 << 20;

/// A part of a job's output.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Chunk {
    /// The position in the job's output.
    pub(super) seq: i64,
    stream_kind: i64,
    pub(super) content: String,
    ts: Option<i64>,
}

impl Chunk {
    /// Returns the stream that it belongs to. Messages of the service itself count as stderr.
    pub(super) fn stream(&self) -> StdStream {
        if self.stream_kind == 0 { StdStream::Stdout } else { StdStream::Stderr }
    }

    /// Returns the time when it was written, if the service knows it.
    pub(super) fn at(&self) -> Option<DateTime<Utc>> {
        self.ts.map(DateTime::from_timestamp_nanos)
    }
}

/// The content of a log stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LogEvent {
    /// Output: everything until now, or a new part.
    Output(Vec<Chunk>),
    /// The output is complete.
    Done,
    /// Nothing, but the connection works.
    Alive,
}

/// The reason why a log stream ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LogBreak {
    /// The connection broke.
    Connection(String),
    /// An event is not understood.
    Malformed(String),
}

/// An open log.
#[derive(Debug)]
pub(super) struct LogStream {
    answer: Response,
    parser: Parser,
}

impl LogStream {
    pub(super) fn new(answer: Response) -> Self {
        Self { answer, parser: Parser::default() }
    }

    /// Returns the next event.
    ///
    /// # Cancel safety
    /// If this is cancelled, no event is lost.
    pub(super) async fn next(&mut self) -> Result<LogEvent, LogBreak> {
        if let Some(event) = self.parser.next_event() {
            return decode(&event);
        }
        match self.answer.chunk().await {
            Ok(Some(bytes)) => {
                self.parser.push(&bytes)?;
                self.parser.next_event().map_or(Ok(LogEvent::Alive), |event| decode(&event))
            }
            Ok(None) => Err(LogBreak::Connection("the stream ended early".into())),
            Err(error) => Err(LogBreak::Connection(cause(&error))),
        }
    }
}

/// A server-sent event.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    name: String,
    data: Vec<u8>,
}

fn decode(event: &Event) -> Result<LogEvent, LogBreak> {
    #[derive(Deserialize)]
    struct History {
        chunks: Vec<Chunk>,
    }
    // The error's text can have output.
    let malformed = |error: serde_json::Error| {
        LogBreak::Malformed(format!("the event `{}` is malformed at column {}", event.name, error.column()))
    };
    match event.name.as_str() {
        "history" => serde_json::from_slice(&event.data).map(|History { chunks }| LogEvent::Output(chunks)),
        "chunk" => serde_json::from_slice(&event.data).map(|chunk| LogEvent::Output(vec![chunk])),
        "done" => Ok(LogEvent::Done),
        _ => Ok(LogEvent::Alive),
    }
    .map_err(malformed)
}

/// Splits a stream into events.
#[derive(Debug, Default)]
struct Parser {
    buffer: Vec<u8>,
    /// The bytes of `buffer` that belong to lines that were read.
    read: usize,
    /// The bytes of `buffer` that have no other end of a line.
    searched: usize,
    event: Event,
    has_data: bool,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) -> Result<(), LogBreak> {
        if self.buffer.len() + self.event.data.len() + bytes.len() > MAX_EVENT_BYTES {
            return Err(LogBreak::Malformed("an event is too long".into()));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event> {
        while let Some(end) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
            let end = self.searched + end;
            let line = self.read..end;
            (self.read, self.searched) = (end + 1, end + 1);
            if let Some(event) = self.line(line) {
                return Some(event);
            }
        }
        self.buffer.drain(..self.read);
        self.read = 0;
        self.searched = self.buffer.len();
        None
    }

    /// Handles a line. Returns the event that it ends.
    fn line(&mut self, line: std::ops::Range<usize>) -> Option<Event> {
        let line = &self.buffer[line];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => self.event.name = String::from_utf8_lossy(value).into_owned(),
            b"data" => {
                if self.has_data {
                    self.event.data.push(b'\n');
                }
                self.has_data = true;
                self.event.data.extend_from_slice(value);
            }
            // Comments, which keep the connection alive, and fields that logs do not need.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<Event> {
        let mut parser = Parser::default();
        let mut all = Vec::new();
        for piece in pieces {
            parser.push(piece).unwrap();
            all.extend(std::iter::from_fn(|| parser.next_event()));
        }
        all
    }

    #[test]
    fn events_are_the_same_wherever_the_stream_is_cut() {
        let text = ": hello\n\nevent: chunk\nid: 7\ndata: {\"a\":\ndata:  \"\u{e4}\"}\r\n\r\nevent: x\n\ndata\n\nevent:done\ndata:\n\n";
        let whole = events(&[text.as_bytes()]);
        let parts: Vec<_> = whole.iter().map(|event| (&*event.name, str::from_utf8(&event.data).unwrap())).collect();
        assert_eq!(parts, [("chunk", "{\"a\":\n \"\u{e4}\"}"), ("", ""), ("done", "")]);
        for cut in 0..text.len() {
            assert_eq!(events(&[&text.as_bytes()[..cut], &text.as_bytes()[cut..]]), whole, "{cut}");
        }
        let bytes: Vec<_> = text.as_bytes().chunks(1).collect();
        assert_eq!(events(&bytes), whole);
    }

    #[test]
    fn no_part_of_a_line_is_searched_twice() {
        let mut parser = Parser::default();
        for _ in 0..100 {
            parser.push(b"data: part").unwrap();
            assert_eq!(parser.next_event(), None);
            assert_eq!(parser.searched, parser.buffer.len());
        }
    }

    #[test]
    fn chunks_have_a_stream_and_a_time_and_errors_show_no_output() {
        let event = |name: &str, data: &str| Event { name: name.into(), data: data.into() };
        let chunk = |kind| format!(r#"{{"seq":3,"stream_kind":{kind},"content":"x","ts":1500000000}}"#);
        for (kind, stream) in [(0, StdStream::Stdout), (1, StdStream::Stderr), (2, StdStream::Stderr)] {
            let Ok(LogEvent::Output(chunks)) = decode(&event("chunk", &chunk(kind))) else { panic!("no chunk") };
            assert_eq!((chunks[0].stream(), chunks[0].at().unwrap().timestamp_millis()), (stream, 1500));
        }
        let history = format!(r#"{{"chunks":[{},{{"seq":4,"stream_kind":0,"content":"","ts":null}}]}}"#, chunk(0));
        let Ok(LogEvent::Output(chunks)) = decode(&event("history", &history)) else { panic!("no history") };
        assert_eq!((chunks.len(), chunks[1].at()), (2, None));
        assert_eq!(decode(&event("done", "")), Ok(LogEvent::Done));
        assert_eq!(decode(&event("later", "?")), Ok(LogEvent::Alive));
        let Err(LogBreak::Malformed(why)) = decode(&event("chunk", r#"{"seq":"hunter2"}"#)) else { panic!("decoded") };
        assert!(!why.contains("hunter2"), "{why}");
    }
}
