//! The output pipes of a step on an async runtime. Output is forwarded in the order of its arrival; see
//! [`streams`](crate::streams).
//!
//! A program that prints every line on its own would wake this process, and then every reader of its output,
//! for each line. So if one stream has had small pieces in quick succession for a while, it is read once a
//! millisecond. What the other stream prints is still noticed at once.

use std::{
    io,
    os::fd::OwnedFd,
    pin::Pin,
    time::{Duration, Instant},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Sleep,
};

use crate::{
    model::StdStream,
    streams::{Piece, Streams},
};

/// The time between two reads of a stream that trickles. Times of output are in milliseconds anyway.
const PAUSE: Duration = Duration::from_millis(1);

/// The number of small pieces in quick succession after which a stream trickles.
const STREAK: u32 = 16;

/// The part of a pipe's capacity that a stream that trickles may fill between two reads. A stream that has
/// more is read as fast as possible, so that its writer need not wait.
const SMALL_PART: usize = 4;

/// The two output streams of a step.
#[derive(Debug)]
pub(crate) struct Pipes {
    streams: AsyncFd<Streams>,
    pace: Pace,
    /// Runs while the stream that trickles is not read.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Pipes {
    /// Reads from `stdout` and `stderr` in pieces of at most `piece_bytes`. Must be called within a runtime.
    pub(crate) fn new(stdout: OwnedFd, stderr: OwnedFd, piece_bytes: usize) -> io::Result<Self> {
        let streams = Streams::new(stdout, stderr, piece_bytes)?;
        let pace = Pace::new(streams.capacity() / SMALL_PART);
        #[allow(deprecated, reason = "tokio's successor is unsafe, for descriptors that change; this one does not")]
        let streams = AsyncFd::with_interest(streams, Interest::READABLE)?;
        Ok(Self { streams, pace, pause: None })
    }

    /// Waits for a piece. Returns `None` at the end of both streams.
    ///
    /// # Cancel safety
    /// No output is lost.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Piece>> {
        loop {
            let streams = self.streams.get_mut();
            if let Some(piece) = streams.read()? {
                self.pace.piece(piece);
                return Ok(Some(piece));
            }
            if streams.is_over() {
                return Ok(None);
            }
            if streams.is_unfinished() {
                // A step that prints all the time must not starve the others.
                tokio::task::consume_budget().await;
            } else {
                self.wait().await?;
            }
            self.streams.get_mut().look()?;
        }
    }

    /// Waits until there may be something to read.
    async fn wait(&mut self) -> io::Result<()> {
        if self.pause.is_none()
            && let Some(stderr) = self.pace.trickles()
        {
            self.streams.get_mut().mute(stderr)?;
            self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
        }
        let is_over = match &mut self.pause {
            None => {
                self.streams.readable_mut().await?.clear_ready();
                false
            }
            Some(pause) => tokio::select! {
                ready = self.streams.readable_mut() => {
                    ready?.clear_ready();
                    false
                }
                () = pause => true,
            },
        };
        self.pause = None;
        self.pace.woken(Instant::now(), is_over);
        Ok(())
    }

    /// Returns a piece that is already available.
    pub(crate) fn next_now(&mut self) -> io::Result<Option<Piece>> {
        Ok(self.streams.get_mut().read_now()?)
    }

    /// Returns the stream and the bytes of a piece.
    pub(crate) fn bytes(&self, piece: Piece) -> (StdStream, &[u8]) {
        let stream = if piece.stderr { StdStream::Stderr } else { StdStream::Stdout };
        (stream, self.streams.get_ref().bytes(piece))
    }
}

/// Recognises a stream that has small pieces in quick succession.
#[derive(Debug)]
struct Pace {
    /// The number of bytes that are not a small piece any more.
    limit: usize,
    woken_at: Option<Instant>,
    /// Whether the last wait was short.
    is_quick: bool,
    /// The bytes that were read since the last wait: of standard output, of standard error.
    read: [usize; 2],
    /// The stream that the streak is about: whether it is standard error.
    stderr: bool,
    streak: u32,
}

