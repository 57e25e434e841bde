//! The arguments of a step that the engine itself interprets, for every runner: `soft_fail`, `retries`,
//! `outputs`, `inputs` and `cache`.
//!
//! They are taken out of its `runner_args`, so the runner does not have them. The first three say what a
//! failure of the step means, and which files the user gets. They change nothing that the step sees, and are
//! in no cache key, and nor is `cache`. Inputs are in keys with their contents.

use std::{collections::BTreeMap, sync::Arc};

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    inputs::{InputEntry, MOST_INPUTS},
    nearest::nearest,
};
use crate::{
    cache::CacheMode,
    ir::ProblemKind,
    model::{OutcomeRules, SoftFail},
    runner::{ArgsError, ArgsSchema},
    tree::{MOST_PATTERNS, PatternError},
};

/// The names of these arguments. Runners cannot have arguments with such names.
const SOFT_FAIL: &str = "soft_fail";
const RETRIES: &str = "retries";
const INPUTS: &str = "inputs";
const CACHE: &str = "cache";
pub(super) const OUTPUTS: &str = "outputs";
const ALL: [&str; 5] = [SOFT_FAIL, RETRIES, OUTPUTS, INPUTS, CACHE];

/// The maximum of `retries`.
const MAX_RETRIES: u8 = 10;

/// The schema of these arguments, for users. Binding reads the values itself, to report each mistake.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct EngineArgs {
    /// Whether the build passes although the step fails: always, or with these exit codes.
    soft_fail: SoftFailArg,
    /// How often a command that failed runs again.
    #[schemars(range(min = 0, max = 10))]
    retries: u8,
    /// Files of other steps that the step gets, read-only: `STEP:/PATH`, and the path at which it gets them.
    /// The step must wait for them.
    inputs: BTreeMap<String, String>,
    /// The files that are copied to `.hm/out` of the source directory: patterns, relative to the work
    /// directory.
    outputs: Vec<String>,
    /// Which results of the step are reused, if the run's mode reuses as much: `off` and `declared` reuse
    /// less than `auto`.
    cache: CacheMode,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum SoftFailArg {
    All(bool),
    Codes(Vec<u8>),
}

/// Returns the JSON schema of the arguments that the engine interprets on any runner.
#[must_use]
pub fn engine_args_schema() -> Schema {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<EngineArgs>()
}

