//! Runs as traces for collectors that speak OTLP, OpenTelemetry's protocol, over HTTP.
//!
//! Input: the journal of a run that has ended, and the collector that the user names. Output: a trace with
//! the run's steps, and at most one warning. None of this happens during a run. See docs/design/reports.md.

mod messages;
mod send;
mod settings;
mod spans;

use std::time::Duration;

use hm_exec::store::Store;
use uuid::Uuid;

pub(crate) use self::{
    send::{Sent, send},
    settings::Settings,
    spans::Trace,
};
use crate::{
    failure::{Failure, Outcome},
    find_step::{record_of, unreadable},
    reporter::{text, to_stderr},
    runtime::runtime,
    signals::Interrupts,
};

/// How long the end of a cancelled run may wait for the collector.
const CANCELLED_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends a run that has just ended to the collector that the user names, if one is named. A problem is only a
/// warning, because the result of the run is known. After a cancelled run, the time limit is shorter.
pub(crate) fn export(store: &Store, run: Uuid, file: Option<&str>, is_cancelled: bool) {
    match Settings::of_user(file) {
        Ok(None) => {}
        Ok(Some(settings)) if !settings.is_sampled() => {}
        Ok(Some(mut settings)) => {
            if is_cancelled {
                settings.timeout = settings.timeout.min(CANCELLED_TIMEOUT);
            }
            if let Err(failure) = sent(store, run, &settings) {
                failure.hint(format_args!("run `hm report {} --otlp` to send it later", &run.to_string()[..8])).warn();
            }
        }
        Err(failure) => failure.warn(),
    }
}

fn sent(store: &Store, run: Uuid, settings: &Settings) -> Outcome<()> {
    // A build of another machine may not be recorded.
    let Some(run) = store.runs().get(run).map_err(unreadable)? else { return Ok(()) };
    let record = record_of(store, &run)?;
    let sent = send_now(settings, &Trace::new(run.id, &record, settings))?;
    warn_of_rejected(settings, &sent);
    Ok(())
}

/// Sends a trace. An interrupt ends the wait.
pub(crate) fn send_now(settings: &Settings, trace: &Trace<'_>) -> Outcome<Sent> {
    let runtime = runtime()?;
    let sent = runtime.block_on(async {
        let mut interrupts = Interrupts::listen()?;
        tokio::select! {
            sent = send(settings, trace) => sent,
            () = interrupts.next() => {
                let what = format_args!("failed to send the trace of the run to {}", settings.place());
                Err(Failure::infrastructure(what).because(anyhow::anyhow!("interrupted")))
            }
        }
    });
    // A resolver of names may hang.
    runtime.shutdown_background();
    sent
}

/// Prints a warning about spans that the collector did not keep.
pub(crate) fn warn_of_rejected(settings: &Settings, sent: &Sent) {
    if sent.rejected > 0 || !sent.message.is_empty() {
        let colon = if sent.message.is_empty() { "" } else { ": " };
        to_stderr(&format!(
            "warning: {} rejected {} of {}{colon}{}",
            settings.place(),
            sent.rejected,
            text::count(sent.spans, "span"),
            sent.message
        ));
    }
}