impl Pace {
    fn new(limit: usize) -> Self {
        Self { limit, woken_at: None, is_quick: false, read: [0; 2], stderr: false, streak: 0 }
    }

    fn piece(&mut self, piece: Piece) {
        self.read[usize::from(piece.stderr)] += piece.len;
    }

    /// Records the end of a wait.
    fn woken(&mut self, now: Instant, was_pause: bool) {
        let before = self.woken_at.replace(now);
        self.is_quick = was_pause || before.is_some_and(|at| now.saturating_duration_since(at) < PAUSE);
    }

    /// Takes account of what was read since the last wait. Returns the stream that trickles, if one does:
    /// whether it is standard error.
    fn trickles(&mut self) -> Option<bool> {
        let small = match std::mem::take(&mut self.read) {
            [bytes, 0] if (1..self.limit).contains(&bytes) => Some(false),
            [0, bytes] if (1..self.limit).contains(&bytes) => Some(true),
            _ => None,
        };
        match small.filter(|_| self.is_quick) {
            Some(stderr) if stderr == self.stderr => self.streak = self.streak.saturating_add(1),
            Some(stderr) => (self.stderr, self.streak) = (stderr, 1),
            None => self.streak = 0,
        }
        (self.streak >= STREAK).then_some(self.stderr)
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    const LIMIT: usize = 1000;

    /// Returns after how many waits a stream trickles that has pieces of `len` bytes every `interval`.
    fn waits(len: usize, interval: Duration) -> Option<u32> {
        let (mut pace, mut now) = (Pace::new(LIMIT), Instant::now());
        (0..100).find(|_| {
            now += interval;
            pace.woken(now, false);
            pace.piece(Piece { stderr: true, len });
            pace.trickles() == Some(true)
        })
    }

    #[test]
    fn only_small_pieces_in_quick_succession_are_a_trickle() {
        assert_eq!(waits(40, PAUSE / 10), Some(STREAK));
        assert_eq!(waits(40, PAUSE), None);
        assert_eq!(waits(LIMIT, PAUSE / 10), None);
    }

    #[test]
    fn a_trickle_ends_with_the_other_stream_a_big_piece_and_a_pause_in_vain() {
        let (now, small) = (Instant::now(), Piece { stderr: false, len: 40 });
        let trickle = || {
            let mut pace = Pace::new(LIMIT);
            for _ in 0..=STREAK {
                pace.woken(now, true);
                pace.piece(small);
                pace.trickles();
            }
            pace.woken(now, true);
            pace
        };
        for (pieces, trickles) in [
            (&[small, small][..], Some(false)),
            (&[small, Piece { stderr: true, len: 1 }], None),
            (&[Piece { stderr: true, len: 1 }], None),
            (&[Piece { len: LIMIT, ..small }], None),
            (&[], None),
        ] {
            let mut pace = trickle();
            pieces.iter().for_each(|&piece| pace.piece(piece));
            assert_eq!(pace.trickles(), trickles, "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn a_trickle_arrives_whole_and_before_what_is_printed_after_it_on_the_other_stream() {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
        let ((stdout, to_stdout), (stderr, to_stderr)) = (pipe(), pipe());
        let mut pipes = Pipes::new(stdout, stderr, 1 << 16).unwrap();
        let writer = std::thread::spawn(move || {
            for n in 0..20_000 {
                rustix::io::write(&to_stdout, format!("{n}\n").as_bytes()).unwrap();
            }
            rustix::io::write(&to_stderr, b"done\n").unwrap();
        });
        let mut text = Vec::new();
        while let Some(piece) = pipes.next().await.unwrap() {
            text.extend_from_slice(pipes.bytes(piece).1);
        }
        writer.join().unwrap();
        let expected: String = (0..20_000).map(|n| format!("{n}\n")).collect();
        assert!(text == (expected + "done\n").as_bytes(), "{}", String::from_utf8_lossy(&text));
    }
}
