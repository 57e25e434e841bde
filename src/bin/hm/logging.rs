//! The library's diagnostics for developers and for the administrator of a machine: tracing events, on
//! stderr.
//!
//! Warnings of `hm` are always shown; `HM_LOG` enables more (such as `HM_LOG=debug` or
//! `HM_LOG=hm_exec::runner=trace`), and so does `-v`. While a build is shown they go through its reporter, so
//! that they do not disturb a live display.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{Mutex, PoisonError},
};

use tokio::sync::mpsc;
use tracing_chrome::{ChromeLayerBuilder, FlushGuard};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::LevelFilter,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{
    failure::{Failure, Outcome},
    reporter::{text, to_stderr},
};

/// What is logged by default. What other crates warn about becomes an error of ours, with its cause, or does
/// not matter.
const OWN_WARNINGS: &str = "off,hm=warn,hm_exec=warn,hm_exec_step=warn";

/// The destination of lines while a build is shown.
static SCREEN: Mutex<Option<mpsc::UnboundedSender<String>>> = Mutex::new(None);

/// Starts logging, and tracing to a file. The trace is complete when the guard has been dropped.
pub(crate) fn init(is_verbose: bool, trace: Option<&Path>) -> Outcome<Option<FlushGuard>> {
    let level = if is_verbose { "debug" } else { OWN_WARNINGS };
    let filter = EnvFilter::try_from_env("HM_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let Some(path) = trace else {
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).with_writer(ToScreen).init();
        return Ok(None);
    };
    let file = File::create(path).map_err(|error| {
        Failure::input(format_args!("failed to create the trace {}", path.display())).because(error)
    })?;
    let (layer, guard) = ChromeLayerBuilder::new().writer(file).include_args(true).build();
    let log = fmt::layer().without_time().with_ansi(false).with_writer(ToScreen).with_filter(filter);
    tracing_subscriber::registry().with(log).with(layer.with_filter(LevelFilter::DEBUG)).init();
    Ok(Some(guard))
}

/// Sends log lines to `screen`, until its receiver is dropped.
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
        // Names of a checkout's files may contain any characters.
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
