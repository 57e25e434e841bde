//! A pseudo-terminal, for the behavior of `hm` on one.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::Child,
    sync::{Arc, Mutex},
};

use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, OutputModes, Winsize, tcgetattr, tcsetwinsize},
};

use super::project::{Project, eventually};

/// A terminal that `hm` runs on.
pub(crate) struct Terminal {
    pub(crate) master: File,
    slave: OwnedFd,
    shown: Arc<Mutex<String>>,
    pub(crate) hm: Child,
}

impl Terminal {
    pub(crate) fn open(project: &Project, args: &[&str]) -> Self {
        Self::open_with(project, args, |_| {})
    }

    /// Opens a terminal like `open`. `more` changes the command first.
    pub(crate) fn open_with(project: &Project, args: &[&str], more: impl FnOnce(&mut std::process::Command)) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(ptsname(&master, Vec::new()).unwrap(), flags, Mode::empty()).unwrap();
        tcsetwinsize(&slave, size(24, 80)).unwrap();
        let mut hm = project.hm(args);
        more(&mut hm);
        hm.env("TERM", "vt100").stdin(slave.try_clone().unwrap());
        let hm = hm.stdout(slave.try_clone().unwrap()).stderr(slave.try_clone().unwrap()).spawn().unwrap();
        let (master, shown) = (File::from(master), Arc::<Mutex<String>>::default());
        let (mut reader, seen) = (master.try_clone().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = reader.read(&mut buffer) {
                seen.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        Self { master, slave, shown, hm }
    }

    pub(crate) fn keys(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the terminal shows `text`.
    #[track_caller]
    pub(crate) fn expect(&mut self, text: &str) {
        eventually(&format!("{text:?} on the terminal"), || {
            let shown = self.shown.lock().unwrap();
            let ended = self.hm.try_wait().unwrap().is_some();
            assert!(!ended || shown.contains(text), "hm ended: {shown}");
            shown.contains(text)
        });
    }

    pub(crate) fn modes(&self) -> (LocalModes, OutputModes) {
        let termios = tcgetattr(&self.slave).unwrap();
        (termios.local_modes, termios.output_modes)
    }
}

pub(crate) fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
