//! The last lines of a build: what failed and why, or what the build took.

use std::{sync::Arc, time::Duration};

use hm_exec::{
    BuildStatus, StepStatus,
    plan::{Dag, StepIndex},
    size,
};

use super::{
    steps::{FailedStep, MAX_FAILURES, Steps, signal},
    style::Style,
    tail::{Line, MAX_LINES},
    text,
};

/// The maximum number of characters of a line of output. A longer line fills the screen of a failure.
const LINE_CHARS: usize = 400;

/// The maximum number of names in a list of steps; the others are counted.
const NAMED: usize = 5;

/// The most lines about tests and outputs.
const MAX_REPORTS: usize = 60;

/// Less memory than this is not worth a word, in bytes.
const MUCH_MEMORY: u64 = 256 << 20;

/// Less processor time than this is not worth a word, in milliseconds.
const MUCH_CPU_MS: u64 = 10_000;

/// The columns of a rule if the terminal's are not known, and the most of them.
const RULE: (usize, usize) = (80, 100);

/// How to draw the last screen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Canvas {
    pub(super) style: Style,
    /// The columns of the terminal, if there is one.
    pub(super) columns: Option<usize>,
}

/// Returns the last lines of a build that ended with `status`. `None` stands for a build that was killed.
pub(super) fn lines(steps: &Steps, status: Option<BuildStatus>, duration_ms: u64, canvas: Canvas) -> Vec<String> {
    let style = canvas.style;
    let mut lines: Vec<String> = steps.remarks.iter().map(|line| format!("  {line}")).collect();
    for failure in &steps.failures {
        lines.extend(self::failure(steps, failure, steps.failures.len(), canvas));
    }
    if !steps.more_failures.is_empty() {
        let more = format!("── FAILED  {}", names(&steps.more_failures));
        lines.push(style.bad(&more));
    }
    lines.extend(reports(steps).map(|line| format!("  {line}")));
    let took = text::duration(Duration::from_millis(duration_ms));
    if status == Some(BuildStatus::Passed) {
        lines.push(passed(steps, &took, style));
        return lines;
    }
    let verdict = match status {
        Some(BuildStatus::Failed) if steps.ended.failed > 0 => "",
        Some(BuildStatus::Failed) => "failed: ",
        Some(BuildStatus::Canceled) => "cancelled: ",
        Some(BuildStatus::TimedOut) => "timed out: ",
        None => "killed: ",
        _ => "could not run: ",
    };
    let is_odd = matches!(status, None | Some(BuildStatus::Canceled));
    let head = format!("── {verdict}{}", counts(steps, status.is_none()));
    let head = if is_odd { style.odd(&head) } else { style.bad(&head) };
    let run = &steps.run.to_string()[..8];
    let used: String = usage(steps).into_iter().map(|used| format!(" · {used}")).collect();
    lines.push(format!("{head} · {took}{used} · run {run}"));
    lines
}

/// Returns the lines about tests and outputs, if they are not too many.
pub(super) fn reports(steps: &Steps) -> impl Iterator<Item = String> {
    let more = steps.reports.len().saturating_sub(MAX_REPORTS);
    let more = (more > 0).then(|| format!("... {more} more lines about tests and outputs"));
    steps.reports.iter().take(MAX_REPORTS).cloned().chain(more)
}

/// Returns the block of a failed step, one of `failures`: what it was, its command, and its last lines.
pub(super) fn failure(steps: &Steps, failure: &FailedStep, failures: usize, canvas: Canvas) -> Vec<String> {
    let limit = match failures {
        0 | 1 => MAX_LINES,
        2 | 3 => 6,
        _ => 3,
    };
    let style = canvas.style;
    let mut lines = vec![heading(failure, canvas)];
    if let Some(command) = steps.plan.command(failure.index, &failure.key) {
        lines.push(format!("  {}", style.dim(&format!("$ {}", one_line(&command)))));
    }
    let message = failure.message.iter().flat_map(|message| message.lines()).filter(|line| !line.trim().is_empty());
    lines.extend(message.map(|line| format!("  {}", text::cut(&text::clean(line), LINE_CHARS))));
    let excerpt = failure.tail.excerpt(limit);
    if excerpt.earlier > 0 {
        let count = usize::try_from(excerpt.earlier).unwrap_or(usize::MAX);
        let mut more = format!("… {}", text::count(count, "earlier line"));
        if let Some(names) = steps.plan.names {
            more.push_str(&format!(": hm logs {}", names.step(steps.run, &failure.key)));
        }
        lines.push(format!("  {}", style.dim(&more)));
    }
    for line in &excerpt.lines {
        lines.push(match line {
            None => format!("    {}", style.dim("…")),
            Some(line) => format!("    {}", output(line, style)),
        });
    }
    if excerpt.lines.is_empty() && failure.status != StepStatus::Infrastructure {
        lines.push(format!("    {}", style.dim("(no output)")));
    }
    lines
}

