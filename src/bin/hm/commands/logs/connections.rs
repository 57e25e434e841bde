//! `hm logs --network`: the connections of steps.

use std::{
    collections::BTreeSet,
    io::{self, BufWriter, ErrorKind, Write},
    process::ExitCode,
    time::Duration,
};

use hm_exec::{
    event::{self, Connection, ConnectionRecord, StepRecord},
    plan::StepIndex,
    size,
    store::{Run, Store},
};

use super::super::AnswerFormat;
use crate::{
    failure::{Failure, Outcome},
    reporter::{text, to_stderr},
};

/// Prints the connections of one step, or of all.
pub(super) fn show(
    store: &Store,
    run: &Run,
    steps: &[StepRecord],
    step: Option<&StepRecord>,
    format: AnswerFormat,
) -> Outcome<ExitCode> {
    let index = step.and_then(|step| steps.iter().position(|known| known.key == step.key));
    let index = index.and_then(|at| u32::try_from(at).ok()).map(StepIndex);
    let mut stdout = BufWriter::new(io::stdout().lock());
    let (mut shown, mut count) = (Ok(()), 0_u64);
    let read = event::connections(store.runs().dir(run.id), index, |record| {
        let line = match format {
            AnswerFormat::Text => connection_line(&record, step.is_none()),
            AnswerFormat::Json => serde_json::to_string(&record).unwrap_or_default(),
        };
        shown = writeln!(stdout, "{line}");
        count += 1;
        shown.is_ok()
    });
    read.map_err(|error| {
        Failure::infrastructure(format_args!("failed to read the journal of run {}", run.id)).because(error)
    })?;
    match shown.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::infrastructure("failed to write to stdout").because(error))
        }
        _ => {
            let chosen = steps.iter().filter(|known| step.is_none_or(|step| known.key == step.key));
            let without: BTreeSet<&str> =
                chosen.map(|known| &*known.runner).filter(|name| records_none(name)).collect();
            if count == 0 && !without.is_empty() {
                let names: Vec<_> = without.iter().map(|name| format!("`{name}`")).collect();
                to_stderr(&format!("note: connections of steps on {} are not recorded", names.join(" and ")));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Returns whether the runner with this name does not see the connections of its steps.
pub(in crate::commands) fn records_none(runner: &str) -> bool {
    matches!(runner, "cloud" | "docker" | "process")
}

/// Returns a connection as a line: when it ended, whereto, how it ended, and what was passed on.
fn connection_line(record: &ConnectionRecord, with_step: bool) -> String {
    let Connection { protocol, address, end, sent, received, duration_ms, count, .. } = record.connection;
    let mut line = record.ts.format("%H:%M:%S%.3f").to_string();
    if with_step {
        line.push_str(&format!("  {}", text::clean(&record.step)));
    }
    if record.attempt > 1 {
        line.push_str(&format!("  attempt {}", record.attempt));
    }
    line.push_str(&format!("  {protocol}  {}", text::clean(&record.connection.destination())));
    if let (Some(_), Some(address)) = (&record.connection.host, address) {
        line.push_str(&format!(" ({address})"));
    }
    line.push_str(&format!("  {end}"));
    if let Some(reason) = &record.connection.reason {
        line.push_str(&format!(": {}", text::clean(reason)));
    }
    if sent > 0 || received > 0 {
        let took = text::duration(Duration::from_millis(duration_ms));
        line.push_str(&format!("  sent {}, received {} in {took}", size::show(sent), size::show(received)));
    }
    if count > 1 {
        line.push_str(&format!("  ({count} connections)"));
    }
    line
}
