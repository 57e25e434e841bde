//! The terminal that live lines are drawn on. The cursor rests in the first column, at the start of the last
//! line.
//!
//! What the terminal echoes, such as the `^C` of an interrupt, then overwrites the line, and the next drawing
//! removes it. The cursor would otherwise rest behind the last column, and the echo would begin another line,
//! which nothing removes. No mode of the terminal is changed, so none must be restored.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use indicatif::{ProgressDrawTarget, ProgressStyle, TermLike};

use super::{terminal_size, text};

/// How often lines are drawn again, in a second.
const RATE: u8 = 10;

/// Makes the next drawing begin below what other programs have shown.
#[derive(Debug, Clone, Default)]
pub(super) struct BeginAnew(Arc<AtomicBool>);

impl BeginAnew {
    pub(super) fn request(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Returns where to draw: the terminal on stderr. Nothing is drawn if there is none.
pub(super) fn draw_target(begin_anew: &BeginAnew) -> ProgressDrawTarget {
    if !io::stderr().is_terminal() {
        return ProgressDrawTarget::hidden();
    }
    let lines = LiveLines { buffer: Mutex::default(), begin_anew: begin_anew.clone() };
    ProgressDrawTarget::term_like_with_hz(Box::new(lines), RATE)
}

/// Sets the pictures of a spinner, if the locale does not have those of indicatif.
pub(super) fn with_ticks(style: ProgressStyle) -> ProgressStyle {
    if text::has_symbols() { style } else { style.tick_chars("|/-\\ ") }
}

#[derive(Debug)]
struct LiveLines {
    /// What is written next, in one piece.
    buffer: Mutex<Vec<u8>>,
    begin_anew: BeginAnew,
}

impl LiveLines {
    fn push(&self, text: &str) -> io::Result<()> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(text.as_bytes());
        Ok(())
    }

    /// Moves the cursor by an escape sequence. One for 0 would move it by 1.
    fn move_by(&self, count: usize, direction: char) -> io::Result<()> {
        if count == 0 { Ok(()) } else { self.push(&format!("\x1b[{count}{direction}")) }
    }
}

impl TermLike for LiveLines {
    fn width(&self) -> u16 {
        terminal_size(io::stderr()).map_or(80, |(_, columns)| u16::try_from(columns).unwrap_or(u16::MAX))
    }

    fn height(&self) -> u16 {
        terminal_size(io::stderr()).map_or(24, |(rows, _)| u16::try_from(rows).unwrap_or(u16::MAX))
    }

    /// Moves the cursor to the first line that was drawn, which begins every drawing.
    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        if self.begin_anew.0.swap(false, Ordering::AcqRel) {
            self.push(&"\n".repeat(n))?;
        }
        self.move_by(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.move_by(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.move_by(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.move_by(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.push(text)?;
        self.push("\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.push(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.push("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.is_empty() {
            return Ok(());
        }
        buffer.push(b'\r');
        let mut stderr = io::stderr();
        let written = stderr.write_all(&buffer).and_then(|()| stderr.flush());
        buffer.clear();
        written
    }
}
