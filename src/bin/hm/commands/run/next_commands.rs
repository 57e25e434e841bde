//! The last line of a build that failed: commands to type next.

use std::{env, io, path::Path};

use hm_exec::{BuildOutcome, StepStatus, quote::quote, store::StoreHandle};

use super::Args;
use crate::{
    commands::print,
    failure::Outcome,
    reporter::{Format, style::Style, text, to_stderr},
    typed_names::TypedNames,
};

/// Returns the command line that runs again what did not pass. Returns `None` if the command line cannot be
/// repeated, or has values that a log should not show.
pub(super) fn again(args: &Args) -> Option<String> {
    let is_stream = args
        .source
        .file
        .as_deref()
        .is_some_and(|file| file == Path::new("-") || file.starts_with("/dev") || file.starts_with("/proc"));
    if is_stream || args.bind.has_values() {
        return None;
    }
    let mut words: Vec<String> = env::args_os().skip(1).map(|word| word.into_string().ok()).collect::<Option<_>>()?;
    // An engine's headers have credentials, and its address may.
    if words.iter().any(|word| word.starts_with("--remote") || word.starts_with("--docker-host")) {
        return None;
    }
    if !args.part.failed && !args.part.names_steps(&args.source) {
        let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
        words.insert(end, "--failed".into());
    }
    let words: Vec<_> = words.iter().map(|word| quote(word)).collect();
    Some(text::clean(&format!("hm {}", words.join(" "))))
}

/// Prints commands to type next, if a step failed: where the rest of the reporter's output is.
pub(super) fn print_next_commands(
    store: &StoreHandle,
    outcome: &BuildOutcome,
    names: TypedNames,
    format: Format,
    again: Option<String>,
) -> Outcome<()> {
    let Some(store) = store.get_opened() else { return Ok(()) };
    let failed = |status| matches!(status, StepStatus::Failed | StepStatus::TimedOut | StepStatus::OutOfMemory);
    let run = outcome.build.run_id;
    let is_kept = |key: &str| matches!(store.steps().of_run(run, key), Ok(Some((_, false))));
    let mut steps = outcome.steps.iter().filter(|step| failed(step.status));
    let Some(first) = steps.next() else { return Ok(()) };
    let mut commands = vec![("logs", format!("hm logs {}", names.step(run, &first.key)))];
    if let Some(step) = std::iter::once(first).chain(steps).find(|step| is_kept(&step.key)) {
        commands.push(("shell", format!("hm shell {}", names.step(run, &step.key))));
    }
    commands.extend(again.map(|command| ("again", command)));
    let style = if format.is_on_stdout() { Style::of(&io::stdout()) } else { Style::of(&io::stderr()) };
    let commands: Vec<String> =
        commands.iter().map(|(what, command)| format!("{} {command}", style.dim(what))).collect();
    let line = format!("  {}", commands.join(" · "));
    // An old command of the service counts anywhere in a line.
    let line = if format == Format::Github { line.replace("##[", "## [") } else { line };
    if format.is_on_stdout() {
        print(&format!("{line}\n"))?;
    } else {
        to_stderr(&line);
    }
    Ok(())
}
