//! Finds the run and the step that `[RUN/]STEP` names: by key, or by label if no step has such a key.

use std::{collections::BTreeSet, path::Path};

use hm_exec::{
    StepStatus,
    event::{self, RunRecord, StepRecord},
    store::{Run, Store, StoreError},
};

use crate::{
    args::existing_dir,
    failure::{Failure, Outcome},
    pipelines::{Source, nearest},
};

/// How many of a directory's runs are searched for a step. The last run of each pipeline is among them.
const RUNS: u32 = 100;

/// How many of the runs before the last one of each pipeline are searched for a step that these do not have.
const EARLIER: usize = 20;

pub(crate) fn unreadable(error: StoreError) -> Failure {
    Failure::infrastructure("failed to read the store").because(error)
}

/// Returns the run that `text` names, its steps, and the part of the text after the run.
pub(crate) fn find_run<'a>(
    store: &Store,
    text: &'a str,
    dir: Option<&Path>,
) -> Outcome<(Run, Vec<StepRecord>, &'a str)> {
    find_record(store, text, dir).map(|(run, record, rest)| (run, record.steps, rest))
}

/// Returns the run that `text` names, its record, and the part of the text after the run.
pub(crate) fn find_record<'a>(store: &Store, text: &'a str, dir: Option<&Path>) -> Outcome<(Run, RunRecord, &'a str)> {
    let head = text.split_once(':').map_or(text, |(head, _)| head);
    if let Some((prefix, _)) = head.split_once('/').filter(|(prefix, _)| is_id(prefix)) {
        let rest = &text[prefix.len() + 1..];
        let run = run_with_id(store, prefix)?.ok_or_else(|| {
            Failure::input(format_args!("no run with id prefix `{prefix}`")).hint(
                "run `hm runs` to list the runs of this directory; without `RUN/`, its last run is used. Garbage \
                 collection removes old runs",
            )
        })?;
        let record = record_of(store, &run)?;
        return Ok((run, record, rest));
    }
    let mut newest = None;
    let mut with_label = None;
    let mut unread = None;
    let (last, earlier) = last_of_each_pipeline(store, dir)?;
    let is_it = |name: &str| text.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
    for run in last {
        // One damaged journal does not hide the other runs.
        let record = match record_of(store, &run) {
            Ok(record) => record,
            Err(failure) => {
                if newest.is_none() {
                    unread.get_or_insert(failure);
                }
                continue;
            }
        };
        if record.steps.iter().any(|step| is_it(&step.key)) {
            return Ok((run, record, text));
        }
        if with_label.is_none() && record.steps.iter().any(|step| is_it(&step.display_name)) {
            with_label = Some((run, record, text));
        } else {
            newest.get_or_insert((run, record, text));
        }
    }
    // The last run of a pipeline may have been one of a part.
    if with_label.is_none() && !text.is_empty() && !is_id(text) {
        for run in earlier.into_iter().take(EARLIER) {
            let Ok(record) = record_of(store, &run) else { continue };
            if record.steps.iter().any(|step| is_it(&step.key) || is_it(&step.display_name)) {
                return Ok((run, record, text));
            }
        }
    }
    // If nothing has the name, the newest run is the result, and that may be one that cannot be read.
    if let (None, Some(failure)) = (&with_label, unread) {
        return Err(failure);
    }
    with_label.or(newest).ok_or_else(|| {
        let dir = Source::locate(dir).map_or_else(|_| Path::new(".").to_owned(), |source| source.dir);
        Failure::input(format_args!("no runs of pipelines in {}", dir.display()))
            .hint("run a pipeline first, set its source directory with `-d DIR`, or name a run, as in `RUN/STEP`")
    })
}

/// Returns the last run of each pipeline of a directory, and the other runs, both newest first.
fn last_of_each_pipeline(store: &Store, dir: Option<&Path>) -> Outcome<(Vec<Run>, Vec<Run>)> {
    let mut pipelines = BTreeSet::new();
    let runs = runs_of(store, dir, None, RUNS)?.into_iter();
    Ok(runs.partition(|run| pipelines.insert(run.pipeline.clone())))
}

