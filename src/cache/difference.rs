//! The differences between the keys of a step in two runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Serialize;

use super::{
    StepInputPart,
    parts::{BaseRecord, RunParts, StepParts},
};
use crate::source::SourceTimes;

/// One part that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
#[non_exhaustive]
pub enum Difference {
    /// The project: its origin, or its directory.
    Project {
        /// Before.
        was: String,
        /// And now.
        is: String,
    },
    /// The key that the pipeline's language computed from what the step's policy refers to.
    DslKey,
    /// The files that the paths of `on_change` match: names, types, modes, targets of links, contents.
    Inputs,
    /// The same, if it is known which of the files these are.
    InputFiles {
        /// Their paths in the source.
        paths: Vec<String>,
    },
    /// The files of another step that the step gets: their content, or where it gets them.
    StepInput {
        /// The other step.
        step: String,
        /// The path there.
        path: String,
    },
    /// Files of another step that the step gets now.
    StepInputAdded {
        /// The other step.
        step: String,
        /// The path there.
        path: String,
    },
    /// Files of another step that the step no longer gets.
    StepInputRemoved {
        /// The other step.
        step: String,
        /// The path there.
        path: String,
    },
    /// The command.
    Command,
    /// A variable that was added.
    EnvAdded {
        /// Its name.
        name: String,
    },
    /// A variable that was removed.
    EnvRemoved {
        /// Its name.
        name: String,
    },
    /// A variable that has another value.
    EnvChanged {
        /// Its name.
        name: String,
    },
    /// The image.
    Image {
        /// Its name before.
        was: String,
        /// Its name now.
        is: String,
    },
    /// The content that the image's unchanged name refers to.
    ImageContent {
        /// The name.
        image: String,
        /// The identity before.
        was: String,
        /// The identity now.
        is: String,
    },
    /// The parent step.
    Parent {
        /// The key of the parent step before, if there was one.
        was: Option<String>,
        /// And now.
        is: Option<String>,
    },
    /// The snapshot of the parent step.
    ParentSnapshot {
        /// The parent step's key.
        parent: String,
    },
    /// The runner, or its version.
    Runner {
        /// Before, as `name/version`.
        was: String,
        /// And now.
        is: String,
    },
    /// The operating system and architecture.
    Platform {
        /// Before.
        was: String,
        /// And now.
        is: String,
    },
    /// The times of source files that the step sees.
    SourceTimes {
        /// Before.
        was: SourceTimes,
        /// And now.
        is: SourceTimes,
    },
    /// The patterns of files that are left out of the source.
    SourceIgnore,
    /// The arguments for the runner.
    RunnerArgs,
    /// The mode of the runner, such as how it maps user ids.
    Mode {
        /// Before.
        was: String,
        /// And now.
        is: String,
    },
}

/// Returns the differences between the files of other steps that a step got in two runs.
pub(super) fn input_differences(old: &[StepInputPart], new: &[StepInputPart]) -> Vec<Difference> {
    /// What is shown of one path: the targets, with the digest of what is there.
    type Shown = BTreeSet<(String, [u8; 32])>;
    let named = |parts: &[StepInputPart]| {
        let mut named: BTreeMap<(String, String), Shown> = BTreeMap::new();
        for StepInputPart { target, digest, step, path } in parts {
            named.entry((step.clone(), path.clone())).or_default().insert((target.clone(), *digest));
        }
        named
    };
    let (mut was, is) = (named(old), named(new));
    let mut found = Vec::new();
    for ((step, path), now) in is {
        match was.remove(&(step.clone(), path.clone())) {
            None => found.push(Difference::StepInputAdded { step, path }),
            Some(before) if before != now => found.push(Difference::StepInput { step, path }),
            Some(_) => {}
        }
    }
    found.extend(was.into_keys().map(|(step, path)| Difference::StepInputRemoved { step, path }));
    found
}

