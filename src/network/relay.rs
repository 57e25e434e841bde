//! Joins two sockets by `splice`, so that no byte passes through this process.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    net::{Shutdown, shutdown, sockopt::set_socket_linger},
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
    process::{Resource, getrlimit},
};
use tokio::{io::Interest, net::TcpStream};

/// The most bytes that wait in a pipe.
const PIPE_BYTES: usize = 256 << 10;
/// The most descriptors of a connection: two sockets and two pipes.
const FOR_CONNECTION: usize = 6;
/// The most empty pipes that are kept.
const MAX_KEPT: usize = 16;

/// An empty pipe, without its writing end first.
#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

/// Pipes that are empty, and the number of connections. A direction holds a pipe only while bytes are in it.
#[derive(Debug)]
pub(super) struct Pipes {
    kept: RefCell<Vec<Pipe>>,
    connections: Cell<usize>,
    max_connections: usize,
}

/// The place of a connection among those that the process has descriptors for.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a Cell<usize>);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Pipes {
    /// Makes no pipe yet. Connections may use half of the descriptors of this process: the rest is for steps.
    pub(super) fn new() -> Self {
        let open = getrlimit(Resource::Nofile).current.and_then(|open| usize::try_from(open).ok());
        let max_connections = open.map_or(usize::MAX, |open| (open / 2 / FOR_CONNECTION).max(16));
        Self { kept: RefCell::default(), connections: Cell::new(0), max_connections }
    }

    /// Counts a connection, unless there are too many.
    pub(super) fn hold(&self) -> Option<Held<'_>> {
        let connections = self.connections.get();
        (connections < self.max_connections).then(|| {
            self.connections.set(connections + 1);
            Held(&self.connections)
        })
    }

    fn take(&self) -> io::Result<Pipe> {
        if let Some(pipe) = self.kept.borrow_mut().pop() {
            return Ok(pipe);
        }
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A user's pipes may be limited to less. The size then stays unchanged.
        let _ = fcntl_setpipe_size(&into, PIPE_BYTES);
        Ok(Pipe { out, into })
    }

    fn keep(&self, pipe: Pipe) {
        let mut kept = self.kept.borrow_mut();
        if kept.len() < MAX_KEPT {
            kept.push(pipe);
        }
    }
}

/// The bytes that passed through a connection.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// From the step.
    pub(super) sent: Cell<u64>,
    /// To the step.
    pub(super) received: Cell<u64>,
}

/// The two sockets of a connection. Dropping it resets both, unless both directions have ended.
#[derive(Debug)]
pub(super) struct Pair {
    step: TcpStream,
    far: TcpStream,
    is_over: bool,
}

impl Pair {
    pub(super) fn new(step: TcpStream, far: TcpStream) -> Self {
        // Small writes are the business of the programs at both ends.
        let _ = step.set_nodelay(true);
        let _ = far.set_nodelay(true);
        Self { step, far, is_over: false }
    }

    /// Passes bytes in both directions until both have ended, or one is broken.
    pub(super) async fn join(mut self, pipes: &Pipes, passed: &Passed) -> io::Result<()> {
        let there = pump(&self.step, &self.far, pipes, &passed.sent);
        let back = pump(&self.far, &self.step, pipes, &passed.received);
        tokio::try_join!(there, back)?;
        self.is_over = true;
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if !self.is_over {
            reset(&self.step);
            reset(&self.far);
        }
    }
}

/// Makes the end of a socket a reset, which drops what the kernel would still send.
pub(super) fn reset(socket: impl AsFd) {
    if let Err(error) = set_socket_linger(socket, Some(Duration::ZERO)) {
        tracing::debug!(%error, "failed to reset a connection");
    }
}

/// Passes bytes on until there are no more.
async fn pump(from: &TcpStream, to: &TcpStream, pipes: &Pipes, passed: &Cell<u64>) -> io::Result<()> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    loop {
        from.readable().await?;
        let pipe = pipes.take()?;
        let filled = from.try_io(Interest::READABLE, || Ok(splice(from, None, &pipe.into, None, PIPE_BYTES, flags)?));
        let mut left = match filled {
            Ok(0) => {
                pipes.keep(pipe);
                return Ok(shutdown(to, Shutdown::Write)?);
            }
            Ok(filled) => filled,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                pipes.keep(pipe);
                continue;
            }
            Err(error) => return Err(error),
        };
        while left > 0 {
            to.writable().await?;
            match to.try_io(Interest::WRITABLE, || Ok(splice(&pipe.out, None, to, None, left, flags)?)) {
                Ok(written) => {
                    left = left.saturating_sub(written);
                    passed.set(passed.get() + written as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        pipes.keep(pipe);
    }
}