/// Returns whether `text` can be the beginning of a run's id.
fn is_id(text: &str) -> bool {
    text.len() >= 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Returns the run whose id begins with `text`, if `text` can be the beginning of an id and there is such a
/// run.
pub(crate) fn run_with_id(store: &Store, text: &str) -> Outcome<Option<Run>> {
    if !is_id(text) {
        return Ok(None);
    }
    let mut found = store.runs().find(text).map_err(unreadable)?;
    if found.len() > 1 {
        return Err(Failure::input(format_args!("several runs have id prefix `{text}`"))
            .details(found.iter().map(|run| format!("{} ({})", run.id, run.pipeline)))
            .hint("use a longer prefix"));
    }
    Ok(found.pop())
}

/// Returns the runs of the source directory to which `dir` belongs, newest first, and those of `dir` itself.
/// There are at most `limit` of each. If a pipeline is named, returns only its runs.
pub(crate) fn runs_of(store: &Store, dir: Option<&Path>, pipeline: Option<&str>, limit: u32) -> Outcome<Vec<Run>> {
    let here = existing_dir(dir.unwrap_or(Path::new(".")))?;
    let dirs = [Source::locate(dir)?.dir, here];
    let mut runs = Vec::new();
    for dir in if dirs[0] == dirs[1] { &dirs[..1] } else { &dirs[..] } {
        runs.extend(store.runs().of(dir, pipeline, limit).map_err(unreadable)?);
    }
    // The runs of the second directory are not all older than those of the first.
    runs.sort_by_key(|run| std::cmp::Reverse(run.started_at));
    Ok(runs)
}

/// Returns the last run of a directory, and its steps.
pub(crate) fn last_run(store: &Store, dir: Option<&Path>) -> Outcome<(Run, Vec<StepRecord>)> {
    // No step has an empty key, so the newest run is the result.
    find_run(store, "", dir).map(|(run, steps, _)| (run, steps))
}

pub(crate) fn steps_of(store: &Store, run: &Run) -> Outcome<Vec<StepRecord>> {
    record_of(store, run).map(|record| record.steps)
}

pub(crate) fn record_of(store: &Store, run: &Run) -> Outcome<RunRecord> {
    event::run_record(store.runs().dir(run.id)).map_err(|error| {
        Failure::infrastructure(format_args!("failed to read the journal of run {}", run.id))
            .because(error)
            .hint("it may have been removed by garbage collection: run the pipeline again")
    })
}

pub(crate) fn find_step(run: &Run, steps: &[StepRecord], key: &str) -> Outcome<StepRecord> {
    let by_key = steps.iter().find(|step| &*step.key == key);
    let with_label: Vec<&StepRecord> = steps.iter().filter(|step| &*step.display_name == key).collect();
    match (by_key, &with_label[..]) {
        (Some(step), _) => return Ok(step.clone()),
        (None, [step]) => return Ok((*step).clone()),
        (None, []) => {}
        (None, several) => return Err(ambiguous(key, several.iter().map(|step| &*step.key))),
    }
    let keys: Vec<String> = steps.iter().map(|step| step.key.to_string()).collect();
    let failure = Failure::input(format_args!(
        "no step named `{key}` in run {} of pipeline `{}`",
        &run.id.to_string()[..8],
        run.pipeline
    ));
    let failure = match is_id(key) {
        true => failure.details(["no run's id begins with it, either: run `hm runs` to list the runs"]),
        false => failure,
    };
    let known = if keys.len() > 20 { format!("{}, ...", keys[..20].join(", ")) } else { keys.join(", ") };
    Err(match nearest(key, &keys) {
        Some(near) => failure.hint(format_args!("did you mean `{near}`? (steps: {known})")),
        None => failure.hint(format_args!("steps: {known}")),
    })
}

/// Returns the failure for a label of several steps.
pub(crate) fn ambiguous<'a>(label: &str, keys: impl Iterator<Item = &'a str>) -> Failure {
    Failure::input(format_args!("several steps have the label `{label}`"))
        .details(keys)
        .hint("name one of them by its key")
}

/// Describes how a step ended, for the user.
pub(crate) fn describe(step: &StepRecord) -> String {
    let code = || step.exit_code.unwrap_or(-1);
    match step.status {
        None => "not ended".into(),
        Some(StepStatus::Passed) => "passed".into(),
        Some(StepStatus::Flaky) => format!("flaky, passed on attempt {}", step.attempts),
        Some(StepStatus::CacheHit) => "passed, cached".into(),
        Some(StepStatus::Failed) => format!("failed with exit code {}", code()),
        Some(StepStatus::FailedAllowed) => format!("failed (allowed) with exit code {}", code()),
        Some(StepStatus::Skipped) => "skipped".into(),
        Some(StepStatus::Canceled) => "cancelled".into(),
        Some(StepStatus::TimedOut) => "timed out".into(),
        Some(StepStatus::OutOfMemory) => "out of memory".into(),
        Some(StepStatus::Infrastructure) => "could not run".into(),
        Some(other) => format!("{other:?}").to_lowercase(),
    }
}
