//! A run as a report of JUnit: the pipeline is a suite, and each step is a test case.
//!
//! The elements and attributes are those that Jenkins, GitLab and GitHub's actions read.

use std::fmt::Write as _;

use chrono::DateTime;
use hm_exec::{StepStatus, event::StepRecord};

use super::Report;
use crate::{failure::Outcome, find_step::describe};

/// The number of lines of a failed step's output that are in the report, and their size.
const LINES: usize = 100;
const MAX_BYTES: u64 = 64 << 10;
/// The most artifacts of a step that are named.
const MAX_ATTACHMENTS: usize = 100;

/// Returns the report.
pub(super) fn xml(report: &Report<'_>) -> Outcome<String> {
    let (run, steps) = (report.run, &report.record.steps);
    let count = |kind: Kind| steps.iter().filter(|step| Kind::of(step) == kind).count();
    let (tests, failures, errors, skipped) =
        (steps.len(), count(Kind::Failure), count(Kind::Error), count(Kind::Skipped));
    let ended_ms =
        steps.iter().filter_map(|step| Some(step.started_ms?.saturating_add(step.duration_ms?))).max().unwrap_or(0);
    let totals =
        format!("tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" time=\"{}\"", seconds(ended_ms));
    let name = escape(&run.pipeline);
    let started = DateTime::from_timestamp_millis(run.started_at).unwrap_or_default().format("%Y-%m-%dT%H:%M:%S");
    // In the schema of Jenkins, only a suite says how much was skipped.
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {totals}>\n  <testsuite name=\"{name}\" \
         timestamp=\"{started}\" hostname=\"localhost\" {totals} skipped=\"{skipped}\">\n"
    );
    for (index, step) in steps.iter().enumerate() {
        push_case(&mut xml, report, index, step)?;
    }
    xml.push_str("  </testsuite>\n</testsuites>\n");
    Ok(xml)
}

fn push_case(xml: &mut String, report: &Report<'_>, index: usize, step: &StepRecord) -> Outcome<()> {
    let time = seconds(step.duration_ms.unwrap_or(0));
    let (name, class) = (escape(&step.key), escape(&report.run.pipeline));
    // Writing to a string does not fail.
    let _ = write!(xml, "    <testcase name=\"{name}\" classname=\"{class}\" time=\"{time}\"");
    let kind = Kind::of(step);
    let attachments = attachments(step);
    let (element, output) = match kind {
        Kind::Passed if attachments.is_empty() => {
            xml.push_str("/>\n");
            return Ok(());
        }
        Kind::Passed => {
            let _ = writeln!(xml, ">{attachments}</testcase>");
            return Ok(());
        }
        Kind::Skipped => ("skipped", String::new()),
        Kind::Failure => ("failure", report.last_lines(index, LINES, MAX_BYTES)?),
        Kind::Error => ("error", report.last_lines(index, LINES, MAX_BYTES)?),
    };
    let message = match &step.message {
        Some(reason) => format!("{}: {reason}", describe(step)),
        None => describe(step),
    };
    let message = escape(&message);
    if kind == Kind::Skipped {
        let _ = writeln!(xml, "><{element} message=\"{message}\"/>{attachments}</testcase>");
    } else {
        let code = step.exit_code.unwrap_or(-1);
        let output = escape(&output);
        let _ = writeln!(
            xml,
            "><{element} message=\"{message}\" type=\"exit {code}\">{output}</{element}>{attachments}</testcase>"
        );
    }
    Ok(())
}

/// Returns the element that names a step's artifacts, in the form that Jenkins and GitLab read. It is empty
/// if there are none.
fn attachments(step: &StepRecord) -> String {
    if step.artifacts.is_empty() {
        return String::new();
    }
    // A line end in a name would end the line that the readers look for.
    let names =
        step.artifacts.iter().take(MAX_ATTACHMENTS).filter(|artifact| !artifact.key.contains(['\n', '\r', ']']));
    let lines: String = names.map(|artifact| format!("[[ATTACHMENT|{}]]\n", escape(&artifact.key))).collect();
    format!("<system-out>{lines}</system-out>")
}

/// What JUnit calls a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Passed,
    /// The command failed.
    Failure,
    /// The step could not run, or has no result.
    Error,
    Skipped,
}

impl Kind {
    fn of(step: &StepRecord) -> Self {
        match step.status {
            Some(StepStatus::Passed | StepStatus::Flaky | StepStatus::CacheHit | StepStatus::FailedAllowed) => {
                Self::Passed
            }
            Some(StepStatus::Skipped | StepStatus::Canceled) => Self::Skipped,
            Some(StepStatus::Failed | StepStatus::TimedOut | StepStatus::OutOfMemory) => Self::Failure,
            _ => Self::Error,
        }
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

/// Escapes text for XML, and replaces the characters that XML cannot have.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => out.push(char::REPLACEMENT_CHARACTER),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_valid_in_xml() {
        assert_eq!(
            escape("<a href=\"x\">&\x1b[31m\r\n\u{ffff}ü"),
            "&lt;a href=&quot;x&quot;&gt;&amp;\u{fffd}[31m\u{fffd}\n\u{fffd}ü"
        );
        assert_eq!(seconds(61_005), "61.005");
    }
}
