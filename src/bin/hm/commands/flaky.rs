//! `hm flaky`.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use hm_exec::{
    StepStatus,
    event::{self, StepRecord},
    store::Run,
};
use serde::Serialize;
use uuid::Uuid;

use super::{AnswerFormat, print, print_json, table, why::date};
use crate::{
    failure::Outcome,
    find_step::runs_of,
    reporter::{text, to_stderr},
    store,
};

/// List the steps that passed only when repeated
///
/// A step is flaky if its command failed and then passed in the same run, which takes `retries`. Looks at the
/// last runs of a directory, as far as the store has their journals.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only runs of this pipeline [default: of all pipelines]
    pipeline: Option<String>,

    /// The source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// How many of the last runs to look at
    #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,

    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

/// The answer, as `--format json` prints it.
#[derive(Debug, Default, Serialize)]
struct Answer {
    /// The number of runs whose journals were read.
    runs: usize,
    /// The number of runs whose journals were removed or are damaged.
    unreadable_runs: usize,
    /// The flaky steps, the most frequent one first.
    steps: Vec<FlakyStep>,
}

#[derive(Debug, Serialize)]
struct FlakyStep {
    pipeline: String,
    key: String,
    /// In how many runs the step was flaky.
    flaky: usize,
    /// In how many runs the step's command ended by itself or at a limit.
    ran: usize,
    /// The newest run in which the step was flaky.
    last_run: Uuid,
    /// When that run started.
    last_run_at: String,
    /// The attempt that passed in that run.
    passed_on_attempt: u32,
    /// The attempts before it whose command failed.
    failed_attempts: Vec<FailedAttempt>,
}

#[derive(Debug, Serialize)]
struct FailedAttempt {
    attempt: u32,
    exit_code: i32,
}

/// What is counted of a step.
#[derive(Default)]
struct Tally {
    flaky: usize,
    ran: usize,
    newest: Option<(Run, StepRecord)>,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = store::open()?;
    let mut runs = runs_of(&store, args.dir.as_deref(), args.pipeline.as_deref(), args.runs)?;
    // The runs of a second directory follow those of the first.
    runs.sort_by_key(|run| std::cmp::Reverse(run.started_at));
    runs.truncate(usize::try_from(args.runs).unwrap_or(usize::MAX));
    let answer = count(runs, |run| event::step_records(store.runs().dir(run.id)).ok());
    match args.format {
        AnswerFormat::Json => print_json(&answer),
        AnswerFormat::Text => {
            if answer.unreadable_runs > 0 {
                let runs = text::count(answer.unreadable_runs, "run");
                to_stderr(&format!("note: {runs} left out, whose journals were removed or are damaged"));
            }
            print(&as_text(&answer))
        }
    }
}

/// Counts flaky steps in `runs`, newest first. `steps_of` returns the steps of a run, or `None` if they
/// cannot be read.
fn count(runs: Vec<Run>, steps_of: impl Fn(&Run) -> Option<Vec<StepRecord>>) -> Answer {
    let mut answer = Answer::default();
    let mut tallies: BTreeMap<(String, String), Tally> = BTreeMap::new();
    for run in runs {
        let Some(steps) = steps_of(&run) else {
            answer.unreadable_runs += 1;
            continue;
        };
        answer.runs += 1;
        for step in steps.into_iter().filter(|step| step.status.is_some_and(has_run)) {
            let tally = tallies.entry((run.pipeline.clone(), step.key.to_string())).or_default();
            tally.ran += 1;
            if step.status == Some(StepStatus::Flaky) {
                tally.flaky += 1;
                tally.newest.get_or_insert_with(|| (run.clone(), step));
            }
        }
    }
    let steps = tallies.into_iter().filter_map(|((pipeline, key), tally)| {
        let (run, step) = tally.newest?;
        let failed = step.failed_attempts.iter();
        Some(FlakyStep {
            pipeline,
            key,
            flaky: tally.flaky,
            ran: tally.ran,
            last_run: run.id,
            last_run_at: date(run.started_at),
            passed_on_attempt: step.attempts,
            failed_attempts: failed.map(|&(attempt, exit_code)| FailedAttempt { attempt, exit_code }).collect(),
        })
    });
    answer.steps = steps.collect();
    answer.steps.sort_by_key(|step| std::cmp::Reverse(step.flaky));
    answer
}

/// Returns whether a status shows whether the step's command passes.
fn has_run(status: StepStatus) -> bool {
    use StepStatus::{Failed, FailedAllowed, Flaky, OutOfMemory, Passed, TimedOut};
    matches!(status, Passed | Flaky | Failed | FailedAllowed | TimedOut | OutOfMemory)
}

fn as_text(answer: &Answer) -> String {
    if answer.steps.is_empty() {
        return format!("no flaky steps in {}\n", text::count(answer.runs, "run"));
    }
    let rows: Vec<_> = answer.steps.iter().map(row).collect();
    table(&rows)
}

fn row(step: &FlakyStep) -> Vec<String> {
    let codes: Vec<_> = step.failed_attempts.iter().map(|failed| failed.exit_code.to_string()).collect();
    let failed = if codes.is_empty() { String::new() } else { format!("exit code {}, ", codes.join(", ")) };
    vec![
        format!("{}/{}", text::clean(&step.pipeline), text::clean(&step.key)),
        format!("flaky in {} of {}", step.flaky, text::count(step.ran, "run")),
        format!("last in run {} of {}", &step.last_run.to_string()[..8], step.last_run_at),
        format!("({failed}passed on attempt {})", step.passed_on_attempt),
    ]
}
