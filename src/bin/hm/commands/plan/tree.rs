//! A plan as a tree, for people: one line a step, below the step that it builds in.

use std::{collections::BTreeMap, time::Duration};

use hm_exec::{cache::Prediction, event::CacheMissReason};

use super::{Shown, ShownArgument, ShownInput, ShownSoftFail, ShownStep};
use crate::{
    commands::{table, why},
    reporter::{style::Style, text},
};

/// The longest name, and the longest reason, that a terminal shows, in characters.
pub(super) const CELL_CHARS: usize = 60;

/// A row of the table, and the step that it shows.
struct Row<'a> {
    step: &'a ShownStep<'a>,
    /// The text before the step's name.
    branch: String,
    /// The text before the lines below it.
    below: String,
}

/// The optional parts of rows.
#[derive(Debug, Clone, Copy)]
struct Columns {
    predictions: bool,
    /// Each step's runner, if they have several.
    runners: bool,
    /// The longest name, and the longest reason, in characters.
    longest: usize,
}

/// Returns the text. With `is_verbose`, each step has its arguments and its command below it. Names and
/// reasons have at most as many characters as the `longest`.
pub(super) fn text(shown: &Shown<'_>, is_verbose: bool, longest: usize, style: Style) -> String {
    let mut out = heading(shown);
    let rows = rows(shown);
    let columns = Columns {
        predictions: shown.steps.iter().any(|step| step.prediction.is_some()),
        runners: only_runner(shown).is_none(),
        longest,
    };
    let cells: Vec<Vec<String>> = rows.iter().map(|row| cells(row, columns, style)).collect();
    out.push('\n');
    for (row, line) in rows.iter().zip(table(&cells).lines()) {
        out.push_str(&format!("{}\n", text::symbols(line)));
        let below = text::symbols(&row.below);
        for ShownInput { step, path, target } in &row.step.inputs {
            let line = text::clean(&format!("{target}: {path} of step {step}"));
            out.push_str(&format!("{below}  {line}\n"));
        }
        if is_verbose {
            for (name, ShownArgument { value, from }) in &row.step.arguments {
                out.push_str(&format!("{below}  {}\n", text::clean(&format!("{name} = {value} ({from})"))));
            }
            for line in row.step.cmd.lines() {
                out.push_str(&format!("{below}  {}\n", style.dim(&format!("$ {}", text::clean(line)))));
            }
        }
    }
    out
}

fn heading(shown: &Shown<'_>) -> String {
    let (steps, chains) = (text::count(shown.steps.len(), "step"), text::count(shown.chain_count, "chain"));
    let mut out = format!("{}: {steps} in {chains}", text::clean(shown.pipeline));
    if let Some(runner) = only_runner(shown) {
        out.push_str(&format!(" on {runner}"));
    }
    if let Some(seconds) = shown.timeout_seconds {
        out.push_str(&format!(", timeout {seconds} s"));
    }
    if let Some(ms) = shown.expected_ms {
        let is_cached = |step: &ShownStep<'_>| matches!(step.prediction, Some(Prediction::Cached { .. }));
        match shown.steps.iter().all(is_cached) {
            true => out.push_str(", all cached"),
            false => out.push_str(&format!(", at least {}", duration(ms))),
        }
    }
    out.push('\n');
    out
}

fn duration(ms: u64) -> String {
    text::duration(Duration::from_millis(ms))
}

/// Returns the runner of all steps, if they have the same one.
fn only_runner<'a>(shown: &Shown<'a>) -> Option<&'a str> {
    let first = shown.steps.first()?.runner;
    shown.steps.iter().all(|step| step.runner == first).then_some(first)
}

