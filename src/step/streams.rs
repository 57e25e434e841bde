//! The output of a step on two pipes, in the order in which it was written as far as that can be known.
//!
//! The kernel keeps no time of writes, but an epoll instance lists pipes in the order in which they became
//! readable. So both pipes are in an epoll instance of their own, edge-triggered: a pipe is listed again at
//! the first write after the one that was listed before. When both are listed, the first is read up to what
//! it holds at that time, because anything later came after the other's first write. The order of writes to
//! both between two looks is unknown: in that case all of the first pipe comes first.
//!
//! Input: two pipes. Output: pieces of what they held. Depends on no runtime: [`Streams`] is a descriptor to
//! wait for.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::{
    event::{Timespec, epoll},
    io::Errno,
};

/// The maximum number of bytes that are read from a stream before the other is read: the capacity of the
/// largest pipe.
const TURN_BYTES: usize = 1 << 20;

/// The events of a stream that are listed.
const LISTED: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ET);

/// The read ends of the two pipes. Nothing is read ahead.
#[derive(Debug)]
pub struct Streams {
    epoll: OwnedFd,
    /// `None` after end of file.
    pipes: [Option<OwnedFd>; 2],
    queue: Vec<Turn>,
    /// Streams that still had data when their turn ended, and whether their last writer is known to have
    /// closed the pipe.
    unfinished: [Option<bool>; 2],
    /// The stream whose data does not make the descriptor readable.
    muted: Option<usize>,
    buffer: Vec<u8>,
}

/// A stream that can be read.
#[derive(Debug)]
struct Turn {
    index: usize,
    left: usize,
    /// The last writer has closed the pipe, so no other event will come.
    hung_up: bool,
}

/// Bytes of one stream, in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The bytes are from standard error instead of standard output.
    pub stderr: bool,
    /// The number of bytes; at least one.
    pub len: usize,
}

