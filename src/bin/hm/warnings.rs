//! Warnings about pipelines that are valid.

use std::collections::BTreeSet;

use hm_exec::{
    cache::{CacheMode, Cacheable},
    plan::{Base, BoundPlan, BoundStep, StepIndex, StepTable},
};

use crate::reporter::{text, to_stderr};

/// The maximum number of steps or images that a warning names; the others are counted.
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

/// Warns about an image that an option replaces, and that no step starts from.
pub(crate) fn of_unused_image(bound: &BoundPlan, image: &str) {
    let images = bound.dag.steps().filter_map(|step| match bound.base(step) {
        Base::Image(image) => Some(image),
        Base::Snapshot(_) => None,
    });
    let images: Vec<&str> = images.collect::<BTreeSet<_>>().into_iter().collect();
    to_stderr(&format!(
        "warning: `--image {image}=...` has no effect: no step starts from that image, but from {}",
        named(&images)
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

/// Notes which steps run every time in cache mode `auto`, because their runners do not record what they read.
pub(crate) fn of_never_found(bound: &BoundPlan) {
    let runs = |step: &StepIndex| {
        let capabilities = &bound.runner(*step).capabilities;
        bound.cache_mode_of(*step) == CacheMode::Auto
            && !(capabilities.traces && capabilities.layers)
            && Cacheable::of(&bound.step(*step).step).is_none()
    };
    let found: Vec<_> = bound.dag.steps().filter(runs).map(|step| &*bound.step(step).step.key).collect();
    if !found.is_empty() {
        to_stderr(&format!(
            "note: with cache mode `auto`, these steps run every time: {}; only runner `sandbox` finds steps without a \
             cache policy",
            named(&found)
        ));
    }
}

/// Names some steps, or images.
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
