//! A plan bound to an engine's runners: what the scheduler runs and `hm plan` shows.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Dag, StepIndex};
use crate::{
    ir::{CommandStep, Env},
    runner::{RunnerDescriptor, RunnerIndex},
};

/// What a run changes about a plan.
#[derive(Debug, Clone, Default)]
pub struct BindOptions {
    /// The runner of steps that name none, instead of the set's default.
    pub runner: Option<String>,
    /// Images to replace.
    pub images: BTreeMap<String, String>,
    /// Variables over the steps' own.
    pub env: Env,
    /// Whether the run has secrets: runners without the capability are refused then.
    pub has_secrets: bool,
}

/// A plan whose every step knows its runner. Immutable.
#[derive(Debug)]
#[non_exhaustive]
pub struct BoundPlan {
    /// The graph.
    pub dag: Arc<Dag>,
    /// The steps by index.
    pub steps: Vec<BoundStep>,
    /// The runners by index.
    pub runners: Vec<RunnerDescriptor>,
    /// Wall-clock budget of the whole build.
    pub timeout: Option<Duration>,
    /// Whether what every step leaves is to outlive the build, for people to look at.
    pub keep: bool,
    /// The [`BindOptions::images`] that no root step boots from: perhaps misspelt.
    pub unused_images: Vec<String>,
}

impl BoundPlan {
    /// A step.
    #[must_use]
    pub fn step(&self, step: StepIndex) -> &BoundStep {
        &self.steps[step.get()]
    }

    /// The runner that runs a step.
    #[must_use]
    pub fn runner(&self, step: StepIndex) -> &RunnerDescriptor {
        &self.runners[usize::from(self.step(step).runner.0)]
    }

    /// What a step boots from: the snapshot of the parent returned, or else its image.
    #[must_use]
    pub fn base(&self, step: StepIndex) -> Base<'_> {
        match self.dag.lineage_parent(step) {
            Some(parent) => Base::Snapshot(parent),
            None => Base::Image(self.step(step).step.image.as_deref().unwrap_or(DEFAULT_IMAGE)),
        }
    }

    /// The image at the bottom of `step`.
    #[must_use]
    pub fn root_image(&self, mut step: StepIndex) -> &str {
        loop {
            match self.base(step) {
                Base::Snapshot(parent) => step = parent,
                Base::Image(image) => return image,
            }
        }
    }

    /// Whether what is at the bottom of `step` is the same on another machine: an image, and no directory of this one.
    #[must_use]
    pub fn is_portable(&self, step: StepIndex) -> bool {
        let image = self.root_image(step);
        image != DEFAULT_IMAGE && !is_rootfs(image)
    }
}

/// What a step boots from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base<'a> {
    /// An image, with defaults and substitutions applied.
    Image(&'a str),
    /// The snapshot that this step leaves.
    Snapshot(StepIndex),
}

/// A step that knows its runner.
#[derive(Debug)]
#[non_exhaustive]
pub struct BoundStep {
    /// The command, its image resolved.
    pub step: Arc<CommandStep>,
    /// The whole environment.
    pub env: Arc<Env>,
    /// What people read: the label, or the first 40 characters of the command's first line.
    pub display_name: Arc<str>,
    /// The runner.
    pub runner: RunnerIndex,
    /// Wall-clock budget of one attempt.
    pub timeout: Option<Duration>,
    /// Whether a `builds_in` child boots from this step.
    pub has_lineage_children: bool,
    /// Whether one of them is another runner's.
    pub has_foreign_children: bool,
}

/// The image of root steps where neither the step nor the pipeline names one: this machine's system.
pub const DEFAULT_IMAGE: &str = "host";

/// Whether an image is a directory of this machine.
pub(super) fn is_rootfs(image: &str) -> bool {
    image.strip_prefix("rootfs:").is_some_and(|dir| !dir.is_empty())
}

/// How many characters of a command stand for it where there is no label.
const DISPLAY_CHARS: usize = 40;

/// What people read instead of a step's key.
pub(super) fn display_name(step: &CommandStep) -> Arc<str> {
    if let Some(label) = step.label.as_ref().filter(|label| !label.trim().is_empty()) {
        return Arc::clone(label);
    }
    let Some(line) = step.cmd.lines().map(str::trim).find(|line| !line.is_empty()) else {
        return Arc::clone(&step.key);
    };
    match line.char_indices().nth(DISPLAY_CHARS) {
        Some((cut, _)) => format!("{}…", line[..cut].trim_end()).into(),
        None => line.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(label: Option<&str>, cmd: &str) -> CommandStep {
        CommandStep {
            key: "key".into(),
            label: label.map(Into::into),
            cmd: cmd.into(),
            image: None,
            env: None,
            timeout_seconds: None,
            cache: None,
            runner: None,
            runner_args: None,
        }
    }

    #[test]
    fn people_read_the_label_else_the_command_else_the_key() {
        let forty = "é".repeat(40);
        for (label, cmd, expected) in [
            (Some("Build it"), "make", "Build it".to_owned()),
            (Some(" "), "make", "make".to_owned()),
            (None, "\n\n  make -j2  \nmake test", "make -j2".to_owned()),
            (None, " \n\t", "key".to_owned()),
            (None, &forty, forty.clone()),
            (None, &format!("{forty}x"), format!("{forty}…")),
            (
                None,
                "0123456789 0123456789 0123456789 012345 789",
                "0123456789 0123456789 0123456789 012345…".to_owned(),
            ),
        ] {
            assert_eq!(*display_name(&step(label, cmd)), *expected);
        }
    }
}
