//! The last lines of a build that failed: commands to type next.

use std::{env, io, path::Path};

use hm_exec::{BuildOutcome, BuildStatus, StepResultSummary, StepStatus, quote::quote, store::StoreHandle};

use super::Args;
use crate::{
    commands::print,
    failure::Outcome,
    reporter::{Format, style::Style, terminal_size, text, to_stderr},
    typed_names,
};

/// What stands between two commands.
const SEPARATOR: &str = " · ";

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

/// Prints commands to type next, if a step failed, or could not run, or was stopped by a build that could not
/// go on: where the rest of the reporter's output is.
pub(super) fn print_next_commands(
    store: &StoreHandle,
    outcome: &BuildOutcome,
    format: Format,
    again: Option<String>,
) -> Outcome<()> {
    let Some(store) = store.get_opened() else { return Ok(()) };
    let failed = |status| matches!(status, StepStatus::Failed | StepStatus::TimedOut | StepStatus::OutOfMemory);
    let is_stopped = |step: &StepResultSummary| step.status == StepStatus::Canceled && step.attempts > 0;
    let run = outcome.build.run_id;
    let is_kept = |key: &str| matches!(store.steps().of_run(run, key), Ok(Some((_, false))));
    let could_not_run = outcome.status == BuildStatus::Infrastructure;
    let mut steps = outcome.steps.iter().filter(|step| failed(step.status));
    let first = steps.next().or_else(|| {
        let mut others = outcome.steps.iter().filter(|_| could_not_run);
        let broken = others.clone().find(|step| step.status == StepStatus::Infrastructure);
        broken.or_else(|| others.find(|step| is_stopped(step)))
    });
    let Some(first) = first else { return Ok(()) };
    let mut commands = vec![("logs", format!("hm logs {}", typed_names::step(run, &first.key)))];
    if let Some(step) = std::iter::once(first).chain(steps).find(|step| is_kept(&step.key)) {
        commands.push(("shell", format!("hm shell {}", typed_names::step(run, &step.key))));
    }
    commands.extend(again.map(|command| ("again", command)));
    let style = if format.is_on_stdout() { Style::of(&io::stdout()) } else { Style::of(&io::stderr()) };
    let commands: Vec<String> =
        commands.iter().map(|(what, command)| format!("{} {command}", style.dim(what))).collect();
    let columns = match format {
        Format::Github | Format::Gitlab => None,
        format if format.is_on_stdout() => terminal_size(io::stdout()),
        _ => terminal_size(io::stderr()),
    };
    let text = fill(&commands, &text::symbols(SEPARATOR), columns.map(|(_, columns)| columns)).join("\n");
    // An old command of the service counts anywhere in a line.
    let text = if format == Format::Github { text.replace("##[", "## [") } else { text };
    if format.is_on_stdout() {
        print(&format!("{text}\n"))?;
    } else {
        to_stderr(&text);
    }
    Ok(())
}

/// Returns lines of commands, with as many on each as fit, so that the terminal wraps none that could stand
/// on a line of its own.
fn fill(commands: &[String], separator: &str, columns: Option<usize>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for command in commands {
        let has_room = |line: &String| {
            let needed = text::columns(line) + text::columns(separator) + text::columns(command);
            columns.is_none_or(|columns| needed <= columns)
        };
        match lines.last_mut() {
            Some(line) if has_room(line) => {
                line.push_str(separator);
                line.push_str(command);
            }
            _ => lines.push(format!("  {command}")),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_do_not_fit_go_to_the_next_line() {
        let commands = ["one", "two", "three"].map(String::from);
        assert_eq!(fill(&commands, SEPARATOR, None), ["  one · two · three"]);
        assert_eq!(fill(&commands, SEPARATOR, Some(19)), ["  one · two · three"]);
        assert_eq!(fill(&commands, SEPARATOR, Some(18)), ["  one · two", "  three"]);
        assert_eq!(fill(&commands, SEPARATOR, Some(1)), ["  one", "  two", "  three"]);
    }
}
