//! Ctrl-C, the signals that process managers send instead, and a terminal that hangs up. The first signal
//! requests cancellation, the second one forces it.

use std::fs;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{Failure, Outcome};

/// Which signal it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// SIGINT, which a terminal sends for Ctrl-C to all processes in its foreground.
    Key,
    /// SIGTERM.
    Request,
    /// SIGHUP.
    Hangup,
}

/// SIGINT, SIGTERM and SIGHUP.
///
/// A SIGHUP requests cancellation but never forces it: when a terminal disappears, its shell sends one, and
/// the kernel another. If SIGHUP was ignored when this process started, as under `nohup`, it stays ignored.
#[derive(Debug)]
pub(crate) struct Interrupts {
    int: Signal,
    term: Signal,
    hup: Option<Signal>,
    has_asked: bool,
}

/// Starts to listen for a signal, which from now on does not end the process by itself.
pub(crate) fn listen(kind: SignalKind) -> Outcome<Signal> {
    signal(kind).map_err(|error| Failure::infrastructure("failed to listen for signals").because(error))
}

impl Interrupts {
    /// Starts to listen. From now on these signals do not end the process by themselves.
    pub(crate) fn listen() -> Outcome<Self> {
        let hup = if ignores_hangup() { None } else { Some(listen(SignalKind::hangup())?) };
        let (int, term) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        Ok(Self { int, term, hup, has_asked: false })
    }

    /// Waits for the next one. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        self.next_kind().await;
    }

    /// Waits for the next one, and returns which it is. Cancel-safe.
    pub(crate) async fn next_kind(&mut self) -> Interrupt {
        let kind = loop {
            let hangs_up = async {
                match &mut self.hup {
                    Some(hup) => hup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.int.recv() => break Interrupt::Key,
                _ = self.term.recv() => break Interrupt::Request,
                _ = hangs_up => if !self.has_asked { break Interrupt::Hangup },
            }
        };
        self.has_asked = true;
        kind
    }
}

/// Returns whether SIGHUP is ignored, according to `/proc`. Without `/proc`, the signal is assumed to be
/// ignored: it is not listened for, and keeps the disposition that it had when this process started.
fn ignores_hangup() -> bool {
    const HANGUP: u64 = 1;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_none_or(|mask| mask & HANGUP != 0)
}
