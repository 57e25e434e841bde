//! `hm why`.

use std::{path::PathBuf, process::ExitCode};

use chrono::DateTime;
use hm_exec::{
    StepStatus,
    cache::{CacheMode, CacheVerdict, Difference, Explanation, explain},
    event::{CacheMissReason, StepRecord},
    size,
};

use super::{AnswerFormat, print, print_json};
use crate::{
    failure::{Failure, Outcome},
    find_step::{find_run, find_step},
    reporter::text,
    store,
};

const LONG_HELP: &str = "\
Examples:
  hm why test                 explain the result of step `test` of the last run
  hm why 3fa2/test            the same for an earlier run
  hm why test --format json   print JSON

The parts of the step's cache key are compared with those of the previous run that looked up the step. Values of
variables are stored as hashes, so only the names of changed variables are shown.";

/// Explain why a step ran, or where its cached result came from
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub(crate) struct Args {
    /// The step; RUN is a prefix of a run's id [default: the last run of this directory]
    #[arg(value_name = "[RUN/]STEP")]
    step: String,

    /// The pipeline's source directory [default: the nearest directory with `.hm/`, searched upwards]
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = store::open()?;
    let (run, steps, key) = find_run(&store, &args.step, args.dir.as_deref())?;
    let step = find_step(&run, &steps, key)?;
    let explanation = explain(&store, &run, &step.key)
        .map_err(|error| Failure::infrastructure("failed to explain the result").because(error))?;
    match args.format {
        AnswerFormat::Json => print_json(&explanation),
        AnswerFormat::Text => print(&as_text(&explanation, &step)),
    }
}

pub(super) fn as_text(explanation: &Explanation, step: &StepRecord) -> String {
    let name = text::clean(&explanation.step);
    let mut out = match &explanation.verdict {
        None => format!("{name}: not cached: {}\n", why_not_looked_up(explanation, step)),
        Some(CacheVerdict::Hit { run, step, created_at }) => {
            let as_step =
                if **step == *explanation.step { String::new() } else { format!(" as step {}", text::clean(step)) };
            let by = if explanation.by_trace { ", found by what it read" } else { "" };
            format!("{name}: cache hit{by}: created by run {}{as_step} on {}\n", short(run), date(*created_at))
        }
        Some(CacheVerdict::Miss { reason, message }) => {
            format!("{name}: cache miss: {}\n", why_missed(explanation, *reason, message.as_deref()))
        }
    };
    push_differences(&mut out, explanation);
    for above in &explanation.because {
        let name = text::clean(&above.step);
        match &above.verdict {
            None => out.push_str(&format!("{name}: not cached: its result is new in every run\n")),
            Some(CacheVerdict::Hit { run, created_at, .. }) => out.push_str(&format!(
                "{name}: cache hit, but a different result than before: created by run {} on {}\n",
                short(run),
                date(*created_at)
            )),
            Some(CacheVerdict::Miss { reason, message }) => {
                let why = why_missed(above, *reason, message.as_deref());
                out.push_str(&format!("{name}: cache miss: {why}\n"));
            }
        }
        push_differences(&mut out, above);
    }
    out
}

fn why_not_looked_up(explanation: &Explanation, step: &StepRecord) -> String {
    match step.status {
        None => "it has not ended".into(),
        Some(StepStatus::Skipped | StepStatus::Canceled) => "it did not run".into(),
        _ if explanation.own_mode == Some(CacheMode::Off) => "its argument `cache` is `off`".into(),
        _ if explanation.run_mode == CacheMode::Off => "the cache mode of the run was `off`".into(),
        // The only runner of `hm` whose steps are never looked up.
        _ if *step.runner == *"process" => "its runner, `process`, creates no snapshots that can be cached".into(),
        _ if explanation.run_mode == CacheMode::Auto && explanation.own_mode == Some(CacheMode::Declared) => {
            "it has no cache policy with a key, and its argument `cache` is `declared`".into()
        }
        _ => "it has no cache policy with a key".into(),
    }
}