/// Returns the differences between the keys of two runs' steps, except for files of other steps.
pub(super) fn differences(
    (old_run, old): (&RunParts, &StepParts),
    (new_run, new): (&RunParts, &StepParts),
) -> Vec<Difference> {
    let mut found = Vec::new();
    if old_run.project != new_run.project {
        found.push(Difference::Project { was: old_run.project.clone(), is: new_run.project.clone() });
    }
    if old_run.source_times != new_run.source_times {
        found.push(Difference::SourceTimes { was: old_run.source_times, is: new_run.source_times });
    }
    if old_run.settings.source_ignore != new_run.settings.source_ignore {
        found.push(Difference::SourceIgnore);
    }
    if old.dsl_key != new.dsl_key {
        found.push(Difference::DslKey);
    }
    if old.inputs != new.inputs {
        found.push(Difference::Inputs);
    }
    if old.command != new.command {
        found.push(Difference::Command);
    }
    let (none, also_none) = (BTreeMap::new(), BTreeMap::new());
    let (was, is) = (old_run.env(old).unwrap_or(&none), new_run.env(new).unwrap_or(&also_none));
    for (name, value) in is {
        match was.get(name) {
            None => found.push(Difference::EnvAdded { name: name.clone() }),
            Some(old) if old != value => found.push(Difference::EnvChanged { name: name.clone() }),
            Some(_) => {}
        }
    }
    let removed = was.keys().filter(|name| !is.contains_key(*name));
    found.extend(removed.map(|name| Difference::EnvRemoved { name: name.clone() }));
    let text = |text: &Arc<str>| text.to_string();
    match (&old.base, &new.base) {
        (was, is) if was == is => {}
        (BaseRecord::Image { name: was, .. }, BaseRecord::Image { name: is, .. }) if was != is => {
            found.push(Difference::Image { was: text(was), is: text(is) });
        }
        (BaseRecord::Image { identity: was, .. }, BaseRecord::Image { name, identity: is }) => {
            found.push(Difference::ImageContent { image: text(name), was: text(was), is: text(is) });
        }
        (BaseRecord::Parent { step: was, .. }, BaseRecord::Parent { step: is, .. }) if was == is => {
            found.push(Difference::ParentSnapshot { parent: text(is) });
        }
        (was, is) => {
            let parent = |base: &BaseRecord| match base {
                BaseRecord::Parent { step, .. } => Some(text(step)),
                BaseRecord::Image { .. } => None,
            };
            found.push(Difference::Parent { was: parent(was), is: parent(is) });
        }
    }
    let runner = |step: &StepParts| format!("{}/{}", step.runner, step.runner_version);
    let mut compare = |was: &str, is: &str, difference: fn(String, String) -> Difference| {
        if was != is {
            found.push(difference(was.to_owned(), is.to_owned()));
        }
    };
    compare(&runner(old), &runner(new), |was, is| Difference::Runner { was, is });
    compare(&old.platform, &new.platform, |was, is| Difference::Platform { was, is });
    compare(&old.mode, &new.mode, |was, is| Difference::Mode { was, is });
    if old.runner_args != new.runner_args {
        found.push(Difference::RunnerArgs);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_a_step_gets_at_two_targets_changes_with_either() {
        let part = |target: &str, byte: u8| StepInputPart {
            target: target.into(),
            digest: [byte; 32],
            step: "a".into(),
            path: "/x".into(),
        };
        let changed = [Difference::StepInput { step: "a".into(), path: "/x".into() }];
        let old = [part("/in/1", 1), part("/in/2", 1)];
        assert!(input_differences(&old, &old).is_empty());
        for new in [&[part("/in/1", 1), part("/in/3", 1)][..], &[part("/in/0", 1), part("/in/2", 1)], &old[1..]] {
            assert_eq!(input_differences(&old, new), changed);
            assert_eq!(input_differences(new, &old), changed);
        }
    }
}
