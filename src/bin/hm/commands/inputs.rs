//! `hm inputs`, and the report of `hm run --check-inputs`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use hm_exec::{
    Plan, StepResultSummary, StepStatus,
    cache::{CheckedInputs, Kinds, Reason, StepTrace, Trace, check_inputs, declared_inputs, trace_of},
    event::StepRecord,
    store::{Run, Store},
};
use serde::Serialize;
use uuid::Uuid;

use super::{AnswerFormat, print, print_json};
use crate::{
    failure::{Failure, Outcome},
    find_step::{describe, find_run, find_step, unreadable},
    reporter::{text, to_stderr},
    store,
};

const LONG_HELP: &str = "\
Examples:
  hm run --check-inputs        run the pipeline, and record what its steps read
  hm inputs test               print what step `test` read in the last run
  hm inputs 3fa2/test          the same for an earlier run
  hm inputs test --format json print JSON, with every path

Only steps in the sandbox are recorded, and only if `--check-inputs` was given. Values of variables and contents of
files are not recorded.";

/// The directory where steps see the source.
const WORKDIR: &str = "/workspace";
/// The most undeclared files of a step that `--check-inputs` names.
const MAX_NAMED: usize = 20;

/// Print what a step read: files, listings, absent paths and variables
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

/// What a step read, by kind. Paths that are not UTF-8 are shown with replacement characters.
#[derive(Debug, Default, Serialize)]
struct Answer {
    step: String,
    run: Uuid,
    /// Whether the step's result could depend on nothing else.
    complete: bool,
    not_reusable: Vec<String>,
    files: Vec<String>,
    metadata: Vec<String>,
    listings: Vec<String>,
    links: Vec<String>,
    absent: Vec<String>,
    written: Vec<String>,
    variables: Vec<String>,
}

impl Answer {
    fn of(StepTrace { run, step, trace, .. }: StepTrace) -> Self {
        let Trace { reasons, variables, entries } = trace;
        let mut answer = Self {
            step,
            run,
            complete: reasons.is_empty(),
            not_reusable: reasons.iter().map(Reason::to_string).collect(),
            variables: variables.into_iter().collect(),
            ..Self::default()
        };
        for (path, kinds) in entries {
            let path = String::from_utf8_lossy(&path).into_owned();
            let lists = [
                (Kinds::CONTENT, &mut answer.files),
                (Kinds::LISTING, &mut answer.listings),
                (Kinds::LINK, &mut answer.links),
                (Kinds::ABSENT, &mut answer.absent),
                (Kinds::WRITTEN, &mut answer.written),
            ];
            for (kind, list) in lists {
                if kinds.contains(kind) {
                    list.push(path.clone());
                }
            }
            // Everything that is read has metadata, too.
            let is_more = [Kinds::CONTENT, Kinds::LISTING, Kinds::LINK].iter().any(|kind| kinds.contains(*kind));
            if kinds.contains(Kinds::METADATA) && !is_more {
                answer.metadata.push(path);
            }
        }
        answer
    }

    fn as_text(&self) -> String {
        let mut out = format!("{} of run {} read\n", text::clean(&self.step), &self.run.to_string()[..8]);
        for (title, list) in [
            ("files", &self.files),
            ("directories listed", &self.listings),
            ("metadata only", &self.metadata),
            ("links", &self.links),
            ("looked for and absent", &self.absent),
            ("variables it had", &self.variables),
        ] {
            if !list.is_empty() {
                out.push_str(&format!("\n{title} ({}):\n", list.len()));
                list.iter().for_each(|name| out.push_str(&format!("  {}\n", text::clean(name))));
            }
        }
        if !self.not_reusable.is_empty() {
            out.push_str("\nnot all of what it depends on is known:\n");
            self.not_reusable.iter().for_each(|reason| out.push_str(&format!("  {}\n", text::clean(reason))));
        }
        out
    }
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    let store = store::open()?;
    let (run, steps, key) = find_run(&store, &args.step, args.dir.as_deref())?;
    let step = find_step(&run, &steps, key)?;
    let Some(trace) = read(&store, &run, &step)? else {
        let failure = Failure::input(format_args!(
            "what step `{}` read was not recorded in run {} ({})",
            step.key,
            &run.id.to_string()[..8],
            describe(&step)
        ));
        return Err(match step.status {
            Some(StepStatus::CacheHit) => failure.hint("run it again with `hm run --check-inputs --no-cache`"),
            _ => failure.hint(
                "run the pipeline with `--check-inputs`; only steps that end by themselves in the sandbox are recorded",
            ),
        });
    };
    let answer = Answer::of(trace);
    match args.format {
        AnswerFormat::Json => print_json(&answer),
        AnswerFormat::Text => print(&answer.as_text()),
    }
}