/// Returns the first line of a failed step's block: a rule with what it was and how it ended.
fn heading(failure: &FailedStep, Canvas { style, columns }: Canvas) -> String {
    let what = match failure.status {
        StepStatus::TimedOut => "TIMED OUT",
        StepStatus::OutOfMemory => "OUT OF MEMORY",
        StepStatus::Infrastructure => "COULD NOT RUN",
        _ => "FAILED",
    };
    let mut facts = Vec::new();
    if failure.status != StepStatus::Infrastructure {
        let signal = signal(failure.exit_code).map(|signal| format!(" (signal {signal})")).unwrap_or_default();
        facts.push(format!("exit {}{signal}", failure.exit_code));
    }
    facts.push(text::duration(Duration::from_millis(failure.duration_ms)));
    if failure.attempt > 1 {
        facts.push(format!("attempt {}", failure.attempt));
    }
    let base = failure.base.as_ref().map(|base| format!("from {}", text::clean(base)));
    let place: Vec<String> = failure.runner.iter().map(|runner| text::clean(runner)).chain(base).collect();
    if !place.is_empty() {
        facts.push(place.join(", "));
    }
    let rest = format!(" · {} ", facts.join(" · "));
    let (default, max) = RULE;
    let columns = columns.unwrap_or(default).min(max);
    let used = "── ".chars().count() + what.len() + 2 + text::columns(&failure.title) + text::columns(&rest);
    let rule = "─".repeat(columns.saturating_sub(used));
    format!("{}  {}{rest}{rule}", style.bad(&format!("── {what}")), failure.title).trim_end().to_owned()
}

fn output(line: &Line, style: Style) -> String {
    let mut shown = if line.is_error { style.bad("stderr │ ") } else { String::new() };
    text::push_clean(&mut shown, text::cut(&line.text, LINE_CHARS).as_ref(), style.colors);
    shown
}

/// Returns the first line of a command that says something, and how many follow.
fn one_line(command: &str) -> String {
    let mut lines = command.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = text::clean(lines.next().unwrap_or_default());
    let first = text::cut(&first, LINE_CHARS);
    match lines.count() {
        0 => first.into_owned(),
        more => format!("{first} … and {}", text::count(more, "more line")),
    }
}

/// Returns how many steps ended how.
fn counts(steps: &Steps, is_killed: bool) -> String {
    let skipped = match steps.skipped.is_empty() {
        true => String::new(),
        false => format!(" ({})", names(&steps.skipped)),
    };
    let ended = steps.ended;
    let waiting = steps.len().saturating_sub(steps.ended() + steps.running());
    let (killed, waiting) = if is_killed { (steps.running(), waiting) } else { (0, 0) };
    let counts = [
        (ended.failed, "failed", ""),
        (ended.failed_allowed, "failed (allowed)", ""),
        (ended.passed, "passed", ""),
        (ended.flaky, "flaky", ""),
        (ended.cached, "cached", ""),
        (ended.canceled, "cancelled", ""),
        (killed, "killed", ""),
        (ended.skipped, "skipped", &*skipped),
        (waiting, "not started", ""),
    ];
    let counts = counts.iter().filter(|(count, ..)| *count > 0);
    let counts: Vec<String> = counts.map(|(count, what, more)| format!("{count} {what}{more}")).collect();
    if counts.is_empty() { "no steps".into() } else { counts.join(", ") }
}

/// Returns the line about a build that passed.
fn passed(steps: &Steps, took: &str, style: Style) -> String {
    let ended = steps.ended;
    let mut parts = vec![style.good("passed"), text::count(steps.len(), "step"), took.to_owned()];
    if ended.cached > 0 {
        let saved = match steps.saved_ms {
            0 => String::new(),
            saved => format!(" (saved {})", text::duration(Duration::from_millis(saved))),
        };
        parts.push(format!("{} cached{saved}", ended.cached));
    }
    if ended.flaky > 0 {
        parts.push(style.odd(&format!("{} flaky", ended.flaky)));
    }
    if ended.failed_allowed > 0 {
        parts.push(style.odd(&format!("{} failed (allowed)", ended.failed_allowed)));
    }
    if ended.skipped > 0 {
        parts.push(format!("{} skipped ({})", ended.skipped, names(&steps.skipped)));
    }
    if let Some((path, ms)) = steps.plan.dag.as_ref().and_then(|dag| critical_path(dag, |step| steps.took_ms(step))) {
        let took = text::duration(Duration::from_millis(ms));
        parts.push(format!("critical path {} {took}", shown_path(steps, &path)));
    }
    parts.extend(usage(steps));
    parts.join(" · ")
}

