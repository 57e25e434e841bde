//! Ctrl-C, what process managers send instead, and a terminal that goes: the first one asks, the second one
//! insists.

use std::{fs, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP.
///
/// A hang-up asks and never insists: when a terminal goes, its shell sends one, and the kernel another. One
/// that was ignored when this process started, as under `nohup`, stays ignored.
#[derive(Debug)]
pub(crate) struct Interrupts {
    int: Signal,
    term: Signal,
    hup: Option<Signal>,
    has_asked: bool,
}

impl Interrupts {
    /// Starts to listen; from now on these signals don't end the process by themselves.
    pub(crate) fn listen() -> io::Result<Self> {
        let hup = if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            hup,
            has_asked: false,
        })
    }

    /// Waits for the next one. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        loop {
            let hangs_up = async {
                match &mut self.hup {
                    Some(hup) => hup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.int.recv() => break,
                _ = self.term.recv() => break,
                _ = hangs_up => if !self.has_asked { break },
            }
        }
        self.has_asked = true;
    }
}

/// Returns whether SIGHUP is ignored, as far as `/proc` tells. Without it, the signal is believed to be
/// ignored: it is not listened for, and does what it did when this process started.
fn ignores_hangup() -> bool {
    const HANGUP: u64 = 1;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_none_or(|mask| mask & HANGUP != 0)
}
