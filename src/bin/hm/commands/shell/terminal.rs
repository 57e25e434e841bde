//! The user's terminal, and the one that the shell gets.

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

/// hm's terminal in raw mode; dropped, it is as it was.
#[derive(Debug)]
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        // Armed first: a signal between the two finds it.
        let terminal = Self { before };
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(terminal)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// The near end of a pseudo-terminal.
#[derive(Debug)]
pub(super) struct Pty {
    master: OwnedFd,
}

impl Pty {
    /// A new one with the modes and the size of another terminal, and its far end.
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

    /// A handle on it.
    pub(super) fn stream(&self) -> io::Result<File> {
        Ok(self.master.try_clone()?.into())
    }

    /// Gives it the size of another terminal. Programs on the far end are told.
    pub(super) fn resize_like(&self, terminal: impl AsFd) {
        if let Ok(size) = tcgetwinsize(terminal) {
            // A size that can't be set is a nuisance, and no more.
            let _ = tcsetwinsize(&self.master, size);
        }
    }
}
