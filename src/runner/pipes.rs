//! The output pipes of a step on an async runtime. Output is forwarded in the order of its arrival; see
//! [`streams`](crate::streams).

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    model::StdStream,
    streams::{Piece, Streams},
};

/// The two output streams of a step.
#[derive(Debug)]
pub(crate) struct Pipes(AsyncFd<Streams>);

impl Pipes {
    /// Reads from `stdout` and `stderr` in pieces of at most `piece_bytes`. Must be called within a runtime.
    pub(crate) fn new(stdout: OwnedFd, stderr: OwnedFd, piece_bytes: usize) -> io::Result<Self> {
        let streams = Streams::new(stdout, stderr, piece_bytes)?;
        #[allow(deprecated, reason = "tokio's successor is unsafe, for descriptors that change; this one does not")]
        Ok(Self(AsyncFd::with_interest(streams, Interest::READABLE)?))
    }

    /// Waits for a piece. Returns `None` at the end of both streams.
    ///
    /// # Cancel safety
    /// No output is lost.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Piece>> {
        loop {
            let streams = self.0.get_mut();
            if let Some(piece) = streams.read()? {
                return Ok(Some(piece));
            }
            if streams.is_over() {
                return Ok(None);
            }
            if streams.is_unfinished() {
                // A step that prints all the time must not starve the others.
                tokio::task::consume_budget().await;
            } else {
                self.0.readable_mut().await?.clear_ready();
            }
            self.0.get_mut().look()?;
        }
    }

    /// Returns a piece that is already available.
    pub(crate) fn next_now(&mut self) -> io::Result<Option<Piece>> {
        Ok(self.0.get_mut().read_now()?)
    }

    /// Returns the stream and the bytes of a piece.
    pub(crate) fn bytes(&self, piece: Piece) -> (StdStream, &[u8]) {
        let stream = if piece.stderr { StdStream::Stderr } else { StdStream::Stdout };
        (stream, self.0.get_ref().bytes(piece))
    }
}