fn why_missed(explanation: &Explanation, reason: CacheMissReason, message: Option<&str>) -> String {
    let more = message.map(|message| format!(" ({})", text::clean(message))).unwrap_or_default();
    match reason {
        CacheMissReason::Expired => "the cached result is older than the step's cache policy allows".into(),
        CacheMissReason::Damaged => format!("the cached result was damaged{more}"),
        CacheMissReason::Refresh => "requested by `--refresh` or `--no-cache`".into(),
        CacheMissReason::Unavailable => format!("the cache could not be read{more}"),
        _ if explanation.by_trace && message.is_some() => text::clean(message.unwrap_or_default()),
        _ if explanation.by_trace && explanation.differences.is_empty() => match explanation.compared_with {
            None => "no earlier run in the store looked it up".into(),
            Some(run) => format!(
                "the result of run {} was not kept, or is gone: `hm inputs {}` prints what it read, and why that cannot \
                 be compared",
                short(&run),
                text::clean(&explanation.step)
            ),
        },
        _ => match (explanation.compared_with, &explanation.evicted, explanation.ended_before) {
            (None, ..) => "no earlier run in the store looked it up".into(),
            (Some(run), ..) if !explanation.differences.is_empty() => {
                format!("its cache key differs from run {}", short(&run))
            }
            (_, Some(evicted), _) => format!(
                "its cached result ({}) was removed by garbage collection on {}: {}",
                size::show(evicted.bytes),
                date(evicted.at),
                match evicted.cause.as_str() {
                    "size" => "the store was larger than its limit",
                    "space" => "the disk was low on space",
                    "age" => "it was not used for too long",
                    _ => "requested by the user",
                },
            ),
            (Some(run), None, Some(ended)) if !ended.is_success() => {
                format!("its cache key is the same as in run {}, but it did not pass there", short(&run))
            }
            (Some(run), ..) => format!(
                "its cache key is the same as in run {}, but the cache has no result: it was cleaned, or could not be \
                 written",
                short(&run)
            ),
        },
    }
}

fn push_differences(out: &mut String, explanation: &Explanation) {
    for different in causes(&explanation.differences) {
        out.push_str(&format!("  {}\n", difference(different)));
    }
}

/// Returns the differences that are causes. Languages compute the key of a policy from other parts of the
/// step, and from files, so that it counts only if nothing else differs.
pub(super) fn causes(differences: &[Difference]) -> Vec<&Difference> {
    let others: Vec<&Difference> = differences.iter().filter(|it| **it != Difference::DslKey).collect();
    if others.is_empty() { differences.iter().collect() } else { others }
}

/// Describes what differs from an earlier run.
pub(super) fn difference(difference: &Difference) -> String {
    match difference {
        Difference::DslKey => "the key of its cache policy changed, which the pipeline computes".into(),
        Difference::Project { was, is } => changed("the project", was, is),
        Difference::SourceTimes { was, is } => changed("`times` of [source] in hm.toml", was.as_str(), is.as_str()),
        Difference::SourceIgnore => "`ignore` of [source] in hm.toml changed".into(),
        Difference::Inputs => "files that match its `on_change` paths changed".into(),
        Difference::InputFiles { paths } => match &**paths {
            [] => self::difference(&Difference::Inputs),
            [only] => format!("{} changed", text::clean(only)),
            [first, rest @ ..] => {
                format!("{} and {} changed", text::clean(first), text::count(rest.len(), "other file"))
            }
        },
        Difference::StepInput { step, path } => format!("its input {} changed", input(step, path)),
        Difference::StepInputAdded { step, path } => format!("the input {} was added", input(step, path)),
        Difference::StepInputRemoved { step, path } => format!("the input {} was removed", input(step, path)),
        Difference::RunnerArgs => "its `runner_args` changed".into(),
        Difference::Command => "its command changed".into(),
        Difference::EnvAdded { name } => format!("variable {} was added", text::clean(name)),
        Difference::EnvRemoved { name } => format!("variable {} was removed", text::clean(name)),
        Difference::EnvChanged { name } => format!("the value of variable {} changed", text::clean(name)),
        Difference::Image { was, is } => changed("its image", was, is),
        Difference::ImageContent { image, was, is } => {
            changed(&format!("the content of image {}", text::clean(image)), was, is)
        }
        Difference::Parent { was, is } => {
            let named = |step: &Option<String>| step.as_deref().map_or_else(|| "an image".into(), text::clean);
            changed("its parent", &named(was), &named(is))
        }
        Difference::ParentSnapshot { parent } => format!("the result of {} changed", text::clean(parent)),
        Difference::Runner { was, is } => changed("its runner", was, is),
        Difference::Platform { was, is } => changed("the platform", was, is),
        Difference::Mode { was, is } => changed("its runner's mode", was, is),
        other => format!("{other:?}"),
    }
}

fn input(step: &str, path: &str) -> String {
    text::clean(&format!("{step}:{path}"))
}

fn changed(what: &str, was: &str, is: &str) -> String {
    format!("{what} changed from {} to {}", text::clean(was), text::clean(is))
}

fn short(run: &uuid::Uuid) -> String {
    run.to_string()[..8].to_owned()
}

pub(super) fn date(ms: i64) -> String {
    let at = DateTime::from_timestamp_millis(ms);
    at.map_or_else(|| "an unknown date".into(), |at| at.format("%Y-%m-%d at %H:%M UTC").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_computed_key_is_a_cause_only_if_nothing_else_is() {
        let files = Difference::InputFiles { paths: vec!["a".into()] };
        assert_eq!(causes(&[Difference::DslKey, files.clone()]), [&files]);
        assert_eq!(causes(&[Difference::DslKey]), [&Difference::DslKey]);
        assert_eq!(causes(&[]), [&files; 0]);
    }
}
