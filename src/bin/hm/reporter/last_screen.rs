//! The last lines of a build: what failed and why, or what the build took.

use std::{iter, sync::Arc, time::Duration};

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
use crate::typed_names;

/// The maximum number of lines of the command of the only failure.
const COMMAND_LINES: usize = 4;

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
        let more = format!("── FAILED  {}", more_failures(steps));
        lines.push(style.bad(&more));
    }
    // Nothing of the pipeline failed, so what was running is all that there is to see.
    let could_not_go_on = status == Some(BuildStatus::Infrastructure) && steps.failures.is_empty();
    if could_not_go_on {
        for stopped in &steps.stopped {
            // Two lines are left for the error of `hm` below, and its hint.
            lines.extend(self::failure(steps, stopped, steps.stopped.len().max(2), canvas));
        }
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

/// Returns the failures without a block of their own, and how they ended.
fn more_failures(steps: &Steps) -> String {
    let shown = steps.more_failures.iter().take(NAMED).map(|(key, status, exit_code)| {
        let key = text::clean(key);
        match status {
            StepStatus::TimedOut => format!("{key} (timed out)"),
            StepStatus::OutOfMemory => format!("{key} (out of memory)"),
            StepStatus::Infrastructure => format!("{key} (could not run)"),
            _ => format!("{key} (exit {exit_code})"),
        }
    });
    let more = steps.more_failures.len().saturating_sub(NAMED);
    let more = (more > 0).then(|| format!("{more} more"));
    shown.chain(more).collect::<Vec<_>>().join(", ")
}

/// Returns the lines about tests and outputs, if they are not too many.
pub(super) fn reports(steps: &Steps) -> impl Iterator<Item = String> {
    let more = steps.reports.len().saturating_sub(MAX_REPORTS);
    let more = (more > 0).then(|| format!("... {more} more lines about tests and outputs"));
    steps.reports.iter().take(MAX_REPORTS).cloned().chain(more)
}

/// Returns the block of a failed step, one of `failures`: what it was, its command, and its last lines.
pub(super) fn failure(steps: &Steps, failure: &FailedStep, failures: usize, canvas: Canvas) -> Vec<String> {
    let (mut limit, command_lines) = match failures {
        0 | 1 => (MAX_LINES, COMMAND_LINES),
        2 | 3 => (6, 1),
        _ => (3, 1),
    };
    let style = canvas.style;
    let mut lines = vec![heading(failure, canvas)];
    if let Some(command) = steps.plan.command(failure.index, &failure.key) {
        let shown = self::command(&command, command_lines);
        // Together they have the rows of one line of command and the most output.
        limit = limit.saturating_sub(shown.len().saturating_sub(1));
        let prompts = iter::once("$").chain(iter::repeat(">"));
        lines.extend(prompts.zip(shown).map(|(prompt, line)| format!("  {}", style.dim(&format!("{prompt} {line}")))));
    }
    let message = failure.message.iter().flat_map(|message| message.lines()).filter(|line| !line.trim().is_empty());
    // What to do next is at the end of a message.
    lines.extend(message.map(|line| format!("  {}", text::cut_inside(&text::clean(line), LINE_CHARS))));
    let mut excerpt = failure.tail.excerpt(limit);
    if excerpt.earlier == 1 {
        // A line that says so would take as much room.
        excerpt = failure.tail.excerpt(limit + 1);
    }
    if excerpt.earlier > 0 {
        let count = usize::try_from(excerpt.earlier).unwrap_or(usize::MAX);
        let mut more = format!("… {}", text::count(count, "earlier line"));
        if steps.plan.is_known {
            more.push_str(&format!(": hm logs {}", typed_names::step(steps.run, &failure.key)));
        }
        lines.push(format!("  {}", style.dim(&more)));
    }
    for line in &excerpt.lines {
        lines.push(match line {
            None => format!("    {}", style.dim("…")),
            Some(line) => format!("    {}", output(line, failure.message.as_deref(), style)),
        });
    }
    if excerpt.lines.is_empty() && failure.status != StepStatus::Infrastructure {
        lines.push(format!("    {}", style.dim("(no output)")));
    }
    lines
}

/// Returns the first line of a failed step's block: a rule with what it was and how it ended. If a terminal
/// is too narrow for everything, the last facts are left out.
fn heading(failure: &FailedStep, Canvas { style, columns }: Canvas) -> String {
    let what = match failure.status {
        StepStatus::TimedOut => "TIMED OUT",
        StepStatus::OutOfMemory => "OUT OF MEMORY",
        StepStatus::Infrastructure => "COULD NOT RUN",
        StepStatus::Canceled => "STOPPED",
        _ => "FAILED",
    };
    let mut facts = Vec::new();
    if failure.status != StepStatus::Infrastructure {
        // The exit code of a step that was stopped only stands for that.
        let signal = signal(failure.exit_code).filter(|_| failure.status != StepStatus::Canceled);
        let signal = signal.map(|signal| format!(" (signal {signal})")).unwrap_or_default();
        facts.push(format!("exit {}{signal}", failure.exit_code));
    }
    facts.push(text::duration(Duration::from_millis(failure.duration_ms)));
    if failure.attempt > 1 {
        facts.push(format!("attempt {}", failure.attempt));
    }
    let base = failure.base.as_ref().map(|base| format!("from {}", text::clean(base)));
    let mut place: Vec<String> = failure.runner.iter().map(|runner| text::clean(runner)).chain(base).collect();
    let start = format!("── {what}");
    let mut title = failure.title.to_string();
    let mut rest = rest_of_heading(&facts, &place);
    if let Some(columns) = columns {
        let room = columns.saturating_sub(text::columns(&start) + 2);
        while text::columns(&title) + text::columns(rest.trim_end()) > room {
            if place.pop().is_none() && (facts.len() == 1 || facts.pop().is_none()) {
                // Without colours, between which it could not be cut.
                let room = room.saturating_sub(text::columns(rest.trim_end()));
                title = text::fit(&text::clean(&title), room).into_owned();
                break;
            }
            rest = rest_of_heading(&facts, &place);
        }
    }
    let (default, max) = RULE;
    let used = text::columns(&start) + 2 + text::columns(&title) + text::columns(&rest);
    let rule = "─".repeat(columns.unwrap_or(default).min(max).saturating_sub(used));
    format!("{}  {title}{rest}{rule}", style.bad(&start)).trim_end().to_owned()
}

/// Returns the part of a heading between the step's name and the rule.
fn rest_of_heading(facts: &[String], place: &[String]) -> String {
    let place = (!place.is_empty()).then(|| place.join(", "));
    let all: Vec<String> = facts.iter().cloned().chain(place).collect();
    format!(" · {} ", all.join(" · "))
}

fn output(line: &Line, message: Option<&str>, style: Style) -> String {
    let mut shown = if line.is_error { style.bad("stderr │ ") } else { String::new() };
    text::push_clean(&mut shown, text::cut(beyond(message, &line.text), LINE_CHARS).as_ref(), style.colors);
    shown
}

/// Returns the part of a line that the failure's message, which stands above it, does not say. The report
/// about a service in the step's output begins with the same words.
fn beyond<'a>(message: Option<&str>, line: &'a str) -> &'a str {
    let report = line.strip_prefix("error: ").and_then(|report| report.split_once("; "));
    match report {
        Some((what, rest)) if !what.is_empty() && message.is_some_and(|message| message.contains(what)) => match rest {
            "its last lines:" => "last lines of the service:",
            rest => rest,
        },
        _ => line,
    }
}

