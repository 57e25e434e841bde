//! `hm runs`.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode, time::Duration};

use chrono::{DateTime, Utc};
use hm_exec::{
    BuildStatus, StepStatus,
    event::{self, StepRecord},
    store::{Run, Store},
};
use serde::Serialize;
use uuid::Uuid;

use super::{AnswerFormat, print, print_json, table, why::date};
use crate::{
    failure::{Failure, Outcome},
    find_step::{runs_of, steps_of},
    pipelines::nearest,
    reporter::{style::Style, text},
    store,
};

const LONG_HELP: &str = "\
Examples:
  hm runs                     list the last runs of this directory
  hm runs ci -n 5             list the last five runs of pipeline `ci`
  hm logs 3fa2                list the steps of the run whose id begins with 3fa2
  hm logs 3fa2/test           print the output of one of them";

/// List the last runs of a directory, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = LONG_HELP)]
pub(crate) struct Args {
    /// Only runs of this pipeline [default: of all pipelines]
    pipeline: Option<String>,

    /// The source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// How many runs to list
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,

    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

/// How many runs are searched for names of pipelines.
const SEARCHED: u32 = 1000;

/// A run, as `--format json` prints it.
#[derive(Debug, Serialize)]
struct ShownRun {
    run: Uuid,
    pipeline: String,
    result: RunResult,
    started_at: DateTime<Utc>,
    /// How long it took, or has been running. `None` if it was interrupted, or if the clock went back.
    duration_ms: Option<u64>,
    /// The keys of the failed steps, in the order of the plan. `None` if its journal is gone.
    failed_steps: Option<Vec<String>>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RunResult {
    Passed,
    Failed,
    TimedOut,
    Cancelled,
    CouldNotRun,
    Running,
    /// hm was killed.
    Interrupted,
}

impl RunResult {
    pub(super) fn of(store: &Store, run: &Run) -> Self {
        let is = |status: BuildStatus| run.exit_code == Some(status.exit_code());
        match run.exit_code {
            // Without a journal there is nothing that still runs.
            None if event::is_running(store.runs().dir(run.id)).unwrap_or(false) => Self::Running,
            None => Self::Interrupted,
            _ if is(BuildStatus::Passed) => Self::Passed,
            _ if is(BuildStatus::TimedOut) => Self::TimedOut,
            _ if is(BuildStatus::Canceled) => Self::Cancelled,
            _ if is(BuildStatus::Infrastructure) => Self::CouldNotRun,
            _ => Self::Failed,
        }
    }

    fn text(self, style: Style) -> String {
        match self {
            Self::Passed => style.good("passed"),
            Self::Failed => style.bad("failed"),
            Self::TimedOut => style.bad("timed out"),
            Self::Cancelled => style.odd("cancelled"),
            Self::CouldNotRun => style.bad("could not run"),
            Self::Running => style.name("running"),
            Self::Interrupted => style.odd("interrupted"),
        }
    }
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = store::open()?;
    let mut runs = runs_of(&store, args.dir.as_deref(), args.pipeline.as_deref(), args.runs)?;
    // For programs, an empty list says it all.
    if let Some(name) = args.pipeline.as_deref().filter(|_| runs.is_empty() && args.format == AnswerFormat::Text) {
        return Err(no_runs_of(name, &runs_of(&store, args.dir.as_deref(), None, SEARCHED)?));
    }
    // The runs of a second directory follow those of the first.
    runs.sort_by_key(|run| std::cmp::Reverse(run.started_at));
    runs.truncate(usize::try_from(args.runs).unwrap_or(usize::MAX));
    let now = Utc::now();
    let shown: Vec<ShownRun> = runs.iter().map(|run| show(&store, run, now)).collect();
    match args.format {
        AnswerFormat::Json => print_json(&shown),
        AnswerFormat::Text if shown.is_empty() => print("no runs\n"),
        AnswerFormat::Text => {
            let style = Style::of(&std::io::stdout());
            let rows: Vec<_> = shown.iter().map(|run| row(run, now, style)).collect();
            print(&table(&rows))
        }
    }
}

/// Returns the failure for a pipeline without runs, in a directory with these.
fn no_runs_of(name: &str, runs: &[Run]) -> Failure {
    let failure = Failure::input(format_args!("no runs of pipeline `{name}` in this directory"));
    let known: BTreeSet<&String> = runs.iter().map(|run| &run.pipeline).collect();
    let known: Vec<String> = known.into_iter().cloned().collect();
    match nearest(name, &known) {
        Some(near) => failure.hint(format_args!("did you mean `{near}`? (pipelines with runs: {})", known.join(", "))),
        None if known.is_empty() => failure.hint("no pipeline has run here: set the directory with `-d DIR`"),
        None => failure.hint(format_args!("pipelines with runs: {}", known.join(", "))),
    }
}

fn show(store: &Store, run: &Run, now: DateTime<Utc>) -> ShownRun {
    let result = RunResult::of(store, run);
    let end = match result {
        RunResult::Running => Some(now.timestamp_millis()),
        _ => run.ended_at,
    };
    ShownRun {
        run: run.id,
        pipeline: run.pipeline.clone(),
        result,
        started_at: DateTime::from_timestamp_millis(run.started_at).unwrap_or_default(),
        duration_ms: end.and_then(|end| u64::try_from(end - run.started_at).ok()),
        failed_steps: steps_of(store, run).ok().map(|steps| failed(&steps)),
    }
}

/// Returns the keys of failed steps.
fn failed(steps: &[StepRecord]) -> Vec<String> {
    use StepStatus::{Failed, Infrastructure, OutOfMemory, TimedOut};
    let is_failed = |step: &&StepRecord| matches!(step.status, Some(Failed | TimedOut | OutOfMemory | Infrastructure));
    steps.iter().filter(is_failed).map(|step| step.key.to_string()).collect()
}

fn row(run: &ShownRun, now: DateTime<Utc>, style: Style) -> Vec<String> {
    let took = run.duration_ms.map_or_else(|| "-".into(), |ms| text::duration(Duration::from_millis(ms)));
    let failed = match run.failed_steps.as_deref() {
        None => "(its journal was removed)".into(),
        Some([]) => String::new(),
        Some([only]) => text::clean(only),
        Some([first, rest @ ..]) => format!("{} and {} more", text::clean(first), rest.len()),
    };
    vec![
        style.name(&run.run.to_string()[..8]),
        text::clean(&run.pipeline),
        run.result.text(style),
        ago(run.started_at, now),
        took,
        failed,
    ]
}

/// Describes when something was: how long ago, if that is less than a day.
fn ago(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    match (now - at).num_seconds() {
        seconds @ 0..60 => format!("{seconds}s ago"),
        seconds @ 60..3600 => format!("{}m ago", seconds / 60),
        seconds @ 3600..86_400 => format!("{}h ago", seconds / 3600),
        // The clock may have gone back, too.
        _ => date(at.timestamp_millis()),
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn the_time_of_a_run_is_as_precise_as_useful() {
        let now = DateTime::from_timestamp_millis(1_800_000_000_000).unwrap();
        let of = |seconds| ago(now - TimeDelta::seconds(seconds), now);
        assert_eq!([of(0), of(59), of(60), of(7199), of(86_399)], ["0s ago", "59s ago", "1m ago", "1h ago", "23h ago"]);
        assert_eq!(of(86_400), "2027-01-14 at 08:00 UTC");
        assert_eq!(of(-5), "2027-01-15 at 08:00 UTC");
    }
}
