//! The user's terminal, and the pseudo-terminal that the shell gets.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize},
};

/// hm's terminal in raw mode. Dropping it restores the original mode.
#[derive(Debug)]
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        // Created before the mode changes, so that an interruption between the two restores the terminal.
        let terminal = Self { before };
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(terminal)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Best effort: a terminal that has disappeared needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// The master of a pseudo-terminal.
#[derive(Debug)]
pub(super) struct Pty {
    master: OwnedFd,
}

impl Pty {
    /// Creates a pseudo-terminal with the modes and the size of another terminal. Returns its master and its
    /// slave.
    pub(super) fn like(terminal: impl AsFd) -> io::Result<(Self, OwnedFd)> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        tcsetattr(&slave, OptionalActions::Now, &tcgetattr(&terminal)?)?;
        let pty = Self { master };
        pty.resize_like(terminal);
        Ok((pty, slave))
    }

    /// Returns a handle to the master.
    pub(super) fn stream(&self) -> io::Result<File> {
        Ok(self.master.try_clone()?.into())
    }

    /// Sets its size to that of another terminal. Programs on the slave get a signal.
    pub(super) fn resize_like(&self, terminal: impl AsFd) {
        if let Ok(size) = tcgetwinsize(terminal) {
            // Best effort: a wrong size is only inconvenient.
            let _ = tcsetwinsize(&self.master, size);
        }
    }
}
