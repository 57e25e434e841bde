//! A plan bound to an engine's runners, which the scheduler runs and `hm plan` shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{Dag, LeftOutArg, PlannedInput, StepIndex, StepTable};
use crate::{
    cache::CacheMode,
    ir::{CommandStep, Env},
    model::OutcomeRules,
    runner::{Network, RunnerDescriptor, RunnerIndex},
};

/// The options of a run that change a plan.
#[derive(Debug, Clone, Default)]
pub struct BindOptions {
    /// The runner of steps that name none, instead of the set's default.
    pub runner: Option<String>,
    /// The network of steps that name none in their `runner_args`, on runners that can provide it.
    pub network: Option<Network>,
    /// Arguments for the steps that globs match. Later tables win over earlier ones, `network` over those in
    /// tables, and the arguments of steps over all.
    pub step_tables: Vec<StepTable>,
    /// The services that steps may name, by name: what their `runner_args` then have instead. See
    /// [`ServiceArg`](crate::runner::ServiceArg).
    pub services: BTreeMap<String, Value>,
    /// The images to replace.
    pub images: BTreeMap<String, String>,
    /// Variables that override the steps' own.
    pub env: Env,
    /// Whether the run has secrets. If so, runners without the capability are refused.
    pub has_secrets: bool,
    /// Wall-clock budget of the whole build. The shorter of this and the plan's limit applies.
    pub timeout: Option<Duration>,
    /// Whether the filesystem of every step outlives the build so that users can inspect it.
    pub keep: bool,
    /// Which results are looked up and kept.
    pub cache_mode: CacheMode,
    /// Whether every step runs regardless of the cache.
    pub no_cache: bool,
    /// The steps, by key, that run regardless of the cache.
    pub refresh: BTreeSet<String>,
}

/// A plan in which every step has a runner. Immutable.
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
    /// The steps whose failures are allowed or retried.
    pub outcomes: BTreeMap<StepIndex, OutcomeRules>,
    /// The patterns of the files that steps leave for the user.
    pub outputs: BTreeMap<StepIndex, Arc<[Arc<str>]>>,
    /// The services of the steps that have some.
    pub services: BTreeMap<StepIndex, Vec<BoundService>>,
    /// The steps that services boot from, each with whether another runner does that.
    pub(super) seeds: BTreeMap<StepIndex, bool>,
    /// The files of other steps that steps get.
    pub inputs: BTreeMap<StepIndex, Vec<PlannedInput>>,
    /// Whether the filesystem of every step outlives the build so that users can inspect it.
    pub keep: bool,
    /// Which results are looked up and kept.
    pub cache_mode: CacheMode,
    /// The steps that reuse less, if the mode allows more.
    pub cache_limits: BTreeMap<StepIndex, CacheMode>,
    /// The [`BindOptions::images`] that no root step boots from. They may be misspelled.
    pub unused_images: Vec<String>,
    /// The positions of the [`BindOptions::step_tables`] that match no step.
    pub unused_tables: Vec<usize>,
    /// The arguments of general tables that steps do not get, each with the number of these steps.
    pub left_out: BTreeMap<LeftOutArg, usize>,
}

impl BoundPlan {
    /// Returns a step.
    #[must_use]
    pub fn step(&self, step: StepIndex) -> &BoundStep {
        &self.steps[step.get()]
    }

    /// Returns the runner that runs a step.
    #[must_use]
    pub fn runner(&self, step: StepIndex) -> &RunnerDescriptor {
        &self.runners[usize::from(self.step(step).runner.0)]
    }

    /// Returns which results of a step are looked up and kept.
    #[must_use]
    pub fn cache_mode_of(&self, step: StepIndex) -> CacheMode {
        self.cache_limits.get(&step).map_or(self.cache_mode, |limit| self.cache_mode.min(*limit))
    }

    /// Returns whether a step's key depends on other steps than its parent: on its inputs, or on what
    /// services boot from.
    pub(crate) fn waits_for_others(&self, step: StepIndex) -> bool {
        self.inputs.contains_key(&step) || !self.services(step).is_empty()
    }

    /// Returns whether the files of a step that was found in a cache are needed here: as inputs of other
    /// steps, for services that boot from it, or for its outputs.
    #[must_use]
    pub fn needs_files(&self, step: StepIndex) -> bool {
        self.step(step).is_input || self.is_seed(step) || self.outputs.contains_key(&step)
    }

    /// Returns what the snapshot of `step` is needed for. `is_published` is whether the cache needs it.
    #[must_use]
    pub fn snapshot_use(&self, step: StepIndex, is_published: bool) -> SnapshotUse {
        let bound = self.step(step);
        let seed = self.seeds.get(&step);
        let is_taken = bound.is_input || seed == Some(&true);
        if is_published || self.keep || bound.has_foreign_children || is_taken {
            SnapshotUse::Anywhere
        } else if bound.has_lineage_children || seed.is_some() {
            SnapshotUse::SameRunner
        } else {
            SnapshotUse::None
        }
    }

    /// Returns whether a service boots from the snapshot of `step`.
    #[must_use]
    pub fn is_seed(&self, step: StepIndex) -> bool {
        self.seeds.contains_key(&step)
    }