/// Returns at most `limit` lines of a command that say something, and how many others there are.
fn command(command: &str, limit: usize) -> Vec<String> {
    let lines: Vec<&str> = command.lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
    // Scripts begin with options of the shell and with comments.
    let says_nothing = |line: &&&str| ["set -", "#"].iter().any(|start| line.trim_start().starts_with(start));
    let skipped = lines.iter().take_while(says_nothing).count();
    let skipped = if skipped == lines.len() { 0 } else { skipped };
    let shown = lines[skipped..].iter().take(limit);
    let mut shown: Vec<String> =
        shown.map(|line| text::cut(&text::clean(line.trim()), LINE_CHARS).into_owned()).collect();
    let others = lines.len() - shown.len();
    match shown.last_mut() {
        Some(last) if others > 0 => last.push_str(&format!(" … and {}", text::count(others, "more line"))),
        Some(_) => {}
        None => shown.push(String::new()),
    }
    shown
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
    } else if let Some((key, ms)) = steps.slowest() {
        parts.push(format!("slowest {} {}", text::clean(key), text::duration(Duration::from_millis(ms))));
    }
    parts.extend(usage(steps));
    parts.join(" · ")
}

/// Describes what the steps used of the machine, as far as it is much, and which of them used the network.
fn usage(steps: &Steps) -> Vec<String> {
    let mut parts = Vec::new();
    if steps.cpu_ms >= MUCH_CPU_MS {
        parts.push(format!("CPU {}", text::duration(Duration::from_millis(steps.cpu_ms))));
    }
    if let Some((key, peak)) = steps.hungriest.as_ref().filter(|(_, peak)| *peak >= MUCH_MEMORY) {
        parts.push(format!("peak {} ({})", size::show(*peak), text::clean(key)));
    }
    if !steps.networked.is_empty() {
        parts.push(format!("network: {}", names(&steps.networked)));
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
    use crate::reporter::tail::Tail;

    #[test]
    fn a_command_is_shown_by_what_it_does() {
        let script = "#!/bin/sh\nset -e\n\n  make test\nmake lint\n# The rest.\nmake docs";
        assert_eq!(command(script, 1), ["make test … and 5 more lines"]);
        assert_eq!(command(script, 3), ["make test", "make lint", "# The rest. … and 3 more lines"]);
        assert_eq!(command("make test\nmake lint", 4), ["make test", "make lint"]);
        assert_eq!(command("set -e; make", 4), ["set -e; make"]);
        assert_eq!(command("# nothing\nset -e", 1), ["# nothing … and 1 more line"]);
        assert_eq!(command("", 4), [""]);
        assert!(command(&"x".repeat(9999), 4)[0].chars().count() <= LINE_CHARS + 1);
    }

    #[test]
    fn what_the_message_says_is_not_repeated() {
        let message = Some("service `db` exited with 1 before the step had ended: raise `memory`");
        let report = "error: service `db` exited with 1 before the step had ended; its last lines:";
        assert_eq!(beyond(message, report), "last lines of the service:");
        for (message, line) in
            [(None, report), (message, "error: connection refused; db is down"), (message, "error: ; x")]
        {
            assert_eq!(beyond(message, line), line);
        }
    }

    #[test]
    fn a_heading_fits_the_terminal() {
        let of = |title: &str, columns| {
            let failure = FailedStep {
                index: StepIndex(0),
                key: "link".into(),
                title: title.into(),
                status: StepStatus::Failed,
                exit_code: 1,
                duration_ms: 500,
                attempt: 2,
                message: None,
                runner: Some("sandbox".into()),
                base: Some("deps".into()),
                tail: Tail::default(),
            };
            heading(&failure, Canvas { style: Style::PLAIN, columns })
        };
        let whole = "── FAILED  link · exit 1 · 0.50s · attempt 2 · sandbox, from deps";
        assert!(of("link", None).starts_with(whole));
        assert_eq!(of("link", Some(text::columns(whole))), whole);
        assert!(
            of("link", Some(text::columns(whole) - 1))
                .starts_with("── FAILED  link · exit 1 · 0.50s · attempt 2 · sandbox ─")
        );
        assert_eq!(of("link", Some(24)), "── FAILED  link · exit 1");
        for columns in 21..100 {
            for title in ["link", "链接器的单元测试和集成测试 (link)"] {
                let shown = of(title, Some(columns));
                assert!(text::columns(&shown) <= columns && shown.contains(" · exit 1"), "{columns}: {shown}");
            }
        }
    }

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
}
