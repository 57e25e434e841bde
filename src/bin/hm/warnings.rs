//! Warnings about pipelines that are valid.

use hm_exec::plan::{BoundPlan, BoundStep, StepTable};

use crate::reporter::{text, to_stderr};

/// The maximum number of steps that a warning names; the others are counted.
const NAMED: usize = 5;

/// Warns about steps whose commands name `.hm/`, which is not part of the source that steps see.
pub(crate) fn of_plan(bound: &BoundPlan) {
    let found: Vec<_> =
        bound.steps.iter().filter(|step| names_pipelines(&step.step.cmd)).map(|step| &*step.step.key).collect();
    if found.is_empty() {
        return;
    }
    to_stderr(&format!(
        "warning: steps cannot see `.hm/`, but it is used by {}: move the files that they need elsewhere",
        named(&found)
    ));
}

/// Warns about steps whose runners do not record what steps read.
pub(crate) fn of_untraced(bound: &BoundPlan, asked_by: &str) {
    let traces = |step: &&BoundStep| bound.runners[usize::from(step.runner.0)].capabilities.traces;
    let found: Vec<_> = bound.steps.iter().filter(|step| !traces(step)).map(|step| &*step.step.key).collect();
    if !found.is_empty() {
        to_stderr(&format!(
            "warning: `{asked_by}` records nothing of {}: only runner `sandbox` can do that",
            named(&found)
        ));
    }
}

/// Names some steps.
fn named(keys: &[&str]) -> String {
    let mut names: Vec<String> = keys.iter().take(NAMED).map(|key| format!("`{}`", text::clean(key))).collect();
    if keys.len() > NAMED {
        names.push(format!("{} more", keys.len() - NAMED));
    }
    names.join(", ")
}

/// Warns about `[step]` tables of the project that match no step, and about arguments of the user's that
/// steps do not get.
pub(crate) fn of_tables(bound: &BoundPlan, tables: &[StepTable]) {
    let unused = bound.unused_tables.iter().map(|&at| &tables[at]);
    for table in unused.filter(|table| !table.is_general()) {
        to_stderr(&text::clean(&format!("warning: {} matches no step", table.source())));
    }
    // The network of the user's tables is a default, for the runners that can provide it.
    for (arg, count) in bound.left_out.iter().filter(|(arg, _)| *arg.name != *"network") {
        to_stderr(&text::clean(&format!(
            "warning: `{}` of {} is left out for {} on runner `{}`: {}",
            arg.name,
            arg.source,
            text::count(*count, "step"),
            arg.runner,
            arg.reason,
        )));
    }
}

/// Returns whether a command has `.hm/` as a path, or in one.
fn names_pipelines(command: &str) -> bool {
    command.match_indices(".hm/").any(|(at, _)| {
        let before = command[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '.' | '_' | '-' | '*'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_the_pipelines_directory_are_found_and_names_that_end_alike_are_not() {
        for command in [".hm/x", "sh ./.hm/x.sh", "cat '.hm/x'", "A=.hm/x make", "cd /workspace/.hm/", "é;.hm/x"] {
            assert!(names_pipelines(command), "{command}");
        }
        for command in ["make", "cat a.hm/x", "cat ..hm/x", "rm *.hm/", "echo .hm", "ls .hmx/"] {
            assert!(!names_pipelines(command), "{command}");
        }
    }
}
