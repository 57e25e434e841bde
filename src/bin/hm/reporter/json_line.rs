//! Fast serialization of output lines as JSON: there may be millions.
//!
//! Lines that arrived together differ only in their number and their text. The rest is serialized once, by
//! serde, and copied for each line. A test compares the result to serde's output for the whole event. Knows
//! nothing about the destination.

use chrono::{DateTime, Utc};
use hm_exec::{
    BuildEvent,
    event::{LogLines, StdStream},
};
use uuid::Uuid;

/// The template for lines of one origin.
#[derive(Debug)]
pub(super) struct JsonLine {
    origin: Origin,
    /// The event with number 0 and no text.
    json: String,
    /// The position of the number in `json`.
    number_at: usize,
    /// The position at which the text is inserted.
    text_at: usize,
}

/// Everything about a line except its number and its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Origin {
    step_id: Uuid,
    stream: StdStream,
    ts: DateTime<Utc>,
    attempt: u32,
    partial: bool,
}

impl JsonLine {
    /// Creates a template for lines of the same origin as `event`. Returns `None` if it is no line.
    pub(super) fn like(event: &BuildEvent) -> Option<Self> {
        let (_, _, origin) = parts(event)?;
        Self::from(origin)
    }

    /// Creates a template for `lines`. Returns `None` if there is none.
    pub(super) fn of(lines: &LogLines<'_>) -> Option<Self> {
        let &LogLines { step_id, stream, ts, attempt, .. } = lines;
        Self::from(Origin { step_id, stream, ts, attempt, partial: false })
    }

    fn from(origin: Origin) -> Option<Self> {
        let Origin { step_id, stream, ts, attempt, partial } = origin;
        let empty = BuildEvent::StepLog { seq: 0, step_id, stream, line: String::new(), ts, attempt, partial };
        let json = serde_json::to_string(&empty).ok()?;
        let behind = |name: &str| Some(json.find(name)? + name.len());
        let (number_at, text_at) = (behind(r#","seq":"#)?, behind(r#","line":""#)?);
        Some(Self { origin, json, number_at, text_at })
    }

    /// Appends `event` if it is a line of this origin. Returns whether it is.
    pub(super) fn push(&self, buffer: &mut Vec<u8>, event: &BuildEvent) -> bool {
        let Some((seq, text, origin)) = parts(event) else { return false };
        if origin != self.origin {
            return false;
        }
        self.push_line(buffer, seq, text, false);
        true
    }

    /// Appends a line of this origin. `is_plain` says that [no byte of it is escaped](needs_no_escape).
    pub(super) fn push_line(&self, buffer: &mut Vec<u8>, seq: u64, text: &str, is_plain: bool) {
        let json = self.json.as_bytes();
        buffer.extend_from_slice(&json[..self.number_at]);
        // Writing a number to memory does not fail.
        let _ = serde_json::to_writer(&mut *buffer, &seq);
        buffer.extend_from_slice(&json[self.number_at + 1..self.text_at]);
        if is_plain {
            buffer.extend_from_slice(text.as_bytes());
        } else {
            push_escaped(buffer, text.as_bytes());
        }
        buffer.extend_from_slice(&json[self.text_at..]);
    }
}

/// Returns whether no byte of the lines of `text` must be escaped in JSON.
pub(super) fn needs_no_escape(text: &str) -> bool {
    // Checks every byte without an early exit, so that the loop can be vectorized.
    text.bytes().fold(true, |plain, byte| plain & (!must_escape(byte) | (byte == b'\n')))
}

fn must_escape(byte: u8) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\'
}

fn parts(event: &BuildEvent) -> Option<(u64, &str, Origin)> {
    match *event {
        BuildEvent::StepLog { seq, step_id, stream, ref line, ts, attempt, partial } => {
            Some((seq, line, Origin { step_id, stream, ts, attempt, partial }))
        }
        _ => None,
    }
}

/// Appends `text` as the content of a JSON string, without the quotes.
fn push_escaped(buffer: &mut Vec<u8>, mut text: &[u8]) {
    loop {
        let (plain, rest) = text.split_at(plain_len(text));
        buffer.extend_from_slice(plain);
        let Some((&byte, rest)) = rest.split_first() else { return };
        match byte {
            b'"' | b'\\' => buffer.extend_from_slice(&[b'\\', byte]),
            b'\n' => buffer.extend_from_slice(br"\n"),
            b'\r' => buffer.extend_from_slice(br"\r"),
            b'\t' => buffer.extend_from_slice(br"\t"),
            0x08 => buffer.extend_from_slice(br"\b"),
            0x0c => buffer.extend_from_slice(br"\f"),
            _ => {
                let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
                buffer.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
            }
        }
        text = rest;
    }
}

/// Returns how many bytes at the beginning of `text` need no escaping.
fn plain_len(text: &[u8]) -> usize {
    // Checks all of a block without an early exit, which compilers turn into a few instructions.
    let is_plain = |block: &&[u8; 16]| !block.iter().fold(false, |found, byte| found | must_escape(*byte));
    let (blocks, _) = text.as_chunks::<16>();
    let plain = 16 * blocks.iter().take_while(is_plain).count();
    plain + text[plain..].iter().position(|byte| must_escape(*byte)).unwrap_or(text.len() - plain)
}
