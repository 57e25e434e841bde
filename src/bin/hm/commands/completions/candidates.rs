//! The pipelines and steps that can follow in a command line.
//!
//! They are found without running anything of the project: in its IR files, and in the records of earlier
//! runs. Names that a shell would take for anything but a word are left out, because a shell inserts them as
//! they are, and a project chooses them.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsStr,
    path::PathBuf,
    sync::Arc,
};

use clap::{Arg, Command};
use clap_complete::{ArgValueCandidates, ArgValueCompleter, CompletionCandidate};
use hm_exec::{Plan, event::StepRecord, store::Store};

use crate::{
    cli,
    commands::help,
    find_step::{find_run, runs_of, steps_of},
    pipelines::{Definition, Source},
    reporter::text,
    store,
};

/// The number of earlier runs in which names are looked for.
const RUNS: u32 = 100;

/// The number of a pipeline's runs whose steps are its steps.
const RUNS_OF_STEPS: u32 = 5;

/// The names of steps, with their labels.
type Steps = BTreeMap<String, Option<String>>;

/// Makes the arguments that name pipelines or steps complete these names.
pub(super) fn add_to(command: Command) -> Command {
    command.mut_subcommands(|command| {
        let name = command.get_name().to_owned();
        command.mut_args(|arg| add_to_arg(&name, arg))
    })
}

fn add_to_arg(command: &str, arg: Arg) -> Arg {
    match (command, arg.get_id().as_str()) {
        ("run" | "plan" | "verify" | "render" | "trust" | "runs" | "flaky", "pipeline") => {
            arg.add(ArgValueCandidates::new(|| Names::typed().pipelines()))
        }
        ("run" | "plan" | "verify", "steps" | "from" | "refresh") => {
            arg.add(ArgValueCandidates::new(|| shown(Names::typed().steps())))
        }
        ("logs" | "why" | "inputs" | "export" | "shell", "step") => arg.add(ArgValueCompleter::new(earlier_steps)),
        ("help", "words") => {
            arg.add(ArgValueCandidates::new(|| help::names(&cli()).into_iter().map(CompletionCandidate::new).collect()))
        }
        ("report", "run") => arg.add(ArgValueCandidates::new(|| Names::typed().runs())),
        _ => arg,
    }
}

/// Returns whether a shell takes a text for a single word that means itself.
fn is_plain(name: &str) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '+' | ',' | '@');
    !name.is_empty() && !name.starts_with('-') && name.chars().all(is_plain)
}

fn shown(names: Steps) -> Vec<CompletionCandidate> {
    let plain = names.into_iter().filter(|(name, _)| is_plain(name));
    plain.map(|(name, label)| CompletionCandidate::new(name).help(label.map(|it| text::clean(&it).into()))).collect()
}

/// Completes `[RUN/]STEP` by the steps of the last runs, or by those of the run that is named.
fn earlier_steps(typed: &OsStr) -> Vec<CompletionCandidate> {
    let names = Names::typed();
    let (Some(typed), Some(store)) = (typed.to_str(), &names.store) else { return Vec::new() };
    let mut steps = Steps::new();
    match typed.split_once('/') {
        Some((run, _)) => {
            let Ok((_, records, _)) = find_run(store, typed, names.dir.as_deref()) else { return Vec::new() };
            steps.extend(records.iter().map(step).map(|(key, label)| (format!("{run}/{key}"), label)));
        }
        None => {
            for pipeline in names.earlier_pipelines() {
                steps.extend(names.last_steps(&pipeline));
            }
        }
    }
    steps.retain(|name, _| name.starts_with(typed));
    shown(steps)
}

/// The pipelines and steps of the directory that the command line names.
struct Names {
    /// The words of the command line.
    words: Vec<String>,
    dir: Option<PathBuf>,
    store: Option<Arc<Store>>,
    files: Vec<Definition>,
}

impl Names {
    /// Reads what the command line has. What cannot be read completes nothing.
    fn typed() -> Self {
        // What follows `--` is the command line, of which hm itself is the first word.
        let words: Vec<String> = env::args_os()
            .skip_while(|word| word != "--")
            .skip(2)
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let dir = dir_of(&words);
        // A store that does not exist is not created for this.
        let has_store = store::dir().is_ok_and(|dir| dir.is_dir());
        let store = if has_store { store::open().ok() } else { None };
        let files = Source::locate(dir.as_deref()).and_then(|source| source.ir_files()).unwrap_or_default();
        Self { words, dir, store, files }
    }

