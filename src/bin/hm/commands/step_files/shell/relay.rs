//! Copies bytes between hm's own streams and the shell's.
//!
//! The shell gets pipes, or a terminal, of its own. The step's programs are not trusted with the user's
//! descriptors, which can be reopened with more access than they were passed with.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    thread::{self, JoinHandle},
};

use hm_exec::runner::sandbox::Streams;
use rustix::pipe::PipeFlags;

use super::terminal::{Pty, RawTerminal};

const CHUNK_BYTES: usize = 64 << 10;

/// The threads that copy, and the terminal that they copy for.
#[derive(Debug)]
pub(super) struct Relay {
    outputs: Vec<JoinHandle<()>>,
    terminal: Option<(RawTerminal, Pty)>,
}

impl Relay {
    /// Creates a relay over three pipes.
    pub(super) fn pipes() -> io::Result<(Self, Streams)> {
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        let ((stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr)) = (pipe()?, pipe()?, pipe()?);
        input(own(io::stdin())?, to_stdin.into());
        let outputs =
            vec![output(from_stdout.into(), own(io::stdout())?), output(from_stderr.into(), own(io::stderr())?)];
        Ok((Self { outputs, terminal: None }, Streams { stdin: Some(stdin), stdout, stderr, terminal: false }))
    }

    /// Creates a relay over a terminal like hm's own. From now on, all keys go to the shell.
    pub(super) fn terminal() -> io::Result<(Self, Streams)> {
        let (pty, slave) = Pty::like(io::stdin())?;
        let streams =
            Streams { stdin: Some(slave.try_clone()?), stdout: slave.try_clone()?, stderr: slave, terminal: true };
        let raw = RawTerminal::enter()?;
        input(own(io::stdin())?, pty.stream()?);
        let outputs = vec![output(pty.stream()?, own(io::stdout())?)];
        Ok((Self { outputs, terminal: Some((raw, pty)) }, streams))
    }

    /// Sets the size of the shell's terminal to the current size of hm's.
    pub(super) fn resize(&self) {
        if let Some((_, pty)) = &self.terminal {
            pty.resize_like(io::stdin());
        }
    }

    /// Restores the terminal. If the shell has ended, waits until all of its output is shown; otherwise some
    /// may be lost.
    pub(super) fn finish(self, ended: bool) {
        if ended {
            for output in self.outputs {
                // A thread that panicked has already printed a message.
                let _ = output.join();
            }
        }
        drop(self.terminal);
    }
}

/// Returns one of hm's own streams, without a buffer.
fn own(stream: impl AsFd) -> io::Result<File> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}

/// Copies hm's input. The thread is not joined: a read from a terminal ends only with the process.
fn input(from: File, to: File) {
    thread::spawn(move || carry(from, to));
}

fn output(from: File, to: File) -> JoinHandle<()> {
    thread::spawn(move || carry(from, to))
}

/// Copies until either side ends. A terminal whose other side is closed returns EIO.
fn carry(mut from: File, mut to: File) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if to.write_all(&buffer[..length]).is_err() => return,
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
            _ => {}
        }
    }
}