impl Streams {
    /// Reads from `stdout` and `stderr`, in pieces of at most `piece_bytes`.
    pub fn new(stdout: OwnedFd, stderr: OwnedFd, piece_bytes: usize) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (number, pipe) in [(0, &stdout), (1, &stderr)] {
            rustix::io::ioctl_fionbio(pipe, true)?;
            epoll::add(&epoll, pipe, epoll::EventData::new_u64(number), LISTED)?;
        }
        Ok(Self {
            epoll,
            pipes: [Some(stdout), Some(stderr)],
            queue: Vec::with_capacity(2),
            unfinished: [None; 2],
            muted: None,
            buffer: vec![0; piece_bytes],
        })
    }

    /// Returns the capacity of the smaller pipe that is open, in bytes.
    pub fn capacity(&self) -> usize {
        let capacities = self.pipes.iter().flatten().map(rustix::pipe::fcntl_getpipe_size);
        capacities.filter_map(Result::ok).min().unwrap_or(0)
    }

    /// Returns whether both streams have ended.
    pub fn is_over(&self) -> bool {
        self.pipes.iter().all(Option::is_none)
    }

    /// Returns the bytes of a piece.
    pub fn bytes(&self, piece: Piece) -> &[u8] {
        &self.buffer[..piece.len]
    }

    /// Finds out which streams can be read; [`read`](Self::read) then reads them. Called when the descriptor
    /// is readable. Never blocks.
    pub fn look(&mut self) -> Result<(), Errno> {
        if let Some(index) = self.muted.take()
            && let Some(pipe) = &self.pipes[index]
        {
            epoll::modify(&self.epoll, pipe, epoll::EventData::new_u64(index as u64), LISTED)?;
            // It may have data, which is then probably older than that of the other stream: a stream is muted
            // if it has data all the time.
            self.queue.push(Turn { index, left: TURN_BYTES, hung_up: false });
        }
        // Data of unfinished streams is older than what is listed now.
        for (index, unfinished) in self.unfinished.iter_mut().enumerate() {
            if let Some(hung_up) = unfinished.take() {
                self.queue.push(Turn { index, left: TURN_BYTES, hung_up });
            }
        }
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 2];
        let listed =
            rustix::io::retry_on_intr(|| epoll::wait(&self.epoll, &mut events[..], Some(&Timespec::default())))?;
        for event in &events[..listed] {
            // The structure is packed, so its fields cannot be borrowed.
            let (data, flags) = (event.data, event.flags);
            let index = usize::from(data.u64() == 1);
            let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            match self.queue.iter_mut().find(|turn| turn.index == index) {
                Some(turn) => turn.hung_up |= hung_up,
                None => self.queue.push(Turn { index, left: TURN_BYTES, hung_up }),
            }
        }
        if let [first, _] = &mut self.queue[..]
            && let Some(pipe) = &self.pipes[first.index]
        {
            let held = usize::try_from(rustix::io::ioctl_fionread(pipe)?).unwrap_or(TURN_BYTES);
            first.left = held.clamp(1, TURN_BYTES);
        }
        Ok(())
    }

    /// Lets the descriptor become readable only for the other stream, and for the end of this one, until the
    /// next [`look`](Self::look). For a stream that is written to all the time, in small pieces.
    pub fn mute(&mut self, stderr: bool) -> Result<(), Errno> {
        let index = usize::from(stderr);
        if let (None, Some(pipe)) = (self.muted, &self.pipes[index]) {
            let data = epoll::EventData::new_u64(index as u64);
            epoll::modify(&self.epoll, pipe, data, epoll::EventFlags::ET)?;
            self.muted = Some(index);
        }
        Ok(())
    }

    /// Returns whether [`look`](Self::look) would find data even if the descriptor is not ready.
    pub fn is_unfinished(&self) -> bool {
        self.unfinished.iter().any(Option::is_some)
    }

    /// Reads a piece of what [`look`](Self::look) found. Returns `None` if everything has been read.
    pub fn read(&mut self) -> Result<Option<Piece>, Errno> {
        while let Some(turn) = self.queue.first_mut() {
            let index = turn.index;
            let Some(pipe) = &self.pipes[index] else {
                self.queue.remove(0);
                continue;
            };
            let wanted = turn.left.min(self.buffer.len());
            let read = rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut self.buffer[..wanted]));
            let len = match read {
                Ok(0) => {
                    self.pipes[index] = None;
                    self.queue.remove(0);
                    continue;
                }
                Err(Errno::AGAIN) => {
                    self.queue.remove(0);
                    continue;
                }
                read => read?,
            };
            turn.left -= len;
            let hung_up = turn.hung_up;
            if len < wanted && !hung_up {
                // The pipe is empty: the next write, or the end, is listed again.
                self.queue.remove(0);
            } else if turn.left == 0 {
                self.unfinished[index] = Some(hung_up);
                self.queue.remove(0);
            }
            return Ok(Some(Piece { stderr: index == 1, len }));
        }
        Ok(None)
    }

    /// Reads a piece of what is available. Returns `None` if there is nothing.
    pub fn read_now(&mut self) -> Result<Option<Piece>, Errno> {
        loop {
            if let Some(piece) = self.read()? {
                return Ok(Some(piece));
            }
            self.look()?;
            if self.queue.is_empty() {
                return Ok(None);
            }
        }
    }
}

impl AsFd for Streams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl AsRawFd for Streams {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use rustix::{
        event::{PollFd, PollFlags, poll},
        pipe::{PipeFlags, pipe_with},
    };

    use super::*;

    struct Rig {
        streams: Streams,
        writers: [Option<OwnedFd>; 2],
    }

    impl Rig {
        fn new(piece_bytes: usize) -> Self {
            let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
            let ((stdout, to_stdout), (stderr, to_stderr)) = (pipe(), pipe());
            let streams = Streams::new(stdout, stderr, piece_bytes).unwrap();
            Self { streams, writers: [Some(to_stdout), Some(to_stderr)] }
        }

        fn write(&self, index: usize, bytes: &[u8]) {
            assert_eq!(rustix::io::write(self.writers[index].as_ref().unwrap(), bytes), Ok(bytes.len()));
        }

        /// Returns all available output. Standard error is marked with an exclamation mark.
        fn read(&mut self) -> String {
            let mut text = String::new();
            while let Some(piece) = self.streams.read_now().unwrap() {
                text.push(if piece.stderr { '!' } else { '.' });
                text.push_str(std::str::from_utf8(self.streams.bytes(piece)).unwrap());
            }
            text
        }
    }