    /// Returns the services of a step.
    #[must_use]
    pub fn services(&self, step: StepIndex) -> &[BoundService] {
        self.services.get(&step).map_or(&[], Vec::as_slice)
    }

    /// Returns the steps that get files of each step.
    pub(crate) fn takers(&self) -> BTreeMap<StepIndex, Vec<StepIndex>> {
        let mut takers: BTreeMap<StepIndex, Vec<StepIndex>> = BTreeMap::new();
        for (taker, inputs) in &self.inputs {
            inputs.iter().for_each(|input| takers.entry(input.step).or_default().push(*taker));
        }
        takers
    }

    /// Returns what a step boots from: the snapshot of its lineage parent, or its image if it has none.
    #[must_use]
    pub fn base(&self, step: StepIndex) -> Base<'_> {
        match self.dag.lineage_parent(step) {
            Some(parent) => Base::Snapshot(parent),
            None => Base::Image(self.step(step).step.image.as_deref().unwrap_or(DEFAULT_IMAGE)),
        }
    }

    /// Returns the image that the lineage of `step` starts from.
    #[must_use]
    pub fn root_image(&self, mut step: StepIndex) -> &str {
        loop {
            match self.base(step) {
                Base::Snapshot(parent) => step = parent,
                Base::Image(image) => return image,
            }
        }
    }

    /// Returns whether the root image of `step` is the same on another machine, and not a directory of this
    /// one.
    #[must_use]
    pub fn is_portable(&self, step: StepIndex) -> bool {
        let image = self.root_image(step);
        image != DEFAULT_IMAGE && !is_rootfs(image)
    }
}

/// A service of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BoundService {
    /// Its name.
    pub name: Arc<str>,
    /// What it boots from.
    pub source: ServiceSource,
}

impl BoundService {
    /// Returns the step whose snapshot it boots from, if it does.
    #[must_use]
    pub fn seed(&self) -> Option<StepIndex> {
        match self.source {
            ServiceSource::Step(seed) => Some(seed),
            ServiceSource::Image(_) => None,
        }
    }
}

/// The source of a service's filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceSource {
    /// An image, with substitutions applied.
    Image(Arc<str>),
    /// The snapshot of this step.
    Step(StepIndex),
}

/// What the snapshot of a step is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotUse {
    /// Nothing needs it, so the step commits no snapshot.
    None,
    /// For steps on the same runner in this build. The runner may commit in a form of its own.
    SameRunner,
    /// For something other than the runner's own steps in this build: a child on another runner, a step that
    /// gets files of it, the cache, or the user.
    Anywhere,
}

impl SnapshotUse {
    /// Returns whether the step commits a snapshot.
    #[must_use]
    pub fn is_wanted(self) -> bool {
        self != Self::None
    }

    /// Returns whether the snapshot leaves its runner.
    #[must_use]
    pub fn travels(self) -> bool {
        self == Self::Anywhere
    }
}

/// The source of a step's filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base<'a> {
    /// An image, with defaults and substitutions applied.
    Image(&'a str),
    /// The snapshot of this step.
    Snapshot(StepIndex),
}

/// A step that has a runner.
#[derive(Debug)]
#[non_exhaustive]
pub struct BoundStep {
    /// The command, with its image resolved.
    pub step: Arc<CommandStep>,
    /// The whole environment.
    pub env: Arc<Env>,
    /// The name for users: the label, or the first 40 characters of the command's first line.
    pub display_name: Arc<str>,
    /// The index of the runner.
    pub runner: RunnerIndex,
    /// Whether a `builds_in` child boots from this step.
    pub has_lineage_children: bool,
    /// Whether one of them runs on another runner.
    pub has_foreign_children: bool,
    /// Whether a step gets files of this one.
    pub is_input: bool,
    /// Whether the step runs regardless of the cache.
    pub is_refreshed: bool,
}

impl BoundStep {
    /// Returns the wall-clock budget of one attempt.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.step.timeout_seconds.map(|seconds| Duration::from_secs(seconds.get().into()))
    }
}

/// The image of root steps if neither the step nor the pipeline names one: this machine's system.
pub const DEFAULT_IMAGE: &str = "host";

/// Returns whether an image is a directory of this machine.
pub(super) fn is_rootfs(image: &str) -> bool {
    image.strip_prefix("rootfs:").is_some_and(|dir| !dir.is_empty())
}

/// The number of a command's characters to show if there is no label.
const DISPLAY_CHARS: usize = 40;

/// Returns the name of a step for users.
pub(super) fn display_name(step: &CommandStep) -> Arc<str> {
    if let Some(label) = step.label.as_ref().filter(|label| !label.trim().is_empty()) {
        return Arc::clone(label);
    }
    let Some(line) = step.cmd.lines().map(str::trim).find(|line| !line.is_empty()) else {
        return Arc::clone(&step.key);
    };
    match line.char_indices().nth(DISPLAY_CHARS) {
        Some((cut, _)) => format!("{}…", line[..cut].trim_end()).into(),
        None if line.len() == step.cmd.len() => Arc::clone(&step.cmd),
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
