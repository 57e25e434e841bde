//! `hm why`.

use std::{path::PathBuf, process::ExitCode};

use chrono::DateTime;
use hm_exec::{
    StepStatus,
    cache::{CacheVerdict, Difference, Explanation, explain},
    event::{CacheMissReason, StepRecord},
    size,
};

use super::{AnswerFormat, print, print_json};
use crate::{
    failure::{Failure, Outcome},
    left::{find_run, find_step, open_store},
    render::text,
};

const LONG_HELP: &str = "\
Examples:
  hm why test                 why step `test` of the last run ran, or where its result came from
  hm why 3fa2/test            the same of an earlier run
  hm why test --format json   for programs

What goes into a step's cache key is compared with the last run before that looked the step up. Values of variables are kept
as hashes alone: only that they differ can be told.";

/// Tells why a cached step ran, or where its result came from
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
pub(crate) struct Args {
    /// The step; RUN is the beginning of a run's id, by default the last run of this directory
    #[arg(value_name = "[RUN/]STEP")]
    step: String,

    /// The source directory of the pipeline; without it, the nearest directory upwards that has `.hm/`
    #[arg(short, long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// How to print the answer
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = open_store()?;
    let (run, steps, key) = find_run(&store, &args.step, args.dir.as_deref())?;
    let step = find_step(&run, &steps, key)?;
    let explanation = explain(&store, &run, &step.key)
        .map_err(|error| Failure::infrastructure("failed to find out").because(error))?;
    match args.format {
        AnswerFormat::Json => print_json(&explanation),
        AnswerFormat::Text => print(&in_words(&explanation, &step)),
    }
}

fn in_words(explanation: &Explanation, step: &StepRecord) -> String {
    let name = text::clean(&explanation.step);
    let mut out = match &explanation.verdict {
        None => format!("{name} {}\n", uncached(step)),
        Some(CacheVerdict::Hit { run, step, created_at }) => {
            let as_step =
                if **step == *explanation.step { String::new() } else { format!(", step {}", text::clean(step)) };
            format!("{name} was found in the cache: run {}{as_step} made it on {}\n", short(run), date(*created_at))
        }
        Some(CacheVerdict::Miss { reason, message }) => {
            format!("{name} ran: {}\n", missed(explanation, *reason, message.as_deref()))
        }
    };
    tell_differences(&mut out, explanation);
    for above in &explanation.because {
        let name = text::clean(&above.step);
        match &above.verdict {
            None => out.push_str(&format!("{name} is not cached, so that it leaves something new in every run\n")),
            Some(CacheVerdict::Hit { run, created_at, .. }) => out.push_str(&format!(
                "{name} was found, but is another result than the last time: run {} made it on {}\n",
                short(run),
                date(*created_at)
            )),
            Some(CacheVerdict::Miss { reason, message }) => {
                out.push_str(&format!("{name} ran: {}\n", missed(above, *reason, message.as_deref())));
            }
        }
        tell_differences(&mut out, above);
    }
    out
}

/// Returns why a step was not looked up in the cache.
fn uncached(step: &StepRecord) -> String {
    match step.status {
        Some(StepStatus::Skipped | StepStatus::Canceled) | None => {
            "was not looked up in that run: it never started".into()
        }
        _ => format!(
            "always runs: it has no cache policy with a key, or its runner ({}) leaves nothing that the cache can keep",
            step.runner
        ),
    }
}

fn missed(explanation: &Explanation, reason: CacheMissReason, message: Option<&str>) -> String {
    let more = message.map(|message| format!(" ({})", text::clean(message))).unwrap_or_default();
    match reason {
        CacheMissReason::Expired => "what the cache has is older than the step's policy allows".into(),
        CacheMissReason::Damaged => format!("what the cache had was damaged{more}"),
        CacheMissReason::Refresh => "somebody asked for that: `--refresh` or `--no-cache`".into(),
        CacheMissReason::Unavailable => format!("the cache could not be asked{more}"),
        _ => match (explanation.compared_with, &explanation.evicted, explanation.ended_before) {
            (None, ..) => "no run before it, of those that are kept, looked it up".into(),
            (Some(run), ..) if !explanation.differences.is_empty() => {
                format!("it starts from something else than in run {}", short(&run))
            }
            (_, Some(evicted), _) => format!(
                "garbage collection took its result on {} for {}; it had {}",
                date(evicted.at),
                match evicted.cause.as_str() {
                    "size" => "the cache's size",
                    "space" => "room on the disk",
                    "age" => "its age",
                    _ => "somebody who asked for that",
                },
                size::show(evicted.bytes)
            ),
            (Some(run), None, Some(ended)) if !ended.is_success() => {
                format!("it starts from the same as in run {}, where it did not pass: nothing was kept", short(&run))
            }
            (Some(run), ..) => format!(
                "it starts from the same as in run {}, but the cache has nothing: it was emptied, or could not be written",
                short(&run)
            ),
        },
    }
}

fn tell_differences(out: &mut String, explanation: &Explanation) {
    for difference in &explanation.differences {
        let line = match difference {
            Difference::DslKey => {
                "what its cache policy looks at is another (the key that the pipeline's language computed)".into()
            }
            Difference::Project { was, is } => {
                format!("the project is {}, and was {}", text::clean(is), text::clean(was))
            }
            Difference::Inputs => {
                "what its `on_change` paths match is another: a name, a mode, a link or a content".into()
            }
            Difference::RunnerArgs => "its `runner_args` are others".into(),
            Difference::Command => "its command is another".into(),
            Difference::EnvAdded { name } => format!("variable {} is new", text::clean(name)),
            Difference::EnvRemoved { name } => format!("variable {} is gone", text::clean(name)),
            Difference::EnvChanged { name } => format!("variable {} has another value", text::clean(name)),
            Difference::Image { was, is } => {
                format!("its image is {}, and was {}", text::clean(is), text::clean(was))
            }
            Difference::ImageContent { image, was, is } => {
                format!(
                    "image {} stands for something else: {}, and was {}",
                    text::clean(image),
                    text::clean(is),
                    text::clean(was)
                )
            }
            Difference::Parent { was, is } => {
                let named = |step: &Option<String>| step.as_deref().map_or("an image".into(), text::clean);
                format!("it builds in {}, and built in {}", named(is), named(was))
            }
            Difference::ParentSnapshot { parent } => format!("{} left something new", text::clean(parent)),
            Difference::Runner { was, is } => format!("its runner is {is}, and was {was}"),
            Difference::Platform { was, is } => format!("the system is {is}, and was {was}"),
            Difference::Mode { was, is } => format!("its runner works in mode {is}, and did in {was}"),
            other => format!("{other:?}"),
        };
        out.push_str(&format!("  {line}\n"));
    }
}

fn short(run: &uuid::Uuid) -> String {
    run.to_string()[..8].to_owned()
}

fn date(ms: i64) -> String {
    let at = DateTime::from_timestamp_millis(ms);
    at.map_or_else(|| "an unknown date".into(), |at| at.format("%Y-%m-%d at %H:%M UTC").to_string())
}
