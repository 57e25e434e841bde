//! The destination of shown text: writes in big chunks, and only while there is a reader.

use std::io::{self, IsTerminal, Write};

use rustix::io::Errno;

/// Text is buffered until there is this much of it, or until there is nothing else to do.
const CHUNK_BYTES: usize = 64 * 1024;

/// A stream of hm's own. A terminal that has disappeared counts as a reader that left.
#[derive(Debug)]
pub(crate) struct StdWriter<W> {
    stream: W,
    is_terminal: bool,
}

impl<W: IsTerminal> StdWriter<W> {
    /// Wraps a stream. Call it while the terminal exists: after it has disappeared it is not recognised as a
    /// terminal.
    pub(crate) fn new(stream: W) -> Self {
        Self { is_terminal: stream.is_terminal(), stream }
    }
}

impl<W> StdWriter<W> {
    /// Turns the error of a terminal that has disappeared into that of a reader that left.
    pub(crate) fn judge<T>(&self, written: io::Result<T>) -> io::Result<T> {
        let is_gone = |error: &io::Error| self.is_terminal && error.raw_os_error() == Some(Errno::IO.raw_os_error());
        written.map_err(|error| if is_gone(&error) { io::ErrorKind::BrokenPipe.into() } else { error })
    }
}

impl<W: Write> Write for StdWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes);
        self.judge(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.stream.flush();
        self.judge(flushed)
    }
}

/// A buffered sink whose reader may leave (`| head`). What is written afterwards is dropped, and the build
/// continues.
#[derive(Debug)]
pub(crate) struct BufferedWriter<W> {
    sink: W,
    buffer: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    Open,
    Closed,
    Failed(io::Error),
}

impl<W: Write> BufferedWriter<W> {
    /// Creates a buffered sink on `sink`.
    pub(crate) fn new(sink: W) -> Self {
        Self { sink, buffer: Vec::with_capacity(CHUNK_BYTES + 4096), state: State::Open }
    }

    /// Appends what `write` writes.
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if matches!(self.state, State::Open) {
            write(&mut self.buffer);
            if self.buffer.len() >= CHUNK_BYTES {
                self.flush();
            }
        }
    }

    /// Returns whether text is buffered.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Writes the buffered text.
    pub(crate) fn flush(&mut self) {
        if self.is_dirty() {
            let written = self.sink.write_all(&self.buffer).and_then(|()| self.sink.flush());
            self.buffer.clear();
            match written {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.state = State::Closed,
                Err(error) => self.state = State::Failed(error),
            }
        }
    }

    /// Writes the buffered text. Returns an error if not everything was written. A reader that left is no
    /// error.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.flush();
        match self.state {
            State::Open | State::Closed => Ok(()),
            State::Failed(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sink<'a> {
        written: &'a mut Vec<u8>,
        error: Option<io::ErrorKind>,
    }

    impl Write for Sink<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.error {
                Some(kind) => Err(kind.into()),
                None => self.written.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn text_arrives_whole_and_in_order() {
        let mut written = Vec::new();
        let mut out = BufferedWriter::new(Sink { written: &mut written, error: None });
        for n in 0..50_000 {
            out.push(|buffer| buffer.extend(format!("{n}\n").bytes()));
        }
        out.finish().unwrap();
        let expected: String = (0..50_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(String::from_utf8(written).unwrap(), expected);
    }

    #[test]
    fn a_reader_who_leaves_is_no_error_and_a_full_disk_is() {
        for (kind, ok) in [(io::ErrorKind::BrokenPipe, true), (io::ErrorKind::StorageFull, false)] {
            let mut written = Vec::new();
            let mut out = BufferedWriter::new(Sink { written: &mut written, error: Some(kind) });
            out.push(|buffer| buffer.extend(b"text"));
            out.flush();
            out.push(|_| panic!("nothing is written without a reader"));
            assert_eq!(out.finish().is_ok(), ok);
        }
    }
}