fn read(store: &Store, run: &Run, step: &StepRecord) -> Outcome<Option<StepTrace>> {
    trace_of(store, run, &step.key).map_err(|error| {
        Failure::infrastructure(format_args!("failed to read what step `{}` read", step.key)).because(error)
    })
}

/// Returns the paths of `on_change` of the plan's steps, by key.
pub(super) fn declared(plan: &Plan) -> BTreeMap<String, Vec<String>> {
    let steps = plan.pipeline().nodes.iter().map(|node| &node.step);
    steps.filter_map(|step| Some((step.key.to_string(), declared_inputs(step)?))).collect()
}

/// Prints how what the steps of a run read compares with what they declare.
pub(super) fn report(
    (store, run): (&Store, Uuid),
    declared: &BTreeMap<String, Vec<String>>,
    steps: &[StepResultSummary],
    source: &Path,
) -> Outcome<()> {
    let Some(run) = store.runs().find(&run.to_string()).map_err(unreadable)?.pop() else { return Ok(()) };
    if declared.is_empty() {
        to_stderr(
            "inputs: no step has `on_change`, so there is nothing to compare; `hm inputs STEP` prints what it read",
        );
    }
    for (key, patterns) in declared {
        let trace = trace_of(store, &run, key)
            .map_err(|error| Failure::infrastructure("failed to read a step's trace").because(error))?;
        let step = steps.iter().find(|step| *step.key == **key);
        let has_passed = step.is_some_and(|step| matches!(step.status, StepStatus::Passed | StepStatus::CacheHit));
        let key = text::clean(key);
        let Some(StepTrace { trace, .. }) = trace else {
            to_stderr(&format!(
                "inputs of {key}: not recorded: it was found in the cache, did not end by itself, or did not run in the \
                 sandbox"
            ));
            continue;
        };
        let CheckedInputs { undeclared, unused, .. } = check_inputs(&trace, patterns, WORKDIR, source);
        for reason in &trace.reasons {
            to_stderr(&format!("inputs of {key}: may be incomplete: {}", text::clean(&reason.to_string())));
        }
        for path in undeclared.iter().take(MAX_NAMED) {
            let path = text::clean(&path.to_string_lossy());
            to_stderr(&format!("inputs of {key}: read {path}, which its `on_change` does not match"));
        }
        if undeclared.len() > MAX_NAMED {
            let more = undeclared.len() - MAX_NAMED;
            to_stderr(&format!("inputs of {key}: and {more} further files (`hm inputs {key}` prints all)"));
        }
        // A step that failed may have read the rest later, and what is not recorded may be read.
        let is_all = has_passed && trace.reasons.is_empty();
        for pattern in unused.iter().filter(|_| is_all) {
            let pattern = text::clean(pattern);
            to_stderr(&format!("inputs of {key}: read nothing that `{pattern}` of its `on_change` matches"));
        }
        if is_all && undeclared.is_empty() && unused.is_empty() {
            to_stderr(&format!("inputs of {key}: its `on_change` matches the files that it read"));
        }
    }
    Ok(())
}