    #[test]
    fn what_was_there_first_comes_first() {
        for round in 0..50 {
            let mut rig = Rig::new(100);
            if round % 2 == 0 {
                rig.write(0, b"a");
                assert_eq!(rig.read(), ".a");
            }
            rig.write(0, b"out");
            rig.write(1, b"err");
            assert_eq!(rig.read(), ".out!err");
            rig.write(1, b"err");
            rig.write(0, b"out");
            assert_eq!(rig.read(), "!err.out");
            rig.write(0, b"1");
            rig.write(1, b"2");
            rig.writers = [None, None];
            assert_eq!(rig.read(), ".1!2");
            assert!(rig.streams.is_over());
        }
    }

    #[test]
    fn the_first_stream_is_read_up_to_what_it_held() {
        let mut rig = Rig::new(4);
        rig.write(0, b"12345678");
        rig.write(1, b"BOOM");
        rig.streams.look().unwrap();
        rig.write(0, b"later");
        assert_eq!(rig.read(), ".1234.5678!BOOM.late.r");
    }

    #[test]
    fn a_muted_stream_wakes_nobody_and_is_read_before_the_other() {
        let mut rig = Rig::new(100);
        let is_ready = |rig: &Rig| {
            let mut fds = [PollFd::new(&rig.streams, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
        };
        rig.write(0, b"1");
        assert_eq!(rig.read(), ".1");
        rig.streams.mute(false).unwrap();
        rig.write(0, b"2");
        assert!(!is_ready(&rig));
        rig.write(1, b"!");
        assert!(is_ready(&rig));
        assert_eq!(rig.read(), ".2!!");
        // It is listed again.
        rig.write(0, b"3");
        assert!(is_ready(&rig));
        assert_eq!(rig.read(), ".3");
        rig.streams.mute(false).unwrap();
        rig.write(0, b"4");
        rig.writers = [None, None];
        assert!(is_ready(&rig), "the end is seen");
        assert_eq!(rig.read(), ".4");
        assert!(rig.streams.is_over());
    }

    #[test]
    fn a_flood_on_one_stream_does_not_hide_the_other() {
        let mut rig = Rig::new(1 << 12);
        let mut read = 0;
        rig.write(0, &[b'x'; 1 << 13]);
        let found = loop {
            match rig.streams.read_now().unwrap().unwrap() {
                Piece { stderr: true, .. } => break true,
                Piece { len, .. } => {
                    read += len;
                    rig.write(0, &vec![b'x'; len]);
                    if read == 1 << 14 {
                        rig.write(1, b"!");
                    }
                    if read > 4 * TURN_BYTES {
                        break false;
                    }
                }
            }
        };
        assert!(found, "{read} bytes of standard output came first");
    }

    proptest! {
        #[test]
        fn every_byte_comes_once_and_in_its_streams_order(
            writes in vec((0..2_usize, 1..3_000_usize, any::<bool>()), 0..60),
            piece_bytes in 1..5_000_usize,
        ) {
            let mut rig = Rig::new(piece_bytes);
            let (mut written, mut read) = ([0_usize; 2], [0_usize; 2]);
            let take = |rig: &mut Rig, read: &mut [usize; 2], all: bool| {
                while let Some(piece) = rig.streams.read_now().unwrap() {
                    let at = &mut read[usize::from(piece.stderr)];
                    for byte in rig.streams.bytes(piece) {
                        assert_eq!(usize::from(*byte), *at % 251);
                        *at += 1;
                    }
                    if !all {
                        break;
                    }
                }
            };
            for (index, len, look) in writes {
                // A pipe has 16 pages. A write that does not fit into the last one begins another, so up to
                // half of the capacity may be wasted.
                if written[index] - read[index] + len > 30_000 {
                    take(&mut rig, &mut read, true);
                }
                let bytes: Vec<u8> = (written[index]..).take(len).map(|at| (at % 251) as u8).collect();
                rig.write(index, &bytes);
                written[index] += len;
                if look {
                    take(&mut rig, &mut read, false);
                    rig.streams.mute(len % 2 == 0).unwrap();
                }
            }
            rig.writers = [None, None];
            take(&mut rig, &mut read, true);
            prop_assert_eq!(read, written);
            prop_assert!(rig.streams.is_over());
        }
    }
}
