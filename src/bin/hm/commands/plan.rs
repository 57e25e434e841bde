//! `hm plan`.

mod graph;

use std::process::ExitCode;

use hm_exec::{
    RunnerSet,
    ir::EdgeKind,
    plan::{self, BoundPlan, SoftFail, StepIndex},
};
use serde::Serialize;

use self::graph::GraphFormat;
use super::{AnswerFormat, note_ignored, print, print_json};
use crate::{
    args::{BindArgs, SourceArgs},
    backend,
    config::Config,
    failure::Outcome,
    part::PartArgs,
    pipelines::{self, parse},
    reporter::{style::Style, text},
    runners::Runners,
    warnings,
};

/// Show what would run, in which order and on which runner, without running it
///
/// Fails for every reason that would make `hm run` fail before it starts a step.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,

    #[command(flatten)]
    part: PartArgs,

    #[command(flatten)]
    bind: BindArgs,

    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: AnswerFormat,

    /// Print a graph of the steps for another program
    #[arg(long, value_enum, value_name = "LANGUAGE", conflicts_with = "format")]
    graph: Option<GraphFormat>,
}

/// A plan in the form that `--format json` prints.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    pipeline: &'a str,
    timeout_seconds: Option<u64>,
    chain_count: usize,
    /// In an order in which the steps could run one by one.
    steps: Vec<ShownStep<'a>>,
}

#[derive(Debug, Serialize)]
struct ShownStep<'a> {
    key: &'a str,
    display_name: &'a str,
    #[serde(skip)]
    label: Option<&'a str>,
    chain: usize,
    runner: &'a str,
    image: Option<&'a str>,
    builds_in: Option<&'a str>,
    depends_on: Vec<&'a str>,
    timeout_seconds: Option<u64>,
    /// How often the step runs again after its command failed.
    retries: u8,
    /// Whether the build allows failures of the step: all, or those with these exit codes.
    soft_fail: ShownSoftFail<'a>,
    cmd: &'a str,
    env: &'a hm_exec::ir::Env,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ShownSoftFail<'a> {
    All(bool),
    Codes(&'a [u8]),
}

pub(crate) fn run(args: &Args) -> Outcome<ExitCode> {
    print_plan(&args.source, &args.part, &args.bind, args.format, args.graph)
}

/// Prints what a part of a pipeline would run.
pub(super) fn dry_run(
    source: &SourceArgs,
    part: &PartArgs,
    bind: &BindArgs,
    format: AnswerFormat,
) -> Outcome<ExitCode> {
    print_plan(source, part, bind, format, None)
}

/// Prints the plan of a part of a pipeline.
fn print_plan(
    source: &SourceArgs,
    part: &PartArgs,
    bind: &BindArgs,
    format: AnswerFormat,
    graph: Option<GraphFormat>,
) -> Outcome<ExitCode> {
    let found = pipelines::find(source)?;
    let definition = &found.definition;
    let plan = part.of(parse(definition)?, source, &found.dir, &definition.name)?;
    let mut options = bind.bind_options()?;
    let sources = note_ignored(&found.project, found.permissions(&plan, &options))?;
    let plan = backend::apply(plan, &mut options, &sources.backend()?)?;
    let bound = plan::bind(&plan, Runners::new(Config::default())?.descriptors(), &options)
        .map_err(|invalid| definition.invalid(&invalid))?;
    warnings::of_plan(&bound);
    let shown = show(&definition.name, &bound);
    if let Some(language) = graph {
        return print(&graph::text(&shown, language));
    }
    match format {
        AnswerFormat::Json => print_json(&shown),
        AnswerFormat::Text => print(&as_text(&shown)),
    }
}

fn show<'a>(pipeline: &'a str, bound: &'a BoundPlan) -> Shown<'a> {
    let key = |step: StepIndex| &*bound.steps[step.get()].step.key;
    let steps = bound.dag.order().iter().map(|&index| {
        let step = &bound.steps[index.get()];
        let outcomes = bound.outcomes.get(&index);
        let parents = bound.dag.parents(index);
        let builds_in = bound.dag.lineage_parent(index).map(key);
        ShownStep {
            key: key(index),
            display_name: &step.display_name,
            label: step.step.label.as_deref().map(str::trim).filter(|label| !label.is_empty()),
            chain: bound.dag.chain(index),
            runner: &bound.runners[usize::from(step.runner.0)].name,
            image: if builds_in.is_some() { None } else { step.step.image.as_deref() },
            builds_in,
            depends_on: parents
                .iter()
                .filter(|link| link.kind == EdgeKind::DependsOn)
                .map(|link| key(link.step))
                .collect(),
            timeout_seconds: step.timeout.map(|timeout| timeout.as_secs()),
            retries: outcomes.map_or(0, |rules| rules.retries),
            soft_fail: match outcomes.map(|rules| &rules.soft_fail) {
                Some(SoftFail::Codes(codes)) => ShownSoftFail::Codes(codes),
                soft_fail => ShownSoftFail::All(soft_fail == Some(&SoftFail::Any)),
            },
            cmd: &step.step.cmd,
            env: &step.env,
        }
    });
    Shown {
        pipeline,
        timeout_seconds: bound.timeout.map(|timeout| timeout.as_secs()),
        chain_count: bound.dag.chain_count(),
        steps: steps.collect(),
    }
}

fn as_text(shown: &Shown<'_>) -> String {
    let style = Style::of(&std::io::stdout());
    let mut out = format!(
        "{}: {} in {}",
        text::clean(shown.pipeline),
        text::count(shown.steps.len(), "step"),
        text::count(shown.chain_count, "chain"),
    );
    if let Some(seconds) = shown.timeout_seconds {
        out.push_str(&format!(", timeout {seconds} s"));
    }
    out.push('\n');
    for step in &shown.steps {
        let key = text::clean(step.key);
        out.push_str(&format!("\n{} on {}", style.name(&key), step.runner));
        match (step.builds_in, step.image) {
            (Some(parent), _) => out.push_str(&format!(", from step {}", style.name(&text::clean(parent)))),
            (None, Some(image)) => out.push_str(&format!(", from image {}", text::clean(image))),
            (None, None) => {}
        }
        if !step.depends_on.is_empty() {
            let waits: Vec<_> = step.depends_on.iter().map(|key| style.name(&text::clean(key))).collect();
            out.push_str(&format!(", after {}", waits.join(", ")));
        }
        if let Some(seconds) = step.timeout_seconds {
            out.push_str(&format!(", timeout {seconds} s"));
        }
        if step.retries > 0 {
            out.push_str(&format!(", retries {}", step.retries));
        }
        match &step.soft_fail {
            ShownSoftFail::All(true) => out.push_str(", may fail"),
            ShownSoftFail::All(false) => {}
            ShownSoftFail::Codes(codes) => {
                let codes: Vec<_> = codes.iter().map(u8::to_string).collect();
                out.push_str(&format!(", may fail with {}", codes.join(", ")));
            }
        }
        out.push('\n');
        for line in step.cmd.lines() {
            let line = text::clean(line);
            out.push_str(&format!("  {}\n", style.dim(&line)));
        }
    }
    out
}