    fn pipelines(&self) -> Vec<CompletionCandidate> {
        let names: BTreeSet<String> = self.all_pipelines();
        names.into_iter().filter(|name| is_plain(name)).map(CompletionCandidate::new).collect()
    }

    fn all_pipelines(&self) -> BTreeSet<String> {
        let files = self.files.iter().map(|definition| definition.name.clone());
        files.chain(self.earlier_pipelines()).collect()
    }

    /// Returns the pipelines of earlier runs.
    fn earlier_pipelines(&self) -> BTreeSet<String> {
        let store = self.store.as_ref();
        let runs = store.and_then(|store| runs_of(store, self.dir.as_deref(), None, RUNS).ok());
        runs.into_iter().flatten().map(|run| run.pipeline).collect()
    }

    fn runs(&self) -> Vec<CompletionCandidate> {
        let store = self.store.as_ref();
        let runs = store.and_then(|store| runs_of(store, self.dir.as_deref(), None, RUNS).ok());
        let of =
            |id: String, pipeline: &str| CompletionCandidate::new(&id[..8]).help(Some(text::clean(pipeline).into()));
        runs.into_iter().flatten().map(|run| of(run.id.to_string(), &run.pipeline)).collect()
    }

    /// Returns the steps of the pipeline that is named, or else of all.
    fn steps(&self) -> Steps {
        let pipelines = self.all_pipelines();
        let named = self.words.iter().skip(1).find(|word| pipelines.contains(*word));
        let chosen = pipelines.iter().filter(|pipeline| named.is_none_or(|named| *pipeline == named));
        let mut steps = Steps::new();
        for pipeline in chosen {
            match self.files.iter().find(|definition| definition.name == *pipeline) {
                Some(definition) => steps.extend(steps_in(definition)),
                None => steps.extend(self.last_steps(pipeline)),
            }
        }
        steps
    }

    /// Returns the steps that a pipeline had in its last runs, of which some may have been of a part.
    fn last_steps(&self, pipeline: &str) -> Steps {
        let Some(store) = &self.store else { return Steps::new() };
        let runs = runs_of(store, self.dir.as_deref(), Some(pipeline), RUNS_OF_STEPS).unwrap_or_default();
        // The newest last, because its labels count.
        let records = runs.iter().rev().filter_map(|run| steps_of(store, run).ok()).flatten();
        records.map(|record| step(&record)).collect()
    }
}

/// Returns the steps of an IR file.
fn steps_in(definition: &Definition) -> Steps {
    let Ok(plan) = Plan::parse(&*definition.ir_json) else { return Steps::new() };
    let nodes = plan.pipeline().nodes.iter();
    nodes.map(|node| (node.step.key.to_string(), node.step.label.as_deref().map(String::from))).collect()
}

fn step(record: &StepRecord) -> (String, Option<String>) {
    let label = Some(&record.display_name).filter(|label| **label != record.key);
    (record.key.to_string(), label.map(|label| label.to_string()))
}

/// Returns the value of `-d` or `--dir`.
fn dir_of(words: &[String]) -> Option<PathBuf> {
    let value = words.iter().enumerate().find_map(|(at, word)| match word.as_str() {
        "-d" | "--dir" => words.get(at + 1).map(String::as_str),
        _ => word.strip_prefix("--dir="),
    });
    value.map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_shell_takes_for_words_are_completed() {
        for plain in ["unit", "build-x86_64", "a.b/c", "größe"] {
            assert!(is_plain(plain), "{plain}");
        }
        for other in
            ["", "-rf", "a b", "$(id)", "`id`", "a;b", "a|b", "a>b", "~", "*", "a\nb", "a'b", "\\", "!x", "a:b"]
        {
            assert!(!is_plain(other), "{other:?}");
        }
    }

    #[test]
    fn the_directory_is_that_of_the_command_line() {
        let of = |words: &[&str]| dir_of(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["run", "-d", "x", "ci"]), Some("x".into()));
        assert_eq!(of(&["run", "--dir=y"]), Some("y".into()));
        assert_eq!(of(&["run", "ci", "-d"]), None);
    }
}