/// Returns the steps in the order of the tree.
fn rows<'a>(shown: &'a Shown<'a>) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    let roots = shown.steps.iter().filter(|step| step.builds_in.is_none());
    // The steps that are to be shown next, last first: pipelines may be thousands of steps deep.
    let mut open: Vec<Row<'_>> =
        roots.map(|step| Row { step, branch: String::new(), below: String::new() }).rev().collect();
    let mut children: BTreeMap<&str, Vec<&ShownStep<'_>>> = BTreeMap::new();
    for step in &shown.steps {
        if let Some(parent) = step.builds_in {
            children.entry(parent).or_default().push(step);
        }
    }
    while let Some(row) = open.pop() {
        let below = children.remove(row.step.key).unwrap_or_default();
        let last = below.len().saturating_sub(1);
        for (at, step) in below.into_iter().enumerate().rev() {
            let (corner, bar) = if at == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let indent = &row.below;
            open.push(Row { step, branch: format!("{indent}{corner}"), below: format!("{indent}{bar}") });
        }
        rows.push(row);
    }
    rows
}

fn cells(row: &Row<'_>, columns: Columns, style: Style) -> Vec<String> {
    let Row { step, branch, .. } = row;
    let key = text::clean(step.key);
    let name = match step.label {
        Some(label) if !text::is_key(label, step.key) => format!("{} ({key})", text::clean(label)),
        _ => key,
    };
    // One long label would push the columns of all steps out of a terminal.
    let mut cells = vec![format!("{branch}{}", style.name(&text::cut(&name, columns.longest)))];
    // Without any prediction there is no column for it.
    if columns.predictions {
        cells.push(step.prediction.map_or_else(String::new, |prediction| verdict(prediction, columns.longest, style)));
        let runs = step.prediction.is_none_or(Prediction::runs);
        cells.push(step.last_ms.filter(|_| runs).map(duration).unwrap_or_default());
    }
    cells.push(facts(step, columns.runners, style));
    cells
}

fn verdict(prediction: &Prediction, longest: usize, style: Style) -> String {
    let why = match prediction {
        Prediction::Cached { .. } => return style.good("cached"),
        Prediction::ParentRuns { .. } | Prediction::NotCached => return "will run".into(),
        Prediction::InputRuns { step } => return format!("runs if {} leaves other files", text::clean(step)),
        Prediction::Refreshed => "asked for".into(),
        Prediction::Missed { differences, .. } if !differences.is_empty() => {
            let causes = why::causes(differences);
            let first = why::difference(causes[0]);
            match causes.len() {
                1 => first,
                count => format!("{first}, and {} more", count - 1),
            }
        }
        // What would have to be downloaded is just missing: a plan downloads nothing.
        Prediction::Missed { message: Some(message), .. } => {
            text::clean(message.split(", and downloads are disabled").next().unwrap_or(message))
        }
        Prediction::Missed { reason: CacheMissReason::Expired, .. } => "its result is too old".into(),
        _ => "not in the cache".into(),
    };
    format!("will run: {}", text::cut(&why, longest))
}

/// Returns what else there is to know about a step.
fn facts(step: &ShownStep<'_>, names_runner: bool, style: Style) -> String {
    let mut facts = Vec::new();
    if names_runner {
        facts.push(format!("on {}", step.runner));
    }
    if let Some(image) = step.image {
        facts.push(format!("image {}", text::clean(image)));
    }
    if !step.depends_on.is_empty() {
        let waits: Vec<_> = step.depends_on.iter().map(|key| style.name(&text::clean(key))).collect();
        facts.push(format!("after {}", waits.join(", ")));
    }
    if let Some(seconds) = step.timeout_seconds {
        facts.push(format!("timeout {seconds} s"));
    }
    if step.retries > 0 {
        facts.push(format!("retries {}", step.retries));
    }
    if let Some(limit) = step.cache {
        facts.push(format!("cache {}", limit.as_str()));
    }
    match &step.soft_fail {
        ShownSoftFail::All(true) => facts.push("may fail".into()),
        ShownSoftFail::All(false) => {}
        ShownSoftFail::Codes(codes) => {
            let codes: Vec<_> = codes.iter().map(u8::to_string).collect();
            facts.push(format!("may fail with {}", codes.join(", ")));
        }
    }
    facts.join(" · ")
}
