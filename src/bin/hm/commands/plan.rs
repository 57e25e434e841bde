//! `hm plan`.

mod forecast;
mod graph;
mod tree;

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use hm_exec::{
    Plan, RunnerSet,
    cache::{CacheMode, Prediction},
    ir::EdgeKind,
    plan::{self, BindOptions, BoundPlan, PlannedInput, SoftFail, StepIndex},
};
use serde::Serialize;
use serde_json::Value;

use self::{forecast::Forecast, graph::GraphFormat};
use super::{AnswerFormat, note_ignored, print, print_json};
use crate::{
    args::{BindArgs, SourceArgs},
    backend,
    config::Config,
    failure::Outcome,
    part::PartArgs,
    pipelines::{self, RenderCache, parse},
    reporter::style::Style,
    runners::Runners,
    warnings,
};

/// Show what would run, in which order and on which runner, without running it
///
/// Shows for each step whether its result is in the cache. If it is not, shows why the step would run, and
/// how long it took the last time. Fails for every reason that would make `hm run` fail before it starts a
/// step. With `-v`, shows the command and the arguments of each step, and where the arguments came from.
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
    /// How long the run takes at least, if all times are known.
    expected_ms: Option<u64>,
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
    /// Which of the step's results are reused at most, if it is limited.
    cache: Option<CacheMode>,
    /// The files of other steps that the step gets.
    inputs: Vec<ShownInput<'a>>,
    /// The arguments of the step, by name: from the pipeline, from files and from options.
    arguments: BTreeMap<String, ShownArgument>,
    cmd: &'a str,
    env: &'a hm_exec::ir::Env,
    /// Whether the step would run now. `None` if that is not known.
    prediction: Option<&'a Prediction>,
    /// How long it took when it last ran.
    last_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct ShownInput<'a> {
    step: &'a str,
    path: &'a str,
    target: &'a str,
}