/// Adds these arguments to the error of a runner that does not know an argument, and the one that was
/// probably intended.
pub(super) fn with_names(error: ArgsError, args: &ArgsSchema) -> ArgsError {
    let unknown = error.path.strip_prefix("runner_args.");
    let unknown = unknown.filter(|name| error.message.starts_with(&format!("unknown field `{name}`")));
    let Some(unknown) = unknown else { return error };
    let schema = args.json_schema();
    let own = schema.as_ref().and_then(|schema| schema.get("properties")?.as_object());
    let own = own.into_iter().flatten().map(|(name, _)| Arc::<str>::from(name.as_str()));
    let known: Vec<Arc<str>> = own.chain(ALL.map(Arc::<str>::from)).collect();
    let near = nearest(unknown, &known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    let engines = ALL.map(|name| format!("`{name}`")).join(", ");
    let message = format!("{}, or {engines}{near}", error.message);
    ArgsError { path: error.path, message }
}

/// The engine's arguments of a step, and the rest.
pub(super) struct Taken {
    pub(super) rules: OutcomeRules,
    /// The files of other steps, by target.
    pub(super) inputs: Vec<InputEntry>,
    /// The patterns of the files to copy.
    pub(super) outputs: Vec<Arc<str>>,
    /// Which of its results are reused, at most.
    pub(super) cache: Option<CacheMode>,
    /// The runner's arguments, if there are any.
    pub(super) rest: Option<Value>,
    pub(super) problems: Vec<ProblemKind>,
}

/// Takes the engine's arguments out of a step's `runner_args`. Returns `None` if there are none.
pub(super) fn take(args: &Value) -> Option<Taken> {
    let args = args.as_object()?;
    if !ALL.iter().any(|name| args.contains_key(*name)) {
        return None;
    }
    let mut problems = Vec::new();
    let soft_fail = args.get(SOFT_FAIL).map_or(Ok(SoftFail::No), soft_fail);
    let soft_fail = soft_fail.unwrap_or_else(|problem| {
        problems.push(problem);
        SoftFail::No
    });
    let retries = args.get(RETRIES).map_or(Ok(0), retries);
    let retries = retries.unwrap_or_else(|problem| {
        problems.push(problem);
        0
    });
    let outputs = args.get(OUTPUTS).map_or(Ok(Vec::new()), outputs);
    let outputs = outputs.unwrap_or_else(|problem| {
        problems.push(problem);
        Vec::new()
    });
    let inputs = args.get(INPUTS).map_or(Ok(Vec::new()), inputs);
    let inputs = inputs.unwrap_or_else(|problem| {
        problems.push(problem);
        Vec::new()
    });
    let cache = args.get(CACHE).map_or(Ok(None), cache);
    let cache = cache.unwrap_or_else(|problem| {
        problems.push(problem);
        None
    });
    let rest = args.iter().filter(|(name, _)| !ALL.contains(&name.as_str()));
    let rest: Map<_, _> = rest.map(|(name, value)| (name.clone(), value.clone())).collect();
    let rest = (!rest.is_empty()).then_some(Value::Object(rest));
    Some(Taken { rules: OutcomeRules::new(retries, soft_fail), outputs, inputs, cache, rest, problems })
}

fn soft_fail(value: &Value) -> Result<SoftFail, ProblemKind> {
    match value {
        Value::Null | Value::Bool(false) => Ok(SoftFail::No),
        Value::Bool(true) => Ok(SoftFail::Any),
        Value::Array(codes) => {
            let code = |(at, code): (usize, &Value)| match code.as_u64().map(u8::try_from) {
                Some(Ok(code @ 1..)) => Ok(code),
                _ => Err(wrong(&format!("{SOFT_FAIL}[{at}]"), "an exit code from 1 to 255", value_text(&codes[at]))),
            };
            let mut codes = codes.iter().enumerate().map(code).collect::<Result<Vec<_>, _>>()?;
            codes.sort_unstable();
            codes.dedup();
            Ok(if codes.is_empty() { SoftFail::No } else { SoftFail::Codes(codes.into()) })
        }
        value => Err(wrong(SOFT_FAIL, "`true`, `false` or a list of exit codes", value_text(value))),
    }
}

fn retries(value: &Value) -> Result<u8, ProblemKind> {
    match value.as_u64().map(u8::try_from) {
        Some(Ok(retries @ 0..=MAX_RETRIES)) => Ok(retries),
        None if value.is_null() => Ok(0),
        _ => Err(wrong(RETRIES, "a whole number from 0 to 10", value_text(value))),
    }
}

fn cache(value: &Value) -> Result<Option<CacheMode>, ProblemKind> {
    // `null` is none, too.
    Option::deserialize(value).map_err(|_| wrong(CACHE, "`auto`, `declared` or `off`", value_text(value)))
}

fn outputs(value: &Value) -> Result<Vec<Arc<str>>, ProblemKind> {
    const EXPECTED: &str = "a list of at most 64 patterns of files, such as [\"reports/**/*.xml\"]";
    let patterns = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(patterns) if patterns.len() <= MOST_PATTERNS => patterns,
        value => return Err(wrong(OUTPUTS, EXPECTED, value_text(value))),
    };
    let pattern = |(at, pattern): (usize, &Value)| -> Result<Arc<str>, ProblemKind> {
        let place = || format!("{OUTPUTS}[{at}]");
        let text = pattern.as_str().ok_or_else(|| wrong(&place(), "a pattern of files", value_text(pattern)))?;
        match crate::outputs::check([text]) {
            Ok(()) => Ok(text.into()),
            Err((_, error)) => Err(wrong(&place(), reason(&error), value_text(pattern))),
        }
    };
    patterns.iter().enumerate().map(pattern).collect()
}

/// Returns what is expected of a pattern that is wrong for this reason.
fn reason(error: &PatternError) -> &'static str {
    match error {
        PatternError::Empty => "a pattern of files, such as \"reports/**/*.xml\"",
        PatternError::Up => "a pattern without `..`",
        PatternError::TooLong => "a pattern with at most 62 names",
        _ => "a pattern of `*`, `?`, `[a-z]` and, as a whole name, `**`",
    }
}

fn inputs(value: &Value) -> Result<Vec<InputEntry>, ProblemKind> {
    const EXPECTED: &str = "an object of at most 256 paths of steps and targets, such as {\"test:/workspace/cov\": \"/workspace/cov/test\"}";
    let entries = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Object(entries) if entries.len() <= MOST_INPUTS => entries,
        value => return Err(wrong(INPUTS, EXPECTED, value_text(value))),
    };
    let entry = |(from, target): (&String, &Value)| match target.as_str() {
        Some(target) => Ok(InputEntry { from: from.clone(), target: target.to_owned() }),
        None => Err(wrong(INPUTS, "an object whose values are paths", value_text(target))),
    };
    let mut entries = entries.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    entries.sort_by(|a, b| (&a.target, &a.from).cmp(&(&b.target, &b.from)));
    Ok(entries)
}

fn wrong(name: &str, expected: &'static str, found: String) -> ProblemKind {
    ProblemKind::StepArg { path: format!("runner_args.{name}"), expected, found }
}

/// Returns a value as JSON, or its kind if it may be long.
fn value_text(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        value => value.to_string(),
    }
}
