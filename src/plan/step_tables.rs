//! Arguments for steps from outside of the pipeline: the `[step."glob"]` tables of `hm.toml`.
//!
//! Binding merges them into the `runner_args` of the steps that they match. Nothing behind it knows where an
//! argument came from.

use std::{collections::BTreeMap, sync::Arc};

use globset::{Glob, GlobMatcher};
use serde_json::{Map, Value};

use crate::{ir::CommandStep, runner::RunnerDescriptor};

/// Arguments for all steps whose key or label matches a glob.
#[derive(Debug, Clone)]
pub struct StepTable {
    pattern: Arc<str>,
    matcher: GlobMatcher,
    args: BTreeMap<Arc<str>, TableArg>,
    /// Whether the table is for any pipeline. If so, it may match no step, and a step keeps none of its
    /// arguments that its runner does not accept.
    is_general: bool,
}

/// One argument of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableArg {
    /// The value.
    pub value: Value,
    /// The place that sets it, for messages: a file and a line.
    pub source: Arc<str>,
}

/// A glob that is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid glob `{pattern}`: {reason}")]
pub struct InvalidGlob {
    pattern: String,
    reason: String,
}

impl StepTable {
    /// Creates a table without arguments.
    ///
    /// # Errors
    /// Returns an error if `pattern` is not a glob.
    pub fn new(pattern: &str) -> Result<Self, InvalidGlob> {
        let invalid =
            |error: globset::Error| InvalidGlob { pattern: pattern.to_owned(), reason: error.kind().to_string() };
        let matcher = Glob::new(pattern).map_err(invalid)?.compile_matcher();
        Ok(Self { pattern: pattern.into(), matcher, args: BTreeMap::new(), is_general: false })
    }

    /// Makes the table one for any pipeline. It may match no step, and arguments that a step's runner does
    /// not accept are left out instead of refused.
    #[must_use]
    pub fn general(self) -> Self {
        Self { is_general: true, ..self }
    }

    /// Adds an argument. `source` is where it is set, for messages.
    #[must_use]
    pub fn arg(mut self, name: impl Into<Arc<str>>, value: Value, source: impl Into<Arc<str>>) -> Self {
        self.args.insert(name.into(), TableArg { value, source: source.into() });
        self
    }

    /// Returns the glob.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Returns whether the table is for any pipeline.
    #[must_use]
    pub fn is_general(&self) -> bool {
        self.is_general
    }

    /// Returns where the table is set, for messages.
    #[must_use]
    pub fn source(&self) -> &str {
        self.args.values().map(|arg| &*arg.source).next().unwrap_or_default()
    }

    /// Returns whether the table is for this step.
    #[must_use]
    pub fn matches(&self, step: &CommandStep) -> bool {
        self.matcher.is_match(&*step.key) || step.label.as_ref().is_some_and(|label| self.matcher.is_match(&**label))
    }
}

impl PartialEq for StepTable {
    fn eq(&self, other: &Self) -> bool {
        let key = |table: &Self| (Arc::clone(&table.pattern), table.is_general);
        key(self) == key(other) && self.args == other.args
    }
}

impl Eq for StepTable {}

/// An argument of a general table that a step does not get, because its runner does not accept it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct LeftOutArg {
    /// The argument.
    pub name: Arc<str>,
    /// Where it is set.
    pub source: Arc<str>,
    /// The runner.
    pub runner: Arc<str>,
    /// The runner's reason.
    pub reason: String,
}

/// An argument that a table gives to a step.
#[derive(Debug, Clone, Copy)]
pub struct FromTable<'a> {
    /// The argument.
    pub arg: &'a TableArg,
    is_general: bool,
}

impl FromTable<'_> {
    /// Returns whether the table is for any pipeline.
    pub(super) fn is_general(&self) -> bool {
        self.is_general
    }
}

/// Returns what `tables` give to a step, by name. Later tables win, and the step's own arguments win over all
/// of them.
#[must_use]
pub fn table_args<'a>(tables: &'a [StepTable], step: &CommandStep) -> BTreeMap<&'a str, FromTable<'a>> {
    let own = step.runner_args.as_ref().and_then(Value::as_object);
    let mut found = BTreeMap::new();
    for table in tables.iter().filter(|table| table.matches(step)) {
        let args = table.args.iter().filter(|(name, _)| own.is_none_or(|own| !own.contains_key(&***name)));
        found.extend(args.map(|(name, arg)| (&**name, FromTable { arg, is_general: table.is_general })));
    }
    found
}

/// Returns the step's own arguments with those of the tables. A step whose own arguments are no object is
/// refused later.
pub(super) fn merged(step: &CommandStep, found: &BTreeMap<&str, FromTable<'_>>) -> Option<Map<String, Value>> {
    let mut args = match &step.runner_args {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(own)) => own.clone(),
        Some(_) => return None,
    };
    args.extend(found.iter().map(|(name, from)| ((*name).to_owned(), from.arg.value.clone())));
    Some(args)
}

/// Removes the arguments of general tables that a runner does not accept. `args` has no arguments that the
/// engine interprets.
pub(super) fn leave_out(
    args: &mut Option<Value>,
    found: &BTreeMap<&str, FromTable<'_>>,
    runner: &RunnerDescriptor,
) -> Vec<LeftOutArg> {
    let Some(Value::Object(all)) = args else { return Vec::new() };
    let check = |args: &Map<String, Value>| runner.args.check(&Value::Object(args.clone()));
    let is_general = |name: &str| found.get(name).is_some_and(|from| from.is_general);
    if check(all).is_ok() || !all.keys().any(|name| is_general(name)) {
        return Vec::new();
    }
    // The others are given back one by one. Some may need others, so the order is not known.
    let mut rest: Map<_, _> = all.clone().into_iter().filter(|(name, _)| !is_general(name)).collect();
    let wrong_anyway = check(&rest).err();
    let mut refused = Vec::new();
    let mut open: Vec<&String> = all.keys().filter(|name| is_general(name)).collect();
    loop {
        let before = open.len();
        refused.clear();
        open.retain(|name| {
            let mut more = rest.clone();
            more.insert((*name).clone(), all[*name].clone());
            match check(&more).err() {
                Some(error) if Some(&error) != wrong_anyway.as_ref() => {
                    refused.push(error.message);
                    true
                }
                _ => {
                    rest = more;
                    false
                }
            }
        });
        if open.is_empty() || open.len() == before {
            break;
        }
    }
    let left_out = open.iter().zip(refused).filter_map(|(name, reason)| {
        let (name, from) = found.get_key_value(name.as_str())?;
        let source = Arc::clone(&from.arg.source);
        Some(LeftOutArg { name: (*name).into(), source, runner: Arc::clone(&runner.name), reason })
    });
    let left_out = left_out.collect();
    *args = (!rest.is_empty()).then_some(Value::Object(rest));
    left_out
}
