//! What the library wants its developers, or a machine's administrator, to know: tracing events, on stderr.
//!
//! Warnings always; more by `HM_LOG` (such as `HM_LOG=debug` or `HM_LOG=hm_exec::runner=trace`). While a build is shown they
//! go through its renderer, so that they do not tear a live display.

use std::{
    io,
    sync::{Mutex, PoisonError},
};

use tokio::sync::mpsc;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::render::{text, to_stderr};

/// Where lines go while a build is shown.
static SCREEN: Mutex<Option<mpsc::UnboundedSender<String>>> = Mutex::new(None);

/// Starts to log.
pub(crate) fn init() {
    let filter = EnvFilter::try_from_env("HM_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).with_writer(ToScreen).init();
}

/// Sends what is logged to `screen`, until it is gone.
pub(crate) fn send_to(screen: mpsc::UnboundedSender<String>) {
    *SCREEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(screen);
}

#[derive(Debug)]
struct ToScreen;

/// One event, sent when it is complete.
#[derive(Debug, Default)]
struct Line(Vec<u8>);

impl<'a> MakeWriter<'a> for ToScreen {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line::default()
    }
}

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Names of a checkout's files may have anything in them.
        let text = text::clean(String::from_utf8_lossy(&self.0).trim_end());
        let screen = SCREEN.lock().unwrap_or_else(PoisonError::into_inner);
        let unsent = match &*screen {
            Some(screen) => screen.send(text).err().map(|error| error.0),
            None => Some(text),
        };
        if let Some(text) = unsent {
            to_stderr(&text);
        }
    }
}
