//! A pseudo-terminal, for the behavior of `hm` on one.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::Child,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, OutputModes, Winsize, tcgetattr, tcsetwinsize},
};

use super::project::{Project, eventually};

/// A terminal that `hm` runs on.
pub(crate) struct Terminal {
    pub(crate) master: File,
    slave: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
    /// The sizes, each with the number of bytes that had been shown before it.
    sizes: Vec<(usize, Winsize)>,
    pub(crate) hm: Child,
}

impl Terminal {
    pub(crate) fn open(project: &Project, args: &[&str]) -> Self {
        Self::open_with(project, args, |_| {})
    }

    /// Opens a terminal like `open`. `more` changes the command first.
    pub(crate) fn open_with(project: &Project, args: &[&str], more: impl FnOnce(&mut std::process::Command)) -> Self {
        Self::open_sized(project, args, size(24, 80), more)
    }

    /// Opens a terminal of a size like `open_with`.
    pub(crate) fn open_sized(
        project: &Project,
        args: &[&str],
        size: Winsize,
        more: impl FnOnce(&mut std::process::Command),
    ) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(ptsname(&master, Vec::new()).unwrap(), flags, Mode::empty()).unwrap();
        tcsetwinsize(&slave, size).unwrap();
        let mut hm = project.hm(args);
        hm.env("TERM", "vt100").stdin(slave.try_clone().unwrap());
        more(&mut hm);
        let hm = hm.stdout(slave.try_clone().unwrap()).stderr(slave.try_clone().unwrap()).spawn().unwrap();
        let (master, shown) = (File::from(master), Arc::<Mutex<Vec<u8>>>::default());
        let (mut reader, seen) = (master.try_clone().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = reader.read(&mut buffer) {
                seen.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        Self { master, slave, shown, sizes: vec![(0, size)], hm }
    }

    pub(crate) fn keys(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Returns how many bytes the terminal got.
    pub(crate) fn shown_bytes(&self) -> usize {
        self.shown.lock().unwrap().len()
    }

    /// Returns how often the terminal has shown `text`.
    pub(crate) fn times(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).matches(text).count()
    }

    /// Writes on the terminal, as another program does.
    pub(crate) fn show(&self, text: &str) {
        rustix::io::write(&self.slave, text.as_bytes()).unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.hm), signal).unwrap();
    }

    /// Returns whether a signal has stopped `hm`.
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.hm.id())).unwrap();
        stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
    }

    /// Returns whether `hm` has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.hm.try_wait().unwrap().is_some()
    }

    /// Waits until the terminal shows `text`.
    #[track_caller]
    pub(crate) fn expect(&mut self, text: &str) {
        let mut ended = None;
        eventually(&format!("{text:?} on the terminal"), || {
            if ended.is_none() && self.has_ended() {
                ended = Some(Instant::now());
            }
            let shown = String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned();
            // What `hm` wrote at its end may still be on its way.
            let is_late = ended.is_some_and(|ended| ended.elapsed() > Duration::from_secs(10));
            assert!(!is_late || shown.contains(text), "hm ended: {shown}");
            shown.contains(text)
        });
    }

    /// Returns what the terminal shows, one text a row, without empty rows at the end.
    pub(crate) fn screen(&self) -> Vec<String> {
        let shown = self.shown.lock().unwrap();
        let Winsize { ws_row, ws_col, .. } = self.sizes[0].1;
        let mut screen = vt100::Parser::new(ws_row, ws_col, 1000);
        let mut done = 0;
        for (at, Winsize { ws_row, ws_col, .. }) in &self.sizes {
            screen.process(&shown[done..*at]);
            screen.screen_mut().set_size(*ws_row, *ws_col);
            done = *at;
        }
        screen.process(&shown[done..]);
        let columns = screen.screen().size().1;
        let mut rows: Vec<String> = screen.screen().rows(0, columns).map(|row| row.trim_end().to_owned()).collect();
        while rows.pop_if(|row| row.is_empty()).is_some() {}
        rows
    }

    /// Waits until a row of the screen fits.
    #[track_caller]
    pub(crate) fn expect_row(&mut self, what: &str, fits: impl Fn(&str) -> bool) -> Vec<String> {
        let mut screen = Vec::new();
        eventually(&format!("{what} on the screen"), || {
            screen = self.screen();
            screen.iter().any(|row| fits(row))
        });
        screen
    }

    /// Waits until a row of the screen fits, or until `hm` has ended. Returns whether it ended before.
    #[track_caller]
    pub(crate) fn ends_before(&mut self, fits: impl Fn(&str) -> bool) -> bool {
        let mut has_ended = false;
        eventually("a row of the screen, or the end", || {
            has_ended = self.has_ended();
            has_ended || self.screen().iter().any(|row| fits(row))
        });
        has_ended
    }

    /// Waits until `hm` has ended and everything has been shown. Returns the exit code and the screen.
    #[track_caller]
    pub(crate) fn end(&mut self) -> (Option<i32>, Vec<String>) {
        let code = self.hm.wait().unwrap().code();
        // The mark comes after everything that hm wrote.
        rustix::io::write(&self.slave, b"\x1b[7mend\x1b[m").unwrap();
        eventually("the end of the output", || self.shown.lock().unwrap().ends_with(b"\x1b[7mend\x1b[m"));
        let mark = b"\x1b[7mend\x1b[m".len();
        let mut shown = self.shown.lock().unwrap();
        let rest = shown.len() - mark;
        shown.truncate(rest);
        drop(shown);
        (code, self.screen())
    }

    /// Changes the size. Like most terminals, cuts longer rows and does not wrap them anew.
    pub(crate) fn resize(&mut self, rows: u16, columns: u16) {
        let size = size(rows, columns);
        tcsetwinsize(&self.slave, size).unwrap();
        self.sizes.push((self.shown.lock().unwrap().len(), size));
    }

    pub(crate) fn modes(&self) -> (LocalModes, OutputModes) {
        let termios = tcgetattr(&self.slave).unwrap();
        (termios.local_modes, termios.output_modes)
    }
}

pub(crate) fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