/// Describes what the steps used of the machine, as far as it is much.
fn usage(steps: &Steps) -> Vec<String> {
    let mut parts = Vec::new();
    if steps.cpu_ms >= MUCH_CPU_MS {
        parts.push(format!("CPU {}", text::duration(Duration::from_millis(steps.cpu_ms))));
    }
    if let Some((key, peak)) = steps.hungriest.as_ref().filter(|(_, peak)| *peak >= MUCH_MEMORY) {
        parts.push(format!("peak {} ({})", size::show(*peak), text::clean(key)));
    }
    parts
}

/// Returns the path of at least two steps that took the longest, and its time in milliseconds.
fn critical_path(dag: &Dag, took_ms: impl Fn(StepIndex) -> u64) -> Option<(Vec<StepIndex>, u64)> {
    // By step: the time until its end, and the parent that ended last.
    let mut ends: Vec<(u64, Option<StepIndex>)> = vec![(0, None); dag.len()];
    let mut last = None;
    for &step in dag.order() {
        // Steps that took no time are no part of it.
        let longest = dag.parents(step).iter().map(|link| (ends[link.step.get()].0, link.step));
        let longest = longest.filter(|(ms, _)| *ms > 0).max_by_key(|(ms, _)| *ms);
        let end = longest.map_or(0, |(ms, _)| ms).saturating_add(took_ms(step));
        ends[step.get()] = (end, longest.map(|(_, parent)| parent));
        if last.is_none_or(|last: StepIndex| ends[last.get()].0 < end) {
            last = Some(step);
        }
    }
    let total = ends.get(last?.get())?.0;
    let mut path = Vec::new();
    let mut step = last;
    while let Some(at) = step {
        if took_ms(at) > 0 {
            path.push(at);
        }
        step = ends[at.get()].1;
    }
    path.reverse();
    (path.len() > 1).then_some((path, total))
}

fn shown_path(steps: &Steps, path: &[StepIndex]) -> String {
    let name = |step: &StepIndex| text::clean(steps.key(*step));
    let shown: Vec<String> = match path {
        [first, second, .., last] if path.len() > NAMED => vec![name(first), name(second), "…".into(), name(last)],
        path => path.iter().map(name).collect(),
    };
    shown.join(" → ")
}

/// Returns the first few names of a list, and how many follow.
fn names(keys: &[Arc<str>]) -> String {
    let mut shown: Vec<String> = keys.iter().take(NAMED).map(|key| text::clean(key)).collect();
    if keys.len() > NAMED {
        shown.push(format!("{} more", keys.len() - NAMED));
    }
    shown.join(", ")
}

const _: () = assert!(MAX_FAILURES >= 3, "three failures are shown whole");

#[cfg(test)]
mod tests {
    use hm_exec::ir::{Edge, EdgeKind::DependsOn};

    use super::*;

    #[test]
    fn the_critical_path_is_the_longest_by_time() {
        // 0 -> 1 -> 3, 0 -> 2 -> 3, 4 alone
        let edges = [(0, 1), (1, 3), (0, 2), (2, 3)].map(|(from, to)| Edge(from, to, DependsOn));
        let dag = Dag::new(5, &edges).unwrap();
        let path = |took: [u64; 5]| {
            let path = critical_path(&dag, |step| took[step.get()]);
            path.map(|(path, ms)| (path.iter().map(|step| step.0).collect::<Vec<_>>(), ms))
        };
        assert_eq!(path([1, 5, 2, 1, 3]), Some((vec![0, 1, 3], 7)));
        assert_eq!(path([1, 2, 5, 1, 3]), Some((vec![0, 2, 3], 7)));
        // One step, and no steps that ran.
        assert_eq!(path([1, 2, 5, 1, 30]), None);
        assert_eq!(path([0; 5]), None);
        // Cached steps are left out.
        assert_eq!(path([0, 2, 1, 4, 1]), Some((vec![1, 3], 6)));
    }

    #[test]
    fn a_command_is_shown_in_one_line() {
        assert_eq!(one_line("make"), "make");
        assert_eq!(one_line("\n  set -e\nmake\n\n  make test\n"), "set -e … and 2 more lines");
        assert_eq!(one_line(""), "");
        assert!(one_line(&"x".repeat(9999)).chars().count() <= LINE_CHARS + 1);
    }
}