#[derive(Debug, Serialize)]
struct ShownArgument {
    value: Value,
    /// The place that sets it.
    from: String,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum ShownSoftFail<'a> {
    All(bool),
    Codes(&'a [u8]),
}

/// The form in which a plan is printed.
#[derive(Debug, Clone, Copy)]
enum PlanForm {
    Json,
    Text { is_verbose: bool },
    Graph(GraphFormat),
}

/// Shows the plan. With `is_verbose`, the text has the commands and arguments of steps, too.
pub(crate) fn run(args: &Args, is_verbose: bool) -> Outcome<ExitCode> {
    let form = args.graph.map_or_else(|| answer_form(args.format, is_verbose), PlanForm::Graph);
    print_plan(&args.source, &args.part, args.bind.bind_options()?, form)
}

/// Prints what a part of a pipeline would run.
pub(super) fn dry_run(
    source: &SourceArgs,
    part: &PartArgs,
    options: BindOptions,
    format: AnswerFormat,
) -> Outcome<ExitCode> {
    print_plan(source, part, options, answer_form(format, false))
}

fn answer_form(format: AnswerFormat, is_verbose: bool) -> PlanForm {
    match format {
        AnswerFormat::Json => PlanForm::Json,
        AnswerFormat::Text => PlanForm::Text { is_verbose },
    }
}

/// Prints the plan of a part of a pipeline.
fn print_plan(source: &SourceArgs, part: &PartArgs, mut options: BindOptions, form: PlanForm) -> Outcome<ExitCode> {
    let found = pipelines::find_with(source, RenderCache { mode: None, renews: options.no_cache })?;
    let definition = &found.definition;
    let plan = part.of(parse(definition)?, source, &found.dir, &definition.name)?;
    let sources = note_ignored(&found.project, found.permissions(&plan, &options))?;
    options.step_tables = sources.step_tables()?;
    options.services = sources.services();
    let plan = backend::apply(plan, &mut options, &sources.backend()?)?;
    let bound = plan::bind(&plan, Runners::new(Config::default())?.descriptors(), &options)
        .map_err(|invalid| definition.invalid(&invalid))?;
    warnings::of_plan(&bound);
    warnings::of_tables(&bound, &options.step_tables);
    let forecast = match form {
        PlanForm::Graph(_) => Forecast::default(),
        PlanForm::Json | PlanForm::Text { .. } => Forecast::read(&found, &plan, &options, sources),
    };
    let shown = show(&definition.name, &bound, &forecast, |step| arguments(step, &plan, &bound, &options));
    match form {
        PlanForm::Graph(language) => print(&graph::text(&shown, language)),
        PlanForm::Json => print_json(&shown),
        PlanForm::Text { is_verbose } => {
            // A pipe has no end of the line.
            let longest = if io::stdout().is_terminal() { tree::CELL_CHARS } else { usize::MAX };
            print(&tree::text(&shown, is_verbose, longest, Style::of(&io::stdout())))
        }
    }
}

/// Returns the arguments of a step, each with the place that sets it.
fn arguments(
    step: StepIndex,
    plan: &Plan,
    bound: &BoundPlan,
    options: &BindOptions,
) -> BTreeMap<String, ShownArgument> {
    let own = &plan.pipeline().nodes[step.get()].step;
    let shown = |value: &Value, from: &str| ShownArgument { value: value.clone(), from: from.to_owned() };
    let mut found: BTreeMap<String, ShownArgument> = BTreeMap::new();
    for (name, table) in plan::table_args(&options.step_tables, own) {
        found.insert(name.to_owned(), shown(&table.arg.value, &table.arg.source));
    }
    for (name, value) in own.runner_args.as_ref().and_then(Value::as_object).into_iter().flatten() {
        found.insert(name.clone(), shown(value, "pipeline"));
    }
    let runner = &bound.runner(step).name;
    let is_left_out = |name: &str, from: &str| {
        bound.left_out.keys().any(|arg| *arg.name == *name && *arg.source == *from && arg.runner == *runner)
    };
    found.retain(|name, argument| !is_left_out(name, &argument.from));
    // What is not in the pipeline or in a table, the options have set.
    let bound = bound.step(step).step.runner_args.as_ref();
    for (name, value) in bound.and_then(Value::as_object).into_iter().flatten() {
        if found.get(name).is_none_or(|argument| argument.value != *value) {
            found.insert(name.clone(), shown(value, &format!("--{}", name.replace('_', "-"))));
        }
    }
    found
}

fn show<'a>(
    pipeline: &'a str,
    bound: &'a BoundPlan,
    forecast: &'a Forecast,
    arguments: impl Fn(StepIndex) -> BTreeMap<String, ShownArgument>,
) -> Shown<'a> {
    let key = |step: StepIndex| &*bound.steps[step.get()].step.key;
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let input = |it: &'a PlannedInput| ShownInput { step: key(it.step), path: &it.path, target: &it.target };
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
            timeout_seconds: step.timeout().map(|timeout| timeout.as_secs()),
            retries: outcomes.map_or(0, |rules| rules.retries),
            soft_fail: match outcomes.map(|rules| &rules.soft_fail) {
                Some(SoftFail::Codes(codes)) => ShownSoftFail::Codes(codes),
                soft_fail => ShownSoftFail::All(soft_fail == Some(&SoftFail::Any)),
            },
            cache: bound.cache_limits.get(&index).copied(),
            inputs: bound.inputs.get(&index).into_iter().flatten().map(input).collect(),
            arguments: arguments(index),
            cmd: &step.step.cmd,
            env: &step.env,
            prediction: forecast.prediction(index),
            last_ms: forecast.duration(index).map(ms),
        }
    });
    Shown {
        pipeline,
        timeout_seconds: bound.timeout.map(|timeout| timeout.as_secs()),
        chain_count: bound.dag.chain_count(),
        expected_ms: forecast.least(bound).map(ms),
        steps: steps.collect(),
    }
}
